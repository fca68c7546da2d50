"""The generator of a generative adversarial network (Goodfellow et al. 2014), for the comparison with diffusion.

The shape is DCGAN's (Radford et al. 2016): a vector of standard normal numbers becomes a coarse map of features, which
transposed convolutions double until it has the size of the picture; batch norm and ReLU in between, tanh at the end.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.discriminator import initialise
from ldm.schema import Settings


class GeneratorConfig(Settings):
    """The shape of a ``Generator``.

    Attributes:
        latent_dim: numbers that a picture is made of.
        out_channels: of the picture.
        sample_size: its side in pixels, a multiple of 2^n for n ``channels``.
        channels: of the maps, from the coarsest on; each but the first has twice the side of the one before.
    """

    latent_dim: int = Field(default=64, ge=1)
    out_channels: int = Field(default=1, ge=1)
    sample_size: int = Field(ge=1)
    channels: tuple[int, ...] = Field(default=(128, 64), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> GeneratorConfig:
        if self.sample_size % 2 ** len(self.channels):
            told = f"should be a multiple of {2 ** len(self.channels)}, as it is halved for each of the channels"
            raise UserError(f"sample_size {told}, got {self.sample_size}")
        return self

    @property
    def coarsest(self) -> int:
        """Side of the first map."""
        return self.sample_size >> len(self.channels)


class Generator(nn.Module):
    """Maps vectors (B, latent_dim) to pictures (B, out_channels, sample_size, sample_size) in -1..1.

    Attributes:
        config: its shape.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        first, side = config.channels[0], config.coarsest
        self.stem = nn.Linear(config.latent_dim, first * side * side, bias=False)
        stages: list[nn.Module] = [nn.BatchNorm2d(first), nn.ReLU()]
        for before, after in zip(config.channels, config.channels[1:], strict=False):
            stages += [_doubling(before, after, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        stages += [_doubling(config.channels[-1], config.out_channels, bias=True), nn.Tanh()]
        self.stages = nn.Sequential(*stages)
        self.apply(initialise)

    def forward(self, z: Tensor) -> Tensor:
        side = self.config.coarsest
        return self.stages(self.stem(z).unflatten(1, (-1, side, side)))  # (B, C, H, W)


def _doubling(before: int, after: int, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=bias)


def draw_vectors(seeds: list[int], config: GeneratorConfig) -> Tensor:
    """What pictures with these seeds are made of, (B, latent_dim): each depends on its own seed alone."""
    rows = [torch.randn(config.latent_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)
