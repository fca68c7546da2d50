"""The smallest network that denoises digits: six convolutions, for teaching.

It is not told the timestep: it must judge from the image alone how much noise there is, which on clean line
drawings is easy enough. What it gains with time, attention and depth is what ``unet.py`` is about.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.schema import Settings

WIDTHS = (32, 64, 64)


class ToyUNetConfig(Settings):
    """The shape of a ``ToyUNet``.

    Attributes:
        in_channels: channels of the image, in and out.
    """

    in_channels: int = 1


class ToyUNet(nn.Module):
    """Three 5x5 convolutions down, three up, with added skips; 309,057 parameters for one channel.

    Attributes:
        config: its shape.
    """

    def __init__(self, config: ToyUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.in_channels, *WIDTHS)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5, padding=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 5, padding=2) for a, b in reversed(pairs))

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Map an image (B, C, H, W) to one of the same shape; H and W are at least 4.

        Args:
            x: the noisy image.
            t: accepted because every denoiser has it; not read.
            context: accepted because every denoiser has it; not read.
        """
        first = F.silu(self.down[0](x))  # (B, 32, H, W)
        second = F.silu(self.down[1](F.max_pool2d(first, 2)))  # (B, 64, H / 2, W / 2)
        h = F.silu(self.down[2](F.max_pool2d(second, 2)))  # (B, 64, H / 4, W / 4)
        h = F.silu(self.up[0](h))  # (B, 64, H / 4, W / 4)
        h = F.silu(self.up[1](second + F.interpolate(h, size=second.shape[-2:])))  # (B, 32, H / 2, W / 2)
        return self.up[2](first + F.interpolate(h, size=first.shape[-2:]))  # (B, C, H, W), unbounded
