"""What the diffusion runs in: pixels as they are, or the latents of a VAE.

Encoding has two halves. ``encode`` is slow and depends on the picture alone, so its result can be computed
once and kept; ``latents`` is cheap and random, so it runs anew for every training sample. The scale that
brings latents to unit variance is applied here and nowhere else.
"""

from __future__ import annotations

import sys
from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.flops import metered
from ldm.models.damage import damaged_weight
from ldm.models.vae import AutoencoderKL, sample_moments, split_moments
from ldm.tiling import tiled_decode, tiled_encode


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

    def encode(self, images: Tensor, tiled: bool = False) -> Tensor:
        """Pictures (B, C, H, W) in -1..1 to what can be kept: the slow half; ``tiled`` takes less memory."""
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

    def encode(self, images: Tensor, tiled: bool = False) -> Tensor:
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

    def encode(self, images: Tensor, tiled: bool = False) -> Tensor:
        weight = self.vae.last_layer
        images = images.to(weight.device, weight.dtype)
        with torch.no_grad(), metered(self.vae, "encode", images=images):
            return (tiled_encode(self.vae, images) if tiled else self.vae.encode(images)).float()

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        return sample_moments(encoded, noise) * self.scale

    def mean(self, encoded: Tensor) -> Tensor:
        return split_moments(encoded)[0] * self.scale

    def decode(self, latents: Tensor, tiled: bool = False) -> Tensor:
        images = self._decode(latents, tiled)
        if self.vae.last_layer.dtype == torch.float16 and not bool(images.isfinite().all()):
            # Half precision ends at 65504, and the activations of some autoencoders go beyond.
            print("the autoencoder overflows in fp16: decoding again, and from now on, in fp32", file=sys.stderr)
            self.vae.float()
            images = self._decode(latents, tiled)
        if not bool(images.isfinite().all()):
            cause = damaged_weight({"vae": self.vae})
            told = f"{cause} holds NaN or infinity" if cause else "the latents are too large for it"
            raise UserError(f"the autoencoder gave what is no number: {told}")
        return images.clamp(-1, 1)

    def _decode(self, latents: Tensor, tiled: bool) -> Tensor:
        latents = (latents / self.scale).to(self.vae.last_layer.dtype)
        with torch.no_grad(), metered(self.vae, "decode", latents=latents):
            return (tiled_decode(self.vae, latents) if tiled else self.vae.decode(latents)).float()
