"""The geometry of image-to-image: fitting a picture, masks, room for outpainting, and the region around a mask.

Pictures are PIL images of mode L or RGB. A mask is a PIL image of mode L, as large as its picture: 255 where to draw
anew, 0 where to keep, and between them a share of either.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from ldm.errors import UserError, choose
from ldm.open_picture import MAX_PIXELS

FITS = ("resize", "crop", "fill")
FILLS = ("edge", "noise")
LANCZOS = Image.Resampling.LANCZOS


class Box(NamedTuple):
    """Pixels left .. right - 1 and top .. bottom - 1, as PIL counts them."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


def fit_image(image: Image.Image, width: int, height: int, mode: str = "resize") -> Image.Image:
    """Bring a picture to a size, by Lanczos' filter.

    Args:
        image: of mode L or RGB.
        width, height: in pixels, each 1 or more.
        mode: ``resize`` stretches it; ``crop`` keeps its proportions and cuts off what stands over, evenly; ``fill``
            keeps them and draws the edge out over what stays empty.

    Raises:
        UserError: the mode of the image or of fitting is unknown, or a side is less than 1.
    """
    choose(mode, FITS, "way to fit a picture")
    _check_mode(image)
    if width < 1 or height < 1:
        raise UserError(f"a picture cannot be brought to {width}x{height}: each side must be 1 or more")
    if image.size == (width, height):
        return image.copy()
    if mode == "resize":
        return image.resize((width, height), LANCZOS)
    scale = (max if mode == "crop" else min)(width / image.width, height / image.height)
    scaled = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), LANCZOS)
    left, top = (width - scaled.width) // 2, (height - scaled.height) // 2
    if mode == "crop":
        return scaled.crop((-left, -top, width - left, height - top))
    return _with_edges(scaled, left, top, width - scaled.width - left, height - scaled.height - top)


