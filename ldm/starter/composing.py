"""Scenes to pixels: rendered pictures cut out, brought to size, painted, and laid on a colour.

The things of a scene never touch, so each lies on nothing but the background, and what the background contributes to a
pixel depends on the pixel's alpha alone: a table of 256 colours takes the place of arithmetic. Blending is done on sRGB
values, as browsers do it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.starter.colours import COLOURS, Rgb
from ldm.starter.looks import recolouring
from ldm.starter.prepared import Prepared
from ldm.starter.scene import Item, Scene

_ALPHA = np.arange(256)


def draw(prepared: Prepared, scene: Scene, side: int) -> Tensor:
    """Draw a scene.

    Args:
        prepared: where its pictures are.
        scene: what to draw.
        side: height and width in pixels.

    Returns:
        uint8 (3, side, side).
    """
    background = COLOURS[scene.background].rgb
    canvas = np.empty((3, side, side), np.uint8)
    for plane, level in zip(canvas, background, strict=True):
        plane.fill(level)
    for item in scene.items:
        picture = prepared.pictures[item.picture]
        left, top, right, bottom = picture.box
        cut = prepared.pixels(picture)[top:bottom, left:right]
        planes = _resized(cut, item.size * side)
        height, width = planes.shape[1:]
        x, y = _first(item.centre[0], width, side), _first(item.centre[1], height, side)
        under = canvas[:, y : y + height, x : x + width]
        if len(planes) == 1:
            assert item.colour is not None
            _lay(under, None, planes[0], COLOURS[item.colour].rgb, background)
        else:
            _lay(under, _colours(planes, item, picture.hue), planes[3], (0, 0, 0), background)
    return torch.from_numpy(canvas)


def _lay(under: np.ndarray, colours: np.ndarray | None, alpha: np.ndarray, ink: Rgb, background: Rgb) -> None:
    """Lay colours that are multiplied by alpha, or an ink, on a background of one colour, plane by plane."""
    for k, plane in enumerate(under):
        blend = ((_ALPHA * ink[k] + (255 - _ALPHA) * background[k] + 127) // 255).astype(np.uint8)
        behind = blend.take(alpha)
        if colours is None:
            plane[:] = behind
        else:
            np.add(behind, colours[k], out=plane)


def _first(centre: float, length: int, side: int) -> int:
    """The first pixel of something of a length that is to be around a centre, within the picture."""
    return min(max(0, round(centre * side - length / 2)), side - length)


def _resized(pixels: np.ndarray, longest: float) -> np.ndarray:
    """(h, w, 4) or (h, w) uint8 as (4, H, W) or (1, H, W), its longer side as given."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    # the copy is one that torch may own; it has the channels last, for which torch's resampling is fastest
    whole = torch.from_numpy(np.array(pixels)).reshape(height, width, -1).permute(2, 0, 1)[None]
    return np.ascontiguousarray(F.interpolate(whole, size, mode="bicubic", antialias=True)[0].numpy())


def _colours(planes: np.ndarray, item: Item, hue: Rgb | None) -> np.ndarray:
    """(3, h, w) uint8, multiplied by alpha and nowhere above it, in the colour of an item."""
    colours, alpha = planes[:3], planes[3]
    if item.painted:
        assert item.colour is not None
        assert hue is not None
        turned = recolouring(hue, COLOURS[item.colour].rgb) @ colours.reshape(3, -1).astype(np.float32)
        colours = np.clip(turned + 0.5, 0, 255, out=turned).astype(np.uint8).reshape(colours.shape)
    return np.minimum(colours, alpha)
