"""Captions for pictures of digits, each true of its picture.

Every digit has captions that name it. Captions about its strokes and its slant are given only where they
are plainly true, so many pictures have neither. They are measured from the picture alone, against fixed
limits: a picture has the same captions in whatever set it comes.

*Stroke width.* A long stroke of width w and length l has the area w l and the perimeter 2 l, so w = 2 area
/ perimeter. With grey pixels the area is the sum of the ink and the perimeter is its total variation, the
sum of the gradient's length: dimmer ink scales both alike.

*Slant.* Shearing a picture by s, x' = x + s (height above the middle), adds s times the variance of the
height to the covariance of x and height. So s = covariance / variance is the slant, 0.36 for 20 degrees to
the right. It measures the whole shape: the bar of a 4 or a 7 makes an upright digit look as if it leaned
left. Hence each digit has its own limits, and the digits where a left slant and a low bar measure alike are
never called slanted left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_PLAIN_TEMPLATES = (
    "{name}",
    "{digit}",
    "number {name}",
    "the digit {digit}",
    "the digit {name}",
    "the number {digit}",
    "a handwritten {name}",
    "a handwritten {digit}",
    "a picture of the digit {name}",
    "a picture of the digit {digit}",
    "a drawing of the number {name}",
    "handwritten digit {digit}",
)
_DESCRIBED_TEMPLATES = ("{name}, {attributes}", "a handwritten {name}, {attributes}")

# "" claims nothing.
_STROKES = ("", "thin strokes", "thick strokes")
_SLANTS = ("", "slanted left", "upright", "slanted right")

# Pixels of 28 x 28; about a fifth of the training digits lie beyond each.
_THIN_BELOW, _THICK_ABOVE = 2.1, 3.0

# Per digit: slanted left below the first, upright between the second and third, slanted right above the last.
# Read off sheets of training digits sorted by their slant.
_NEVER = -float("inf")
_SLANT_LIMITS = torch.tensor(
    [
        [-0.25, -0.07, 0.10, 0.35],
        [-0.20, -0.08, 0.10, 0.30],
        [_NEVER, -0.30, 0.00, 0.40],
        [_NEVER, -0.25, 0.00, 0.35],
        [_NEVER, -0.55, -0.25, 0.25],
        [_NEVER, -0.15, 0.10, 0.50],
        [_NEVER, -0.40, -0.10, 0.30],
        [_NEVER, -0.65, -0.40, 0.20],
        [-0.35, -0.10, 0.12, 0.40],
        [_NEVER, -0.60, -0.30, 0.25],
    ]
)


def digit_captions(images: Tensor, labels: Tensor) -> list[tuple[str, ...]]:
    """All captions that are true of each picture.

    Args:
        images: (N, 28, 28) uint8, white ink on black.
        labels: (N,) integers 0..9.
    """
    claims = torch.stack([labels, _stroke_claim(images), _slant_claim(images, labels)], dim=1)
    table = _captions_of_kinds()
    return [table[digit, stroke, slant] for digit, stroke, slant in claims.tolist()]


def plain_prompts(digit: int) -> list[str]:
    """The captions that name a digit and say no more."""
    return _fill(_PLAIN_TEMPLATES, digit)


def corpus() -> list[str]:
    """Every caption that can occur, once."""
    return list(dict.fromkeys(itertools.chain.from_iterable(_captions_of_kinds().values())))


def stroke_width(images: Tensor) -> Tensor:
    """Mean width of the strokes (N,) in pixels of pictures (N, H, W) uint8; NaN where there is no ink."""
    return torch.cat([_stroke_width(part) for part in images.split(_PART)])


def slant(images: Tensor) -> Tensor:
    """Run over rise (N,) of pictures (N, H, W) uint8, positive to the right; NaN where there is no ink."""
    return torch.cat([_slant(part) for part in images.split(_PART)])


_PART = 1000  # pictures at a time, which stay in the processor's cache


def _stroke_width(images: Tensor) -> Tensor:
    ink = F.pad(images.float(), (1, 1, 1, 1))
    falling = ink[:, 1:, 1:] - ink[:, :-1, :-1]
    rising = ink[:, 1:, :-1] - ink[:, :-1, 1:]
    # The two diagonals of a cell of 2 x 2 pixels, each sqrt(2) long, are an orthogonal pair of directions.
    perimeter = torch.hypot(falling, rising).sum((1, 2)) / 2**0.5
    return 2 * ink.sum((1, 2)) / perimeter


def _slant(images: Tensor) -> Tensor:
    rows, columns = images.shape[1:]
    height, x = torch.meshgrid(-torch.arange(rows) + rows / 2, torch.arange(columns) - columns / 2, indexing="ij")
    powers = torch.stack([torch.ones_like(x), x, height, x * height, height * height], dim=-1).flatten(0, 1)
    total, *moments = (images.flatten(1).float() @ powers).unbind(1)
    mean_x, mean_height, mean_product, mean_square = (moment / total for moment in moments)
    return (mean_product - mean_x * mean_height) / (mean_square - mean_height**2)


def _stroke_claim(images: Tensor) -> Tensor:
    """Index into ``_STROKES`` (N,). Comparing NaN is False, so a picture without ink gets no claim."""
    width = stroke_width(images)
    return (width < _THIN_BELOW) * 1 + (width > _THICK_ABOVE) * 2


def _slant_claim(images: Tensor, labels: Tensor) -> Tensor:
    """Index into ``_SLANTS`` (N,)."""
    value = slant(images)
    left, upright_from, upright_to, right = _SLANT_LIMITS[labels].unbind(1)
    return (value < left) * 1 + ((value > upright_from) & (value < upright_to)) * 2 + (value > right) * 3


def _captions_of_kinds() -> dict[tuple[int, int, int], tuple[str, ...]]:
    """The captions of every (digit, index into ``_STROKES``, index into ``_SLANTS``) that can occur."""
    kinds = itertools.product(range(10), range(len(_STROKES)), range(len(_SLANTS)))
    never_left = _SLANT_LIMITS[:, 0] == _NEVER
    return {
        kind: _captions_of(*kind) for kind in kinds if not (_SLANTS[kind[2]] == "slanted left" and never_left[kind[0]])
    }


def _captions_of(digit: int, stroke: int, slant: int) -> tuple[str, ...]:
    claims = [claim for claim in (_STROKES[stroke], _SLANTS[slant]) if claim]
    attributes = claims if len(claims) < 2 else [*claims, ", ".join(claims)]
    described = [caption for words in attributes for caption in _fill(_DESCRIBED_TEMPLATES, digit, words)]
    return (*plain_prompts(digit), *described)


def _fill(templates: Sequence[str], digit: int, attributes: str = "") -> list[str]:
    return [template.format(name=DIGIT_NAMES[digit], digit=digit, attributes=attributes) for template in templates]
