"""Masks that an inpainting network learns from, and what it reads of them.

Stable Diffusion's inpainting models were trained on random masks of which a quarter covered the whole picture; LaMa
(Suvorov et al. 2021, https://arxiv.org/abs/2109.07161, section 2.3), whose masks they were, mixes broad strokes and
rectangles. All is computed on the device, from numbers that belong to the sample.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.codec import Codec
from ldm.training.chance import MASKS, uniforms
from ldm.training.tune_settings import MaskConfig

_RECTANGLES, _POINTS = 4, 6  # at most
_NUMBERS = 2 + 4 * _RECTANGLES + 2 * _POINTS + 1 + 4


def draw_masks(index: Tensor, seed: int, size: tuple[int, int], config: MaskConfig) -> Tensor:
    """A mask for each sample: (B, 1, H, W), 1 where to draw and 0 where to keep.

    Args:
        index: of samples, int64 (B,).
        seed: of the run.
        size: (H, W) in pixels.
        config: shares of the kinds.
    """
    numbers = uniforms(index, seed, MASKS, _NUMBERS)
    kind, many, boxes, points, width, border = numbers.split([1, 1, 4 * _RECTANGLES, 2 * _POINTS, 1, 4], dim=1)
    y, x = _grid(size, index.device)
    kinds = torch.stack(
        [
            _rectangles(boxes, many, y, x),
            _stroke(points, many, width, y, x),
            torch.ones(len(index), *size, dtype=torch.bool, device=index.device),
            ~_somewhere(0.5 + 0.4 * border[:, :2], border[:, 2:], y, x),
        ]
    )  # (4, B, H, W)
    # compared with plain numbers, as a tensor of them would be copied to the device, and waited for
    edges = [edge / sum(config.shares) for edge in accumulate(config.shares)][:-1]
    chosen = sum((kind[:, 0] >= edge).long() for edge in edges)
    return kinds[chosen, torch.arange(len(index), device=index.device)][:, None].float()


def beside(codec: Codec, images: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """What an inpainting network reads beside x_t: the mask, and the latents of what it keeps; as when it draws.

    Args:
        codec: of the model.
        images: (B, C, H, W) in -1..1.
        masks: (B, 1, H, W), 1 where to draw.
        size: (h, w) of the latents.

    Returns:
        (B, 1 + c, h, w).
    """
    kept = codec.mean(codec.encode(images * (masks < 0.5), wait=False))
    return torch.cat([F.interpolate(masks, size=size).to(kept), kept], dim=1)


def _grid(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The centres of pixels, in 0..1: down (1, H, 1) and across (1, 1, W)."""
    down, across = ((torch.arange(side, device=device) + 0.5) / side for side in size)
    return down[None, :, None], across[None, None, :]


def _somewhere(sides: Tensor, where: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The pixels of a rectangle with these sides (B, 2), in 0..1, at a place of the room that is left: (B, H, W)."""
    corner = where * (1 - sides)
    top, left, bottom, right = (edge[:, None, None] for edge in (*corner.unbind(1), *(corner + sides).unbind(1)))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def _rectangles(numbers: Tensor, many: Tensor, y: Tensor, x: Tensor) -> Tensor:
    found = torch.zeros(len(numbers), y.shape[1], x.shape[2], dtype=torch.bool, device=numbers.device)
    for k, part in enumerate(numbers.split(4, dim=1)):
        drawn = (many * _RECTANGLES >= k)[..., None]  # the first one always
        found = found | (_somewhere(0.1 + 0.4 * part[:, :2], part[:, 2:], y, x) & drawn)
    return found


def _stroke(points: Tensor, many: Tensor, width: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """A line of 2 to 6 points, a twentieth to a fifth of the picture wide."""
    found = torch.zeros(len(points), y.shape[1], x.shape[2], dtype=torch.bool, device=points.device)
    corners = points.unflatten(1, (_POINTS, 2))
    radius = (0.025 + 0.075 * width)[..., None]
    for k in range(_POINTS - 1):
        drawn = (many * (_POINTS - 1) >= k)[..., None]
        near = _distance(corners[:, k], corners[:, k + 1], y, x) < radius
        found = found | (near & drawn)
    return found


def _distance(start: Tensor, end: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """From every pixel to the segment between two points (B, 2): (B, H, W)."""
    (y0, x0), (dy, dx) = ([part[:, None, None] for part in pair.unbind(1)] for pair in (start, end - start))
    along = ((y - y0) * dy + (x - x0) * dx) / (dy * dy + dx * dx).clamp(min=1e-12)
    along = along.clamp(0, 1)
    return torch.hypot(y - y0 - along * dy, x - x0 - along * dx)
