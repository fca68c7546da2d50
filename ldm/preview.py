"""Previews of latents: a matrix from latent channels to red, green and blue, fitted to the autoencoder at hand.

What a picture shows at a place follows mostly from the latent at that place, and nearly linearly. So the matrix W
and the offset b that minimise

    sum over positions of | W z + b - picture |^2

over some latents z and the pictures they stand for, averaged down to the size of the latents, show a drawing as it
comes, thousands of times faster than the decoder. Where latents are pixels, W is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.codec import Codec
from ldm.errors import UserError
from ldm.images import to_pil


@dataclass(frozen=True)
class LatentPreview:
    """Shows latents without decoding them.

    Attributes:
        matrix: (K, C) from C latent channels to K = 1 or 3 colours.
        offset: (K,).
        factor: pixels of a picture for each position of a latent, along each side.
    """

    matrix: Tensor
    offset: Tensor
    factor: int

    def colours(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, h, w) to small pictures (B, K, h, w), about -1..1, float32 on the CPU."""
        mapped = torch.einsum("kc,bchw->bkhw", self.matrix, latents.float().cpu())
        return mapped + self.offset[:, None, None]

    def pictures(self, latents: Tensor, enlarge: bool = True) -> list[Image.Image]:
        """PIL images of latents (B, C, h, w): of the size of the decoded pictures, or with ``enlarge`` off, (h, w)."""
        small = to_pil(self.colours(latents))
        scale = self.factor if enlarge else 1
        return [image.resize((image.width * scale, image.height * scale), Image.Resampling.BILINEAR) for image in small]


def fit_preview(latents: Tensor, pictures: Tensor) -> LatentPreview:
    """Fit to pairs, by least squares.

    Args:
        latents: (N, C, h, w), scaled as the diffusion has them.
        pictures: what they stand for, (N, K, h factor, w factor) in -1..1.

    Raises:
        UserError: there are too few positions to fit to, or a value is not finite.
    """
    channels, factor = latents.shape[1], pictures.shape[-1] // latents.shape[-1]
    small = F.avg_pool2d(pictures.cpu().double(), factor)
    x, y = (maps.cpu().double().movedim(1, -1).flatten(0, 2) for maps in (latents, small))  # (N h w, C), (N h w, K)
    if len(x) <= channels:
        raise UserError(f"a preview of {channels} latent channels needs more than {channels} positions, got {len(x)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise UserError("a preview cannot be fitted: the autoencoder gave values that are not finite")
    found = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), y).solution  # (C + 1, K)
    return LatentPreview(found[:-1].T.float().contiguous(), found[-1].float(), factor)


def preview_of(codec: Codec, channels: int, height: int, width: int) -> LatentPreview:
    """The preview of a codec, fitted to what it makes of some ``probe_pictures``; keep it, for they are encoded anew.

    Args:
        codec: pictures to latents.
        channels: of its pictures, 1 or 3.
        height, width: of the probes, in pixels, multiples of the codec's factor; best a size it was trained at.
    """
    per_picture = height * width // codec.factor**2
    pictures = probe_pictures(channels, max(4, 1024 // per_picture), height, width)
    latents = [codec.mean(codec.encode(picture)) for picture in pictures.split(1)]
    return fit_preview(torch.cat(latents), pictures)


def probe_pictures(channels: int, count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Pictures (count, channels, height, width) in -1..1 of all colours: soft and sharp patches at several scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, channels, height, width)
    for cells, mode in ((2, "bilinear"), (4, "bilinear"), (8, "nearest"), (16, "nearest")):
        patches = torch.randn(count, channels, cells, cells, generator=generator)
        total += F.interpolate(patches, size=(height, width), mode=mode)
    return total.clamp(-1, 1)
