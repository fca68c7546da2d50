"""What a picture looks like, measured once: where it is, its colour, and whether it can be given another.

A picture whose colourful pixels are nearly all of one hue (a red car with grey wheels) can take another colour by a
linear map of RGB that keeps white, black and greys, and takes that colour to the new one: shades stay shades, and
highlights stay highlights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_SEEN = 16  # alpha below which a pixel is no part of a picture
_SMALL = 48  # side at which colours are looked at
_COLOURFUL = 0.35  # of max - min over RGB, as a part of 1
_MOST, _OWN = 0.9, 0.4  # of the colourful pixels, of all pixels: of the hue that a picture is said to have
_HUES, _WINDOW = 36, 3  # bins, and how many on either side count as the same hue


class Look(NamedTuple):
    """What a picture looks like.

    Attributes:
        box: left, top, right, bottom of what is seen of it, in pixels.
        mean: its mean red, green and blue, 0 to 255.
        hue: the colour that it has, if it has one: red, green and blue.
    """

    box: tuple[int, int, int, int]
    mean: tuple[int, int, int]
    hue: tuple[int, int, int] | None


def look_at(picture: np.ndarray) -> Look | None:
    """The look of (side, side, 4) uint8 with colours multiplied by alpha, or (side, side) alpha alone, taken as black.

    Returns:
        None where nothing is seen.
    """
    alpha = picture if picture.ndim == 2 else picture[..., 3]
    seen = alpha >= _SEEN
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return None
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    if picture.ndim == 2:
        return Look(box, (0, 0, 0), None)
    step = max(1, len(picture) // _SMALL)
    small = picture[step // 2 :: step, step // 2 :: step].reshape(-1, 4).astype(np.float32)
    small = small[small[:, 3] >= 128]
    if not len(small):
        return Look(box, (128, 128, 128), None)
    colours = (small[:, :3] / small[:, 3:]).clip(0, 1)
    return Look(box, _bytes(colours.mean(0)), _own_hue(colours))


def _own_hue(colours: np.ndarray) -> tuple[int, int, int] | None:
    """The colour of (n, 3) pixels in 0..1 of which nearly all colourful ones have one hue."""
    high, low = colours.max(1), colours.min(1)
    colourful = colours[high - low > _COLOURFUL]
    if len(colourful) < _OWN * len(colours):
        return None
    hues = _hues(colourful)
    bins = np.bincount((hues * _HUES).astype(int) % _HUES, minlength=_HUES)
    around = np.stack([np.roll(bins, shift) for shift in range(-_WINDOW, _WINDOW + 1)]).sum(0)
    best = int(around.argmax())
    if around[best] < _MOST * len(colourful):
        return None
    distance = np.abs((hues * _HUES - best - 0.5 + _HUES / 2) % _HUES - _HUES / 2)
    return _bytes(np.median(colourful[distance <= _WINDOW + 0.5], axis=0))


def _hues(colours: np.ndarray) -> np.ndarray:
    """(n,) hues in 0..1 of (n, 3) colours, none of which is grey."""
    red, green, blue = colours.T
    high, span = colours.max(1), colours.max(1) - colours.min(1)
    sixths = np.where(
        high == red, (green - blue) / span, np.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    )
    return (sixths / 6) % 1


def _bytes(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (colour * 255).round().astype(int).tolist()
    return red, green, blue


def recolouring(own: tuple[int, int, int], new: tuple[int, int, int]) -> np.ndarray:
    """The linear map of RGB that keeps greys and takes one colour to another.

    Args:
        own: a colour that is no grey.
        new: any colour.

    Returns:
        (3, 3) float32, to be multiplied with a column of red, green and blue.
    """
    grey = np.ones(3)
    first, second = np.array(own, np.float64), np.array(new, np.float64)
    across = np.cross(grey, first)
    turned = np.cross(grey, second)
    before = np.stack([grey, first, across], axis=1)
    after = np.stack([grey, second, turned], axis=1)
    return (after @ np.linalg.inv(before)).astype(np.float32)
