"""What the diffusion runs in: pixels as they are, or the latents of a VAE.

Encoding has two halves. ``encode`` is slow and depends on the picture alone, so its result can be computed
once and kept; ``latents`` is cheap and random, so it runs anew for every training sample. The scale that
brings latents to unit variance is applied here and nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.flops import metered
from ldm.models.damage import damaged_weight
from ldm.models.vae import AutoencoderKL, sample_moments, split_moments
from ldm.tiling import tiled_decode, tiled_encode

DECODED_AT_ONCE = 2**20  # pixels: four pictures of 512x512; the decoder takes gigabytes for each


class Codec(Protocol):
    """Pictures to the space of diffusion and back.

    Attributes:
        channels: channels of the diffused space.
        factor: how many pixels along each side one of its positions stands for.
        bounds: values of the diffused space lie in -bounds .. bounds; None where nothing is known.
        colours: channels of a picture.
    """

    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...
    @property
    def bounds(self) -> float | None: ...
    @property
    def colours(self) -> int: ...

    def encode(self, images: Tensor, tiled: bool = False, *, wait: bool = True) -> Tensor:
        """Pictures (B, C, H, W) in -1..1 to what can be kept: the slow half.

        Args:
            images: to encode.
            tiled: take less memory.
            wait: for a GPU, to see what comes out. A step of training must not, and finds out by its loss.

        Raises:
            UserError: what comes out is no number, where anybody looks: with ``wait``, and on a CPU always.
        """
        ...

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """What ``encode`` gave, and standard normal ``noise`` (B, channels, h, w), to a clean sample x0."""
        ...

    def mean(self, encoded: Tensor) -> Tensor:
        """The most likely x0 for what ``encode`` gave."""
        ...

    def decode(self, latents: Tensor, tiled: bool = False) -> Tensor:
        """x0 (B, channels, h, w) to pictures (B, C, H, W) in -1..1, float32; ``tiled`` takes less memory.

        Raises:
            UserError: what comes out is no number.
        """
        ...


class PixelCodec:
    """The identity: diffusion in pixels from -1 to 1."""

    factor = 1
    bounds = 1.0

    def __init__(self, channels: int) -> None:
        self.channels = self.colours = channels

    def encode(self, images: Tensor, tiled: bool = False, *, wait: bool = True) -> Tensor:
        return images

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        return encoded

    def mean(self, encoded: Tensor) -> Tensor:
        return encoded

    def decode(self, latents: Tensor, tiled: bool = False) -> Tensor:
        return latents.float().clamp(-1, 1)


class VAECodec:
    """The latents of an autoencoder, scaled to unit variance.

    Attributes:
        vae: frozen; its ``config.scaling_factor`` is one over the latents' standard deviation.
    """

    bounds = None

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.channels = vae.config.latent_channels
        self.colours = vae.config.in_channels
        self.factor = vae.config.factor
        self.scale = vae.config.scaling_factor

    def encode(self, images: Tensor, tiled: bool = False, *, wait: bool = True) -> Tensor:
        if wait or self.vae.last_layer.device.type == "cpu":
            return self._finite(lambda: self._encode(images, tiled), "encoding")
        return self._encode(images, tiled)

    def _encode(self, images: Tensor, tiled: bool) -> Tensor:
        weight = self.vae.last_layer
        images = images.to(weight.device, weight.dtype)
        with torch.no_grad(), metered(self.vae, "encode", tiled, images=images):
            return (tiled_encode(self.vae, images) if tiled else self.vae.encode(images)).float()

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        return sample_moments(encoded, noise) * self.scale

    def mean(self, encoded: Tensor) -> Tensor:
        return split_moments(encoded)[0] * self.scale

    def decode(self, latents: Tensor, tiled: bool = False) -> Tensor:
        pixels = latents.shape[-2] * latents.shape[-1] * self.factor**2
        parts = latents.split(max(1, DECODED_AT_ONCE // pixels))
        return torch.cat([self._finite(lambda x=x: self._decode(x, tiled), "decoding") for x in parts]).clamp(-1, 1)

    def _decode(self, latents: Tensor, tiled: bool) -> Tensor:
        latents = (latents / self.scale).to(self.vae.last_layer.dtype)
        with torch.no_grad(), metered(self.vae, "decode", tiled, latents=latents):
            return (tiled_decode(self.vae, latents) if tiled else self.vae.decode(latents)).float()

    def _finite(self, work: Callable[[], Tensor], what: str) -> Tensor:
        """What ``work`` gives; where it overflows in half precision, what it gives in float32.

        Raises:
            UserError: it is no number even so.
        """
        found = work()
        if self.vae.last_layer.dtype == torch.float16 and not bool(found.isfinite().all()):
            # Half precision ends at 65504, and the activations of some autoencoders go beyond.
            print(f"the autoencoder overflows in fp16: {what} again in fp32", file=sys.stderr)
            self.vae.float()
            try:
                found = work()
            finally:
                self.vae.half()  # exact: so no picture depends on those before it
        if not bool(found.isfinite().all()):
            cause = damaged_weight({"vae": self.vae})
            told = f"{cause} holds NaN or infinity" if cause else "what it was given is too large for it"
            raise UserError(f"the autoencoder gave what is no number: {told}")
        return found
