"""The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1), KL-regularised.

The encoder gives, for each latent pixel, the mean and log-variance of a Gaussian (Kingma & Welling 2014);
training draws z = mean + exp(logvar / 2) * noise and asks the decoder for the image back. Latents here are
unscaled: bringing them to unit variance (``scaling_factor``) belongs to whoever feeds them to a diffusion
model.

Submodules are named as in diffusers' ``AutoencoderKL``, so state dicts pass both ways unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.attention import ImageAttention
from ldm.models.diffusers_config import refuse_unsupported
from ldm.models.layers import Downsample, ResnetBlock, Upsample, run_block
from ldm.schema import Settings

NORM_EPS = 1e-6

# What AutoencoderKL can be told and this one cannot: the one value that means "as here".
_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
# Whether a pipeline should decode in float32 when all else is float16: no property of the network.
_HINTS = ("force_upcast",)
# The defaults of AutoencoderKL, for keys that a file leaves out.
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


class VAEConfig(Settings):
    """The shape of an autoencoder; the defaults are Stable Diffusion 1.x.

    Attributes:
        in_channels: channels of the images it reads.
        out_channels: channels of the images it writes.
        latent_channels: channels of a latent.
        block_out_channels: width of each level, fine to coarse; each after the first halves height and width.
        layers_per_block: residual blocks per level in the encoder; one more in the decoder.
        norm_num_groups: groups of every group norm.
        sample_size: height and width it was trained at, in pixels; any size runs.
        scaling_factor: what its latents are multiplied by to have about unit variance.
        mid_block_add_attention: whether the middles of encoder and decoder attend.
    """

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = Field((128, 256, 512, 512), min_length=1)
    layers_per_block: PositiveInt = 2
    norm_num_groups: PositiveInt = 32
    sample_size: PositiveInt = 512
    scaling_factor: PositiveFloat = 0.18215
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _check(self) -> VAEConfig:
        for level, channels in enumerate(self.block_out_channels):
            if channels % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels[{level}] = {channels} is not divisible by norm_num_groups = "
                    f"{self.norm_num_groups}"
                )
        return self

    @property
    def factor(self) -> int:
        """How many pixels of an image one latent pixel stands for, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> VAEConfig:
        """Translate the ``config.json`` of an ``AutoencoderKL``.

        Raises:
            UserError: a key has a value that this autoencoder cannot honour, or is unknown.
        """
        blocks = ("down_block_types", "up_block_types")
        refuse_unsupported(config, "autoencoder's", {*_DIFFUSERS_DEFAULTS, *blocks}, _FIXED, _HINTS)
        found = {key: config.get(key, default) for key, default in _DIFFUSERS_DEFAULTS.items()}
        for key, supported in zip(blocks, (_DOWN, _UP), strict=True):
            expected = [supported] * len(found["block_out_channels"])
            if list(config.get(key, [supported])) != expected:
                raise UserError(f"the autoencoder's config.json has {key} = {config.get(key)!r}; supported: {expected}")
        return cls(**found)

    def to_diffusers(self) -> dict[str, Any]:
        """Return the ``config.json`` of an ``AutoencoderKL`` of this shape."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            **self.model_dump(mode="json"),
            "down_block_types": [_DOWN] * levels,
            "up_block_types": [_UP] * levels,
        }


class Stage(nn.Module):
    """Residual blocks of one resolution, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        groups: int,
        resample: Downsample | Upsample | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, groups, NORM_EPS) for width in widths)
        self.downsamplers = nn.ModuleList([resample] if isinstance(resample, Downsample) else [])
        self.upsamplers = nn.ModuleList([resample] if isinstance(resample, Upsample) else [])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H', W')."""
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """Residual block, attention over all positions, residual block."""

    def __init__(self, channels: int, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, NORM_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([ImageAttention(channels, groups, NORM_EPS)] if attends else [])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Images to moments, before ``quant_conv``."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            resample = Downsample(width, pad_end=True) if level < len(widths) - 1 else None
            self.down_blocks.append(Stage(widths[max(level - 1, 0)], width, config.layers_per_block, groups, resample))
        self.mid_block = Middle(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 2 latent_channels, H / factor, W / factor)."""
        return _ends(self, [*self.down_blocks, self.mid_block], x, recompute)


class Decoder(nn.Module):
    """Latents, after ``post_quant_conv``, to images."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = Upsample(width) if i < len(widths) - 1 else None
            self.up_blocks.append(Stage(widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, resample))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Map (B, latent_channels, h, w) to (B, out_channels, h factor, w factor)."""
        return _ends(self, [self.mid_block, *self.up_blocks], x, recompute)


def _ends(half: Encoder | Decoder, blocks: Sequence[nn.Module], x: Tensor, recompute: bool) -> Tensor:
    """What encoder and decoder have in common: a convolution, the blocks, norm, SiLU, a convolution."""
    x = half.conv_in(x)
    for block in blocks:
        x = run_block(block, x, recompute=recompute)
    return half.conv_out(F.silu(half.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Images in -1..1 to Gaussians over latents, and latents to images.

    Attributes:
        config: its shape.
        gradient_checkpointing: when true and training, keep only the inputs of each block and compute the
            rest again in the backward pass.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution, where the adversarial weight measures gradients."""
        return self.decoder.conv_out.weight

    def encode(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) in -1..1 to moments (B, 2 latent_channels, h, w).

        h and w are H and W over ``config.factor``, rounded down.
        """
        return self.quant_conv(self.encoder(images, self.gradient_checkpointing and self.training))

    def decode(self, latents: Tensor) -> Tensor:
        """Map unscaled latents (B, latent_channels, h, w) to images (B, out_channels, H, W), about -1..1."""
        return self.decoder(self.post_quant_conv(latents), self.gradient_checkpointing and self.training)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Encode, draw with ``noise`` (B, latent_channels, h, w), decode: (reconstruction, moments)."""
        moments = self.encode(images)
        return self.decode(sample_moments(moments, noise)), moments


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Split moments (B, 2 C, h, w) into mean and log-variance (clamped to -30..20), each (B, C, h, w)."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """Return latents mean + exp(logvar / 2) noise; ``noise`` is standard normal, (B, C, h, w)."""
    mean, logvar = split_moments(moments)
    return mean + torch.exp(0.5 * logvar) * noise


def kl(moments: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in nats, summed over each latent, (B,) (Kingma & Welling 2014, app. B)."""
    mean, logvar = split_moments(moments)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def rename_old_attention(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the attention layers their names of today; old files say query, key, value and proj_attn."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(names)})\.")
    return {old.sub(lambda hit: f"{hit[1]}.{names[hit[2]]}.", key): value for key, value in state_dict.items()}
