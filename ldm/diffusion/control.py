"""Denoisers that follow a picture: ControlNets beside the network (Zhang et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.grid import Grid
from ldm.diffusion.process import Point
from ldm.errors import UserError
from ldm.flops import metered
from ldm.models.controlnet import ControlNet


@dataclass(frozen=True)
class Control:
    """A ControlNet and what it is to follow.

    Attributes:
        net: on the device and in the dtype of the U-Net.
        hint: (B or 1, conditioning_channels, H, W) in 0..1, of the size of the pictures.
        scale: by how much its contribution is multiplied.
        start, end: the part of the steps, from the first (0) to the last (1), in which it is heard.
    """

    net: ControlNet
    hint: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise UserError(f"control start and end must be 0 <= start < end <= 1, got {self.start} and {self.end}")
        channels, shape = self.net.config.conditioning_channels, tuple(self.hint.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise UserError(f"the ControlNet reads hints (N, {channels}, H, W), got {shape}")

    def times(self, grid: Grid) -> tuple[float, float]:
        """The least and the greatest time of ``grid`` at which it is heard; the one above the other if at none."""
        steps = len(grid) - 1
        heard = [p.t for i, p in enumerate(grid[:-1]) if self.start <= i / steps and (i + 1) / steps <= self.end]
        return min(heard, default=math.inf), max(heard, default=-math.inf)


@dataclass(frozen=True)
class ControlledDenoiser(Denoiser):
    """A denoiser whose network is a U-Net with ControlNets beside it.

    Attributes:
        controls: one or more; what they add is summed.
        read: of each, its hint, read once: (B or 1, C0, h, w).
        times: of each, the least and the greatest time at which it is heard.
    """

    controls: tuple[Control, ...] = ()
    read: tuple[Tensor, ...] = ()
    times: tuple[tuple[float, float], ...] = ()

    def predict(self, x_t: Tensor, at: Point, context: Context | None = None) -> Tensor:
        """The network's raw output at one noise level for the whole batch, in float32."""
        times = torch.full((len(x_t),), at.t, device=x_t.device)
        context = context or Context()
        added = self._added(x_t.to(self.dtype), times, at, context)
        return self._call(x_t.to(self.dtype), times, context, **({"control": added} if added else {}))

    def _added(self, x_t: Tensor, times: Tensor, at: Point, context: Context) -> list[Tensor]:
        inputs = context._replace(guidance=None).inputs()
        total: list[Tensor] = []
        for control, read, (least, greatest) in zip(self.controls, self.read, self.times, strict=True):
            if not least <= at.t <= greatest:
                continue
            # once for each picture, and twice where the unconditional half is drawn beside
            hint = read.repeat(len(x_t) // len(read), 1, 1, 1)
            with metered(control.net, x=x_t, t=times, read=hint, **inputs):
                found = control.net(x_t, times, hint, **inputs)
            found = [control.scale * part for part in found]
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        return total


def controlled(denoiser: Denoiser, controls: tuple[Control, ...], grid: Grid) -> Denoiser:
    """``denoiser`` with ControlNets beside its network, on the way along ``grid``; their hints are read here, once."""
    if not controls:
        return denoiser
    read = tuple(_read(control, denoiser.dtype) for control in controls)
    times = tuple(c.times(grid) for c in controls)
    return ControlledDenoiser(
        denoiser.net, denoiser.process, denoiser.prediction, denoiser.clip, denoiser.dtype, controls, read, times
    )


def _read(control: Control, dtype: torch.dtype) -> Tensor:
    hint = control.hint.to(control.net.conv_in.weight.device, dtype)
    with metered(control.net, "read", hint=hint):
        return control.net.read(hint)
