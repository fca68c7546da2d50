"""What the diffusion runs in: pixels as they are, or the latents of a VAE.

Encoding has two halves. ``encode`` is slow and depends on the picture alone, so its result can be computed
once and kept; ``latents`` is cheap and random, so it runs anew for every training sample. The scale that
brings latents to unit variance is applied here and nowhere else.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ldm.models.vae import AutoencoderKL, sample_moments, split_moments


class Codec(Protocol):
    """Pictures to the space of diffusion and back.

    Attributes:
        channels: channels of the diffused space.
        factor: how many pixels along each side one of its positions stands for.
        bounds: values of the diffused space lie in -bounds .. bounds; None where nothing is known.
    """

    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...
    @property
    def bounds(self) -> float | None: ...

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in -1..1 to what can be kept: the slow half."""
        ...

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        """What ``encode`` gave, and standard normal ``noise`` (B, channels, h, w), to a clean sample x0."""
        ...

    def mean(self, encoded: Tensor) -> Tensor:
        """The most likely x0 for what ``encode`` gave."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """x0 (B, channels, h, w) to pictures (B, C, H, W) in -1..1, float32."""
        ...


class PixelCodec:
    """The identity: diffusion in pixels from -1 to 1."""

    factor = 1
    bounds = 1.0

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, images: Tensor) -> Tensor:
        return images

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        return encoded

    def mean(self, encoded: Tensor) -> Tensor:
        return encoded

    def decode(self, latents: Tensor) -> Tensor:
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
        self.factor = vae.config.factor
        self.scale = vae.config.scaling_factor

    def encode(self, images: Tensor) -> Tensor:
        weight = self.vae.last_layer
        with torch.no_grad():
            return self.vae.encode(images.to(weight.device, weight.dtype)).float()

    def latents(self, encoded: Tensor, noise: Tensor) -> Tensor:
        return sample_moments(encoded, noise) * self.scale

    def mean(self, encoded: Tensor) -> Tensor:
        return split_moments(encoded)[0] * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            images = self.vae.decode((latents / self.scale).to(self.vae.last_layer.dtype))
        return images.float().clamp(-1, 1)