def prepare_mask(
    mask: Image.Image,
    width: int,
    height: int,
    mode: str = "resize",
    *,
    invert: bool = False,
    threshold: float | None = None,
    blur: float = 0.0,
) -> Image.Image:
    """Bring a mask to the size of its picture, in this order: fit, invert, threshold, blur.

    Args:
        mask: white where to draw; colours count by their brightness.
        width, height: of the picture.
        mode: how the picture was fitted, one of ``FITS``.
        invert: draw where it is black.
        threshold: 0..1; what is brighter becomes white, all else black. None keeps it soft.
        blur: standard deviation of a Gaussian in pixels, for a soft border.

    Raises:
        UserError: an option is out of range.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"mask threshold must be between 0 and 1, got {threshold}")
    if not 0 <= blur < float("inf"):
        raise UserError(f"mask blur must be 0 or more pixels, got {blur}")
    fitted = fit_image(mask.convert("L"), width, height, mode)
    if invert:
        fitted = ImageChops.invert(fitted)
    if threshold is not None:
        fitted = fitted.point([255 if value > 255 * threshold else 0 for value in range(256)])
    return fitted.filter(ImageFilter.GaussianBlur(blur)) if blur else fitted


def latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """A mask for latents, (1, 1, height / factor, width / factor) in 0..1: the mean over each position's pixels.

    Raises:
        UserError: the sides of the mask are no multiples of ``factor``.
    """
    if mask.width % factor or mask.height % factor:
        raise UserError(f"a mask of {mask.width}x{mask.height} cannot be brought to latents: sides must be x {factor}")
    return F.avg_pool2d(torch.from_numpy(_array(mask) / 255).float()[None, None], factor)


def pad_for_outpainting(
    image: Image.Image, left: int, top: int, right: int, bottom: int, fill: str = "edge", seed: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Make room around a picture, and the mask that asks to draw there.

    Args:
        image: of mode L or RGB.
        left, top, right, bottom: pixels to add on each side, 0 or more.
        fill: ``edge`` draws the edge out, ``noise`` is Gaussian noise of the picture's mean and standard deviation.
        seed: of the noise.

    Returns:
        The larger picture, and its mask: 255 in the room, 0 on the picture.

    Raises:
        UserError: nothing or too much is added, a number is negative, or a mode is unknown.
    """
    choose(fill, FILLS, "filling for outpainting")
    _check_mode(image)
    sides = (left, top, right, bottom)
    if min(sides) < 0 or not any(sides):
        raise UserError(f"outpainting must add 0 or more pixels on each side and some on one, got {sides}")
    width, height = image.width + left + right, image.height + top + bottom
    if width * height > MAX_PIXELS:
        raise UserError(f"outpainting would make {width}x{height}, and a picture has at most {MAX_PIXELS:,} pixels")
    padded = _with_edges(image, *sides)
    if fill == "noise":
        pixels = _array(image).astype(np.float64)
        noise = np.random.default_rng(seed).standard_normal(_array(padded).shape)
        noise = pixels.mean((0, 1)) + pixels.std((0, 1)) * noise
        padded = Image.fromarray(_bytes(noise))
        padded.paste(image, (left, top))
    mask = Image.new("L", padded.size, 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return padded, mask


def masked_region(mask: Image.Image, padding: int, width: int, height: int) -> Box:
    """The part of a picture to draw at full resolution: what is masked, some of its surroundings, well proportioned.

    The box around all of the mask that is not 0, ``padding`` larger on each side, is widened on one axis to the
    proportions of ``width`` to ``height``, to within a pixel, and moved inside the picture. Where the picture is
    too small for that the box ends with it, and is stretched when drawn.

    Args:
        mask: of the whole picture.
        padding: pixels of surroundings, 0 or more.
        width, height: of what will be drawn there.

    Raises:
        UserError: the mask is empty, or a number is out of range.
    """
    found = mask.getbbox()
    if found is None:
        raise UserError("the mask is empty: there is nothing to draw")
    if padding < 0 or width < 1 or height < 1:
        raise UserError(f"padding must be 0 or more and sides 1 or more, got {padding} and {width}x{height}")
    left, right = max(found[0] - padding, 0), min(found[2] + padding, mask.width)
    top, bottom = max(found[1] - padding, 0), min(found[3] + padding, mask.height)
    wide = max(right - left, round((bottom - top) * width / height))
    high = max(bottom - top, round((right - left) * height / width))
    left, right = _widen(left, right, wide, mask.width)
    top, bottom = _widen(top, bottom, high, mask.height)
    return Box(left, top, right, bottom)


def _widen(low: int, high: int, size: int, room: int) -> tuple[int, int]:
    """Widen low .. high evenly to ``size``, or to ``room`` if that is less, within 0 .. room."""
    size = min(size, room)
    low = min(max(low - (size - (high - low)) // 2, 0), room - size)
    return low, low + size


def paste_back(original: Image.Image, drawn: Image.Image, box: Box, mask: Image.Image) -> Image.Image:
    """Lay what was drawn over its part of the picture; where the mask is 0, every pixel stays what it was.

    Args:
        original: the whole picture.
        drawn: of the same mode; brought to the size of ``box`` by Lanczos' filter.
        box: inside the picture.
        mask: of the whole picture; its greys mix the two.

    Raises:
        UserError: sizes or modes do not fit together.
    """
    _check_mode(original)
    if mask.size != original.size or drawn.mode != original.mode:
        raise UserError(
            f"a mask of {mask.size} and a drawing of mode {drawn.mode} do not fit a picture of {original.size} and "
            f"mode {original.mode}"
        )
    if not (0 <= box.left < box.right <= original.width and 0 <= box.top < box.bottom <= original.height):
        raise UserError(f"{box} does not lie inside the picture of {original.size}")
    share = _array(mask.crop(box)).astype(np.float64) / 255
    share = share[..., None] if original.mode == "RGB" else share
    old, new = _array(original.crop(box)), _array(drawn if drawn.size == box.size else drawn.resize(box.size, LANCZOS))
    result = original.copy()
    result.paste(Image.fromarray(_bytes(old * (1 - share) + new * share)), box)
    return result


def _with_edges(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Draw the outermost pixels out by so many on each side."""
    widths = [(top, bottom), (left, right)] + [(0, 0)] * (len(image.getbands()) > 1)
    return Image.fromarray(np.pad(_array(image), widths, mode="edge"))


def _check_mode(image: Image.Image) -> None:
    if image.mode not in ("L", "RGB"):
        raise UserError(f"a picture of mode {image.mode} must be converted to L or RGB first")


def _array(image: Image.Image) -> np.ndarray:
    return np.array(image)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
