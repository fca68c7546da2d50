"""How near what a model draws comes to the pictures that it learned from.

Composed scenes are new by their making: what could be copied is a thing. So a thing is cut out of a drawn picture, by
what differs from the ground, laid on white as large as fits in a small square, and compared with every picture of the
prepared folder in the same form. The distance of two is the root of the mean square difference of their values in
-1..1. What is near, the training pictures say themselves: how far each is from the nearest other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.evaluate.starter_marks import ground_of, is_thing
from ldm.images import to_bytes

_AT_ONCE = 256


class Nearest(NamedTuple):
    """For each of some squares, the nearest of others.

    Attributes:
        distances: (N,).
        rows: (N,) of the others.
    """

    distances: Tensor
    rows: Tensor


def things_of(images: Tensor, side: int) -> Tensor:
    """Cut out what is not ground.

    Args:
        images: (N, 3, H, H) in -1..1.
        side: of the squares.

    Returns:
        (N, 3, side, side) in -1..1: on white, as large as fits; white alone where all is ground.
    """
    return torch.stack([_thing(image, side) for image in to_bytes(images)])


def _thing(image: Tensor, side: int) -> Tensor:
    ground = ground_of(image)
    seen = is_thing(image, ground)
    square = torch.ones(3, side, side)
    if not seen.any():
        return square
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    part = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    pixels = torch.where(seen[part], image[:, part[0], part[1]].float() / 127.5 - 1, 1.0)
    height, width = pixels.shape[1:]
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square[:, top : top + size[0], left : left + size[1]] = small
    return square


def on_white(cuts: Tensor) -> Tensor:
    """Training pictures as ``cut_outs`` gives them, uint8 (N, 4, H, H), on white: (N, 3, H, H) in -1..1."""
    return (cuts[:, :3].float() + (255 - cuts[:, 3:].float())) / 127.5 - 1


def nearest(squares: Tensor, others: Tensor, apart: bool = False) -> Nearest:
    """The nearest of ``others`` (M, 3, H, H) to each of ``squares`` (N, 3, H, H).

    Args:
        squares, others: in the same form.
        apart: they are the same, and none is its own neighbour.
    """
    found = [*_nearest(squares.flatten(1), others.flatten(1), apart)]
    return Nearest(torch.cat([part.values for part in found]), torch.cat([part.indices for part in found]))


def _nearest(rows: Tensor, others: Tensor, apart: bool) -> Iterator[torch.return_types.min]:
    scale = rows.shape[1] ** -0.5
    for start in range(0, len(rows), _AT_ONCE):
        distances = torch.cdist(rows[start : start + _AT_ONCE], others) * scale
        if apart:
            own = torch.arange(len(distances))
            distances[own, own + start] = torch.inf
        yield distances.min(1)
