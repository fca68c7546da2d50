"""Draw a few pictures of a letter that no model has seen, each with a caption, to fine-tune on.

A zork is a fork with three prongs. Every one is written a little differently: slant, width, proportions, thickness.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

_FINER = 8  # times as large as it ends up, so that its edges are smooth
_INK = 20 / 32  # of the picture's height, as MNIST's digits have it


def draw_zork(size: int, seed: int) -> Image.Image:
    """A zork in white on black, ``size`` pixels wide and high."""
    chance = random.Random(seed)
    side = size * _FINER
    picture = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(picture)
    slant, tilt = chance.uniform(-0.25, 0.3), chance.uniform(-0.12, 0.12)
    wide, rim, cup = chance.uniform(0.75, 1.0), chance.uniform(0.3, 0.45), chance.uniform(0.12, 0.22)
    thick = side * _INK * chance.uniform(0.09, 0.15)

    def place(x: float, y: float) -> tuple[float, float]:
        """From -0.5 .. 0.5 across and down to pixels, slanted and turned."""
        x = x * wide - slant * y
        x, y = x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)
        return side * (0.5 + _INK * x), side * (0.5 + _INK * y)

    bow = [place(0.45 * math.cos(a), -0.5 + rim + cup * math.sin(a)) for a in (math.pi * k / 24 for k in range(25))]
    left, right = place(-0.45, chance.uniform(-0.5, -0.42)), place(0.45, chance.uniform(-0.5, -0.42))
    stem = [place(chance.uniform(-0.03, 0.03), -0.5), place(0, 0), place(chance.uniform(-0.03, 0.03), 0.5)]
    for line in ([right, *bow, left], stem):
        pen.line(line, fill=255, width=round(thick), joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return picture.resize((size, size), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write zork_00.png, zork_00.txt, ...")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--size", type=int, default=32, help="in pixels")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for k in range(given.count):
        draw_zork(given.size, k).save(given.folder / f"zork_{k:02}.png")
        (given.folder / f"zork_{k:02}.txt").write_text("a handwritten zork\n")


if __name__ == "__main__":
    main()
