"""The named colours: few enough, and far enough from each other, that each can be told by looking at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Colour:
    """A colour with its names.

    Attributes:
        name: in English.
        korean: in Korean, as a noun.
        rgb: sRGB, 0 to 255.
        paint: whether things that have a colour of their own are painted in it; greys and pale ones would look faded.
    """

    name: str
    korean: str
    rgb: Rgb
    paint: bool


COLOURS: dict[str, Colour] = {
    colour.name: colour
    for colour in (
        Colour("white", "흰색", (255, 255, 255), False),
        Colour("black", "검은색", (20, 20, 22), False),
        Colour("grey", "회색", (140, 143, 148), False),
        Colour("red", "빨간색", (220, 38, 38), True),
        Colour("orange", "주황색", (249, 130, 22), True),
        Colour("yellow", "노란색", (252, 211, 40), True),
        Colour("lime", "연두색", (160, 220, 50), True),
        Colour("green", "초록색", (30, 145, 60), True),
        Colour("turquoise", "청록색", (25, 180, 170), True),
        Colour("sky blue", "하늘색", (130, 205, 250), True),
        Colour("blue", "파란색", (40, 95, 225), True),
        Colour("navy", "남색", (24, 35, 95), False),
        Colour("purple", "보라색", (135, 60, 185), True),
        Colour("pink", "분홍색", (250, 140, 190), True),
        Colour("brown", "갈색", (120, 70, 35), True),
        Colour("beige", "베이지색", (240, 222, 188), False),
    )
}


def distance(first: Rgb, second: Rgb) -> float:
    """How far two colours look from each other: the "redmean" approximation (Riemersma), 0 to about 765."""
    red = (first[0] + second[0]) / 2
    dr, dg, db = (a - b for a, b in zip(first, second, strict=True))
    return ((2 + red / 256) * dr * dr + 4 * dg * dg + (2 + (255 - red) / 256) * db * db) ** 0.5


def nearest(rgb: Rgb, among: Iterable[str] = COLOURS) -> str:
    """The name of the nearest of the named colours."""
    return min(among, key=lambda name: distance(rgb, COLOURS[name].rgb))
