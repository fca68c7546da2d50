"""Pictures of many shapes to the few that training takes: aspect-ratio buckets, resizing and cropping.

Each bucket is a shape of about the same area whose sides are multiples of a step, as NovelAI's training code made
popular. A picture goes to the bucket whose ratio of sides is nearest to its own (on a log scale, so that 2:1 and 1:2
are as far from a square), is resized until it covers it, and cut. How it was cut goes along, as the numbers that SDXL
is told (Podell et al. 2023, section 2.2).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ldm.data.decode import to_tensor
from ldm.errors import UserError
from ldm.schema import Settings

_AT_ONCE = 2**16  # pictures whose distances to all shapes are held


class FrameConfig(Settings):
    """How pictures come to the shapes that training takes.

    Attributes:
        resolution: side in pixels of the square whose area the buckets have; with several, a picture goes to the
            largest that it fills.
        buckets: shapes of other ratios too; false: squares only.
        step: sides are multiples of this many pixels.
        max_ratio: of the longer to the shorter side of a bucket, at most.
        crop: where a picture is longer than its bucket, keep its ``center`` or a part at ``random``.
    """

    resolution: int | tuple[int, ...]
    buckets: bool = True
    step: int = Field(default=64, ge=1)
    max_ratio: float = Field(default=2.0, ge=1)
    crop: Literal["center", "random"] = "center"

    @model_validator(mode="after")
    def _check(self) -> FrameConfig:
        if not self.sides:
            raise UserError("resolution should name a side in pixels, or several")
        for side in self.sides:
            if side < 1 or side % self.step:
                near = max(self.step, round(side / self.step) * self.step)
                raise UserError(
                    f"resolution {side} is no multiple of step {self.step}; {near} is, or set a smaller step"
                )
        return self

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of the squares, smallest first."""
        return (self.resolution,) if isinstance(self.resolution, int) else tuple(sorted(set(self.resolution)))


class Frame(NamedTuple):
    """How a picture was cut.

    Attributes:
        original: (height, width) that it was stored at.
        top, left: of the cut, in the resized (and then mirrored) picture.
        height, width: of the cut.
        mirrored: left and right are swapped.
    """

    original: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's numbers: original height and width, top, left, height, width."""
        return (*self.original, self.top, self.left, self.height, self.width)


class Buckets:
    """The shapes of a configuration.

    Attributes:
        shapes: (height, width) of each, in pixels; those of the smallest area first, tall before wide.
    """

    def __init__(self, config: FrameConfig) -> None:
        self.config = config
        groups = [_shapes(side, config) for side in config.sides]
        self.shapes: tuple[tuple[int, int], ...] = tuple(shape for group in groups for shape in group)
        self._firsts = [sum(len(group) for group in groups[:i]) for i in range(len(groups) + 1)]

    def assign(self, sizes: Tensor) -> Tensor:
        """The bucket of each picture.

        Args:
            sizes: (N, 2), heights and widths.

        Returns:
            (N,) int64, positions in ``shapes``.
        """
        heights, widths = sizes.double().unbind(1)
        # the largest area that a picture fills without being enlarged, or else the smallest
        areas = torch.tensor([side * side for side in self.config.sides], dtype=torch.float64)
        group = (torch.bucketize(heights * widths, areas, right=True) - 1).clamp(min=0)
        ratios = (heights / widths).log()
        found = torch.empty(len(sizes), dtype=torch.int64)
        for g, (first, last) in enumerate(zip(self._firsts, self._firsts[1:], strict=False)):
            own = torch.tensor([math.log(h / w) for h, w in self.shapes[first:last]], dtype=torch.float64)
            chosen = group == g
            near = [(some[:, None] - own).abs().argmin(1) for some in ratios[chosen].split(_AT_ONCE)]
            found[chosen] = first + torch.cat(near)
        return found


def _shapes(side: int, config: FrameConfig) -> list[tuple[int, int]]:
    """The shapes of about ``side`` squared pixels: for each height the largest width, and the other way round."""
    if not config.buckets:
        return [(side, side)]
    found = set()
    for long in range(side, int(side * math.sqrt(config.max_ratio)) + config.step, config.step):
        short = side * side // long // config.step * config.step
        if short and long / short <= config.max_ratio:
            found |= {(long, short), (short, long)}
    return sorted(found, key=lambda shape: shape[1] / shape[0])


def cut(
    image: Tensor, original: tuple[int, int], shape: tuple[int, int], down: float, across: float, mirrored: bool
) -> tuple[Tensor, Frame]:
    """Resize a picture until it covers a shape, keep a part of that shape, and mirror it where asked.

    Args:
        image: uint8 (C, H, W), C = 1 or 3.
        original: (height, width) that it is stored at.
        shape: (height, width) to come to.
        down, across: which part is kept where the picture is longer: 0 is the top or left, 1 the bottom or right.
        mirrored: swap left and right of the part.

    Returns:
        uint8 (C, h, w), and how it was cut.
    """
    height, width = shape
    whole_height, whole_width = _cover(original, shape)
    top, left = round(down * (whole_height - height)), round(across * (whole_width - width))
    if tuple(image.shape[1:]) != (whole_height, whole_width):
        image = to_tensor(_to_pil(image).resize((whole_width, whole_height), Image.Resampling.LANCZOS))
    image = image[:, top : top + height, left : left + width]
    if mirrored:
        image, left = image.flip(-1), whole_width - left - width
    return image, Frame(original, top, left, height, width, mirrored)


def least_to_decode(original: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """(height, width) below which a picture of the size ``original`` should not be decoded, to be cut to ``shape``."""
    return _cover(original, shape)


def _cover(original: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """The size of the smallest picture of the proportions of ``original`` that covers ``shape``."""
    scale = max(shape[0] / original[0], shape[1] / original[1])
    return max(shape[0], round(original[0] * scale)), max(shape[1], round(original[1] * scale))


def _to_pil(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
