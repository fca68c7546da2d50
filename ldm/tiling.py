"""Decode and encode large pictures in bands, in a fraction of the memory, with the very result of doing it whole.

Tiles that are decoded one by one and blended show: each one's group norms see the mean and variance of that tile
alone, so brightness and contrast jump from one to the next. Here one layer at a time walks over the whole picture
in bands of rows, and nothing but rounding differs from the whole computation:

- a convolution reads one row more than it writes on either side, so the edge of a band is no edge to it;
- a group norm takes its mean and variance from the whole picture, added up over the bands;
- the middle, whose attention joins all positions, runs whole at the latents' resolution, where it is small.

The price is time. A residual block's branch is computed twice, once for the statistics of its second norm and once
for good, and an upsampling before it three times; for that, one map is kept between blocks, the residual stream,
where the whole computation has six of that size and more at once.

Each picture is computed alone, and so does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.layers import Downsample, ResnetBlock, Upsample
from ldm.models.vae import AutoencoderKL, Stage

BAND_PIXELS = 32 * 1024  # in one band: 32 rows of a picture that is 1024 wide
Layer = Callable[[Tensor], Tensor]


@torch.no_grad()
def tiled_decode(
    vae: AutoencoderKL, latents: Tensor, band_pixels: int = BAND_PIXELS, keep: torch.device | None = None
) -> Tensor:
    """``vae.decode(latents)`` up to rounding, in less memory.

    Args:
        vae: without gradients.
        latents: unscaled, (B, latent_channels, h, w), of the dtype of ``vae``, on its device.
        band_pixels: pixels of the band that is computed at a time, at any resolution; two rows or more.
        keep: where whole maps are kept between layers; the CPU spares a GPU's memory and costs time.

    Returns:
        Images (B, out_channels, h factor, w factor), about -1..1, on the device of ``latents``.

    Raises:
        UserError: ``band_pixels`` is not above 0.
    """
    walk = Bands(band_pixels, latents.device, keep or latents.device)
    return torch.cat([_decode(vae, picture, walk) for picture in latents.split(1)])


@torch.no_grad()
def tiled_encode(
    vae: AutoencoderKL, images: Tensor, band_pixels: int = BAND_PIXELS, keep: torch.device | None = None
) -> Tensor:
    """``vae.encode(images)`` up to rounding, in less memory.

    Args:
        vae: without gradients.
        images: (B, in_channels, H, W) in -1..1, of the dtype of ``vae``, on its device.
        band_pixels: pixels of the band that is computed at a time, at any resolution; two rows or more.
        keep: where whole maps are kept between layers; the CPU spares a GPU's memory and costs time.

    Returns:
        Moments (B, 2 latent_channels, h, w), on the device of ``images``.

    Raises:
        UserError: ``band_pixels`` is not above 0.
    """
    walk = Bands(band_pixels, images.device, keep or images.device)
    return torch.cat([_encode(vae, picture, walk) for picture in images.split(1)])


def _decode(vae: AutoencoderKL, latent: Tensor, walk: Bands) -> Tensor:
    decoder = vae.decoder
    source = walk.stored(decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent))))
    for stage in cast(Iterable[Stage], decoder.up_blocks):
        for block in cast(Iterable[ResnetBlock], stage.resnets):
            source = walk.resnet(block, source)
        for layer in cast(Iterable[Upsample], stage.upsamplers):
            source = walk.upsampled(layer.conv, source)
    last = walk.convolved(decoder.conv_out, source, walk.activation(decoder.conv_norm_out, source))
    return walk.computed(last, vae.config.out_channels).to(latent.device)


def _encode(vae: AutoencoderKL, image: Tensor, walk: Bands) -> Tensor:
    encoder, widths = vae.encoder, vae.config.block_out_channels
    source = walk.convolved(encoder.conv_in, walk.stored(image), lambda rows: rows)
    source = walk.stored(walk.computed(source, widths[0]))
    for stage, width in zip(cast(Iterable[Stage], encoder.down_blocks), widths, strict=True):
        for block in cast(Iterable[ResnetBlock], stage.resnets):
            source = walk.resnet(block, source)
        for layer in cast(Iterable[Downsample], stage.downsamplers):
            source = walk.stored(walk.computed(walk.downsampled(layer.conv, source), width))
    x = encoder.mid_block(source.rows(0, source.height))
    return vae.quant_conv(encoder.conv_out(F.silu(encoder.conv_norm_out(x))))


@dataclass(frozen=True)
class Source:
    """A map (1, C, height, width) that is stored, or computed when asked for.

    Attributes:
        rows: gives the rows from one to before another, where they are computed.
        map: what is stored.
    """

    rows: Callable[[int, int], Tensor]
    height: int
    width: int
    map: Tensor | None = None


class Bands:
    """Layers over whole maps, a band of rows at a time.

    Attributes:
        pixels: of a band, about.
        device: where bands are computed.
        keep: where maps are stored.
    """

    def __init__(self, pixels: int, device: torch.device, keep: torch.device) -> None:
        if pixels < 1:
            raise UserError(f"band_pixels must be above 0, got {pixels}")
        self.pixels = pixels
        self.device = device
        self.keep = keep

    def stored(self, x: Tensor) -> Source:
        """A map that is there; the rows of one lie one after the other in memory."""
        x = x.to(self.keep, memory_format=torch.channels_last)
        return Source(lambda a, b: x[:, :, a:b].to(self.device), x.shape[2], x.shape[3], x)

    def computed(self, source: Source, channels: int) -> Tensor:
        """All rows of a map of so many channels."""
        return self._write(source, None, channels)

    def _write(self, source: Source, over: Tensor | None, channels: int) -> Tensor:
        """Compute all rows, over a map that they may be computed from: up to two rows beyond each band."""
        pending: tuple[int, int, Tensor] | None = None
        for a, b in self._spans(source):
            band = source.rows(a, b)
            if over is None:
                shape = (1, channels, source.height, source.width)
                over = torch.empty(shape, dtype=band.dtype, device=self.keep, memory_format=torch.channels_last)
            # a band behind, for the rows that this one reads are not written before
            if pending is not None:
                over[:, :, pending[0] : pending[1]] = pending[2]
            pending = a, b, band
        assert over is not None
        assert pending is not None
        over[:, :, pending[0] : pending[1]] = pending[2]
        return over

    def resnet(self, block: ResnetBlock, source: Source) -> Source:
        """A residual block; a map of its width is overwritten."""
        branch = self.convolved(block.conv1, source, self.activation(block.norm1, source))
        branch = self.convolved(block.conv2, branch, self.activation(block.norm2, branch))
        shortcut = block.conv_shortcut

        def rows(a: int, b: int) -> Tensor:
            x = source.rows(a, b)
            return branch.rows(a, b) + (x if shortcut is None else shortcut(x))

        over = source.map if shortcut is None else None
        total = Source(rows, source.height, source.width)
        return self.stored(self._write(total, over, block.norm2.num_channels))

    def activation(self, norm: nn.GroupNorm, source: Source) -> Layer:
        """The SiLU of the group norm of a map, as a function of any of its rows."""
        moments = self._moments(source, norm.num_channels)
        mean, square = (v.unflatten(0, (norm.num_groups, -1)).mean(1, keepdim=True) for v in moments)
        width = norm.num_channels // norm.num_groups
        mean, variance = (v.float().expand(-1, width).flatten() for v in (mean, square - mean.square()))
        weight, bias = norm.weight.float(), norm.bias.float()
        # statistics from outside, one of each per channel, are what batch norm has in inference
        return lambda band: F.silu(F.batch_norm(band, mean, variance, weight, bias, eps=norm.eps), inplace=True)

    def _moments(self, source: Source, channels: int) -> tuple[Tensor, Tensor]:
        """Means of x and of x^2 over each channel, float64."""
        sums = torch.zeros(2, channels, dtype=torch.float64, device=self.device)
        for a, b in self._spans(source):
            band = source.rows(a, b)
            count = band.shape[2] * band.shape[3]
            mean, variance = torch.zeros(2, channels, device=self.device)
            # the fastest kernel there is for these; it divides the variance by n - 1, and refuses n = 1
            F.batch_norm(band if count > 1 else band.repeat(1, 1, 1, 2), mean, variance, training=True, momentum=1.0)
            square = variance.double() * (count - 1) / count + mean.double().square()
            sums += count * torch.stack([mean.double(), square])
        mean, square = sums / (source.height * source.width)
        return mean, square

    def convolved(self, conv: Layer, source: Source, before: Layer) -> Source:
        """A 3x3 convolution, which pads with zeros where the map ends, of what ``before`` makes of its rows."""

        def rows(a: int, b: int) -> Tensor:
            low, high = max(a - 1, 0), min(b + 1, source.height)
            return conv(before(source.rows(low, high)))[:, :, a - low : b - low]

        return Source(rows, source.height, source.width)

    def upsampled(self, conv: Layer, source: Source) -> Source:
        """A 3x3 convolution of a map at twice its height and width."""

        def enlarged(a: int, b: int) -> Tensor:
            rows = F.interpolate(source.rows(a // 2, (b + 1) // 2), scale_factor=2, mode="nearest")
            return rows[:, :, a % 2 : a % 2 + b - a]

        return self.convolved(conv, Source(enlarged, 2 * source.height, 2 * source.width), lambda rows: rows)

    def downsampled(self, conv: Layer, source: Source) -> Source:
        """A 3x3 convolution of stride 2 that pads below and to the right."""

        def rows(a: int, b: int) -> Tensor:
            band = source.rows(2 * a, min(2 * b + 1, source.height))
            return conv(F.pad(band, (0, 1, 0, 2 * (b - a) + 1 - band.shape[2])))

        return Source(rows, source.height // 2, source.width // 2)

    def _spans(self, source: Source) -> Iterator[tuple[int, int]]:
        """From which row to before which, for each band of a map: two or more of one height, then the rest."""
        bands = max(1, round(source.height * source.width / self.pixels))
        rows = max(2, -(-source.height // bands))
        return ((a, min(a + rows, source.height)) for a in range(0, source.height, rows))
