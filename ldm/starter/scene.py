"""What a composed picture holds, before it is drawn or put in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from ldm.starter.settings import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
ARRANGEMENTS = ("alone", "row", "column", "above two")


@dataclass(frozen=True)
class Item:
    """One thing in a scene.

    Attributes:
        picture: its picture, as an index.
        centre: across and down, in parts of the side.
        size: of the longer side of what is seen of it, in parts of the side.
        colour: the name of the colour that it is painted in, or of that which it has; None where it has no one colour
            or it goes unsaid.
        painted: whether its own colour is replaced.
    """

    picture: int
    centre: tuple[float, float]
    size: float
    colour: str | None = None
    painted: bool = False


@dataclass(frozen=True)
class Scene:
    """A composed picture.

    Attributes:
        kind: one of ``KINDS``.
        items: from left to right, from top to bottom, or first the one above.
        background: the name of its colour.
        arrangement: one of ``ARRANGEMENTS``.
        place: of the ``PLACES`` of a thing that is alone; None where it is in the middle and that goes unsaid.
        scale: ``small`` or ``large``; None where the size goes unsaid.
    """

    kind: Kind
    items: tuple[Item, ...]
    background: str
    arrangement: str = "alone"
    place: str | None = None
    scale: str | None = None


# name: (across, down), in parts of the side, of the middle of a small thing
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.2, 0.2),
    "top": (0.5, 0.2),
    "top right": (0.8, 0.2),
    "left": (0.2, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.8, 0.5),
    "bottom left": (0.2, 0.8),
    "bottom": (0.5, 0.8),
    "bottom right": (0.8, 0.8),
}
