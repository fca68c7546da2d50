"""Small pictures of some examples, with their captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from ldm.data.check.looking import Examples
from ldm.data.example import BadExample, Example

_SIDE = 112
_QUALITY = 70


class Thumbnail(NamedTuple):
    """A small picture.

    Attributes:
        jpeg: its file, in base64.
        size: (height, width) of the original.
        captions: of the example.
    """

    jpeg: str
    size: tuple[int, int]
    captions: tuple[str, ...]


def thumbnails(examples: Examples, numbers: set[int]) -> dict[int, Thumbnail]:
    """Open some examples a second time; those that cannot be opened are left out.

    Args:
        examples: the same that were checked.
        numbers: of those that are wanted.
    """
    found: dict[int, Thumbnail] = {}
    wanted = examples.some(numbers)
    for number, read in tqdm(wanted, "small pictures", len(numbers), unit=" pictures", disable=None, leave=False):
        try:
            found[number] = _thumbnail(read())
        except BadExample:  # is told as a problem
            continue
    return found


def _thumbnail(example: Example) -> Thumbnail:
    pixels = example.image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=_QUALITY)
    return Thumbnail(base64.b64encode(held.getvalue()).decode(), example.original, example.captions)


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """``count`` of some numbers, evenly over them; all when there are fewer."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[k * len(numbers) // count] for k in range(count)]
