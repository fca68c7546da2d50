"""ControlNet (Zhang et al. 2023, https://arxiv.org/abs/2302.05543): a trained copy of a U-Net's way down.

It reads x_t and a picture of what to follow (edges, depth, a pose), and what comes out of each of its steps,
through a 1x1 convolution that began as zero, is added to the U-Net's skips and middle. Submodules are named as
in diffusers' ``ControlNetModel``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.unet import Descent
from ldm.models.unet_config import UNetConfig

# What ControlNetModel can be told and this one cannot: the one value that means "as here".
_FIXED: dict[str, Any] = {"global_pool_conditions": False, "controlnet_conditioning_channel_order": "rgb"}
# Keys of the U-Net's config.json that a ControlNet's lacks, but for its own defaults.
_NO_WAY_UP = ("out_channels", "up_block_types", "sample_size", "time_cond_proj_dim", "center_input_sample")


class ControlNetConfig(UNetConfig):
    """The shape of a ControlNet: that of its U-Net, and of what reads the hint.

    Attributes:
        conditioning_channels: channels of the hint.
        conditioning_embedding_out_channels: widths of the convolutions that read it; all but the last halve it, so
            four bring a picture to the size of its latents.
    """

    conditioning_channels: PositiveInt = 3
    conditioning_embedding_out_channels: tuple[PositiveInt, ...] = Field((16, 32, 96, 256), min_length=1)

    @property
    def factor(self) -> int:
        """By how much the hint is larger than x_t along each side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> ControlNetConfig:
        """Translate the ``config.json`` of a ``ControlNetModel``.

        Raises:
            UserError: a key has a value that this ControlNet cannot honour, or is unknown.
        """
        rest = dict(config)
        for key, supported in _FIXED.items():
            if rest.pop(key, supported) != supported:
                raise UserError(f"the ControlNet's config.json has {key} = {config[key]!r}; supported: {supported!r}")
        own = {key: rest.pop(key) for key in cls.model_fields if key.startswith("conditioning_") and key in rest}
        down = rest.get("down_block_types", _DOWN_DEFAULT)
        up = [name.replace("Down", "Up") for name in reversed(down)]
        shape = UNetConfig.from_diffusers({"down_block_types": _DOWN_DEFAULT, **rest, "up_block_types": up})
        return cls(**shape.model_dump(), **own)

    def to_diffusers(self) -> dict[str, Any]:
        """Return the ``config.json`` of a ``ControlNetModel`` of this shape."""
        shape = {key: value for key, value in super().to_diffusers().items() if key not in _NO_WAY_UP}
        return {
            **shape,
            "_class_name": "ControlNetModel",
            "conditioning_channels": self.conditioning_channels,
            "conditioning_embedding_out_channels": list(self.conditioning_embedding_out_channels),
        }


_DOWN_DEFAULT = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")


class HintEmbedding(nn.Module):
    """Convolutions that bring the hint to the size and width of the U-Net's first level."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = nn.Conv2d(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        """Map (B, C, factor H, factor W) to (B, C0, H, W)."""
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(Descent):
    """What to add to a U-Net's skips and middle so that its picture follows a hint."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.controlnet_cond_embedding = HintEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, 1) for c in self.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(self.skip_channels[-1], self.skip_channels[-1], 1)

    def read(self, hint: Tensor) -> Tensor:
        """What the hint comes to, the same at every step: (B, conditioning_channels, factor H, factor W) in 0..1.

        Returns:
            (B, C0, H, W).
        """
        return self.controlnet_cond_embedding(hint)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        read: Tensor,
        context: Tensor | None = None,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> list[Tensor]:
        """Apply the network.

        Args:
            x: (B, in_channels, H, W).
            t: timesteps (B,).
            read: the hint, read: (B, C0, H, W).
            context, pooled, sizes: as the U-Net's.

        Returns:
            What to add: one tensor for each skip, and the last for the middle.
        """
        self.check_inputs(context, pooled, sizes, None)
        embedding = self.embed(t, pooled, sizes)
        x = self.conv_in(x) + read  # (B, C0, H, W)
        x, skips = self.descend(x, embedding, context)
        convolved = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return [*convolved, self.controlnet_mid_block(x)]
