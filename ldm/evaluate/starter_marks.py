"""Marks of a model of composed pictures: is what was asked for there, in its style, colour and place?

| kind | right is |
|---|---|
| single, korean | the thing that was asked for: first, or among the first five, of the judge's |
| style | thing and style, both first |
| ground | the named colour nearest to the middle colour of the picture's rim |
| ink | the named colour nearest to the middle colour of what is not ground |
| relation | both things first, each in its half of the picture |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluate.starter_prompts import Asked
from ldm.images import to_bytes
from ldm.models.picture_judge import PictureJudge
from ldm.starter.colours import Rgb, nearest
from ldm.starter.held_out import LEFT_OF

_RIM = 1 / 32  # of the side
_AWAY = 60  # of 255, in the plane that differs most: from here on a pixel is no ground


@dataclass(frozen=True)
class Mark:
    """What was counted of one kind of prompt.

    Attributes:
        pictures: how many were drawn.
        right: share of them in which all that was asked for is right.
        shares: shares of pictures in which parts of it are, by name.
        passed: for each picture, whether all is right.
    """

    pictures: int
    right: float
    shares: dict[str, float]
    passed: tuple[bool, ...]


def mark(kind: str, asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Mark:
    """Count what is right.

    Args:
        kind: one of ``ldm.evaluate.starter_prompts.KINDS``.
        asked: one for each picture.
        images: (N, 3, H, H) in -1..1.
        judge: of things and styles.
    """
    right, shares = _RULES[kind](asked, images, judge)
    told = {name: float(found.float().mean()) for name, found in shares.items()}
    return Mark(len(asked), float(right.float().mean()), told, tuple(right.tolist()))


Found = tuple[Tensor, dict[str, Tensor]]


def _things(asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Found:
    things, _ = judge.look(images)
    first, five = _among(things, [a.things[0] for a in asked])
    return first, {"top 1": first, "top 5": five}


def _styles(asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Found:
    things, styles = judge.look(images)
    thing, _ = _among(things, [a.things[0] for a in asked])
    style = styles.argmax(1) == torch.tensor([a.style for a in asked])
    return thing & style, {"thing": thing, "style": style}


def _grounds(asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Found:
    things, _ = judge.look(images)
    thing, _ = _among(things, [a.things[0] for a in asked])
    colour = _equal([nearest(ground_of(image)) for image in to_bytes(images)], asked)
    return colour, {"colour": colour, "thing": thing}


def _inks(asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Found:
    inks = [ink_of(image) for image in to_bytes(images)]
    colour = _equal([None if ink is None else nearest(ink) for ink in inks], asked)
    return colour, {"colour": colour}


def _relations(asked: Sequence[Asked], images: Tensor, judge: PictureJudge) -> Found:
    halves = [parts_of(image, a.relation == LEFT_OF) for image, a in zip(images, asked, strict=True)]
    seen = [judge.look(torch.stack([half[k] for half in halves]))[0] for k in (0, 1)]
    first, second = (_among(seen[k], [a.things[k] for a in asked])[0] for k in (0, 1))
    swapped = [_among(seen[1 - k], [a.things[k] for a in asked])[0] for k in (0, 1)]
    return first & second, {"first": first, "second": second, "on the wrong sides": swapped[0] & swapped[1]}


_RULES: dict[str, Callable[[Sequence[Asked], Tensor, PictureJudge], Found]] = {
    "single": _things,
    "korean": _things,
    "style": _styles,
    "ground": _grounds,
    "ink": _inks,
    "relation": _relations,
}


def _among(logits: Tensor, wanted: list[int]) -> tuple[Tensor, Tensor]:
    """Whether a class is the first, and among the first five."""
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == torch.tensor(wanted)[:, None]
    return found[:, 0], found.any(1)


def _equal(names: Sequence[str | None], asked: Sequence[Asked]) -> Tensor:
    return torch.tensor([name == a.colour for name, a in zip(names, asked, strict=True)])


def ground_of(image: Tensor) -> Rgb:
    """The middle colour of the rim of a picture, uint8 (3, H, W): of each plane, the median."""
    height, width = image.shape[1:]
    rim = max(1, round(_RIM * min(height, width)))
    inner = torch.zeros(height, width, dtype=torch.bool)
    inner[rim:-rim, rim:-rim] = True
    return _median(image[:, ~inner])


def ink_of(image: Tensor) -> Rgb | None:
    """The middle colour of what is not ground in a picture, uint8 (3, H, W); None where all of it is ground."""
    ink = image[:, is_thing(image, ground_of(image))]
    return _median(ink) if ink.shape[1] else None


def is_thing(image: Tensor, ground: Rgb) -> Tensor:
    """Where a picture, uint8 (3, H, W), differs from its ground: bool (H, W)."""
    return (image.int() - torch.tensor(ground)[:, None, None]).abs().amax(0) > _AWAY


def _median(pixels: Tensor) -> Rgb:
    red, green, blue = pixels.median(dim=1).values.tolist()
    return red, green, blue


def parts_of(image: Tensor, beside: bool) -> tuple[Tensor, Tensor]:
    """The squares of half the side, (3, H / 2, H / 2), in which two things are: left and right, or top and bottom."""
    side = image.shape[-1] // 2
    middle = slice(side // 2, side // 2 + side)
    if beside:
        return image[:, middle, :side], image[:, middle, side : 2 * side]
    return image[:, :side, middle], image[:, side : 2 * side, middle]
