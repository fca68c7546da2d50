"""What is kept of a picture's pixels, by which it is told again: the same one exactly, and nearly the same one.

*Exactly.* A digest of the decoded pixels, so that one picture in two files is found whatever the files are called, or
say beside it.

*Nearly.* A perceptual hash of 64 bits (Zauner 2010): of the picture shrunk to 32 x 32 greys, the signs of the 64
lowest frequencies of its cosine transform, without the mean. They hardly move when a picture is compressed, resized
or brightened. Frequencies that are nearly absent count as negative, else a drawing that is symmetric would have half
of its bits by chance. The hash does not see colour, and a red car is no copy of a blue one: so a sketch of 4 x 4
colours goes along, and must agree too.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

SKETCH = 4 * 4 * 3  # bytes
DIGEST = 16  # bytes
_SIDE = 32
_ABSENT = 0.1  # of the root mean square of the frequencies
_BLANK = 4.0  # greatest difference of the greys of a picture that shows nothing, in 0..255


class Look(NamedTuple):
    """What is kept of the pixels of a picture.

    Attributes:
        digest: of all of them and their size.
        hash: 64 bits that pictures which look alike share nearly all of.
        sketch: 4 x 4 colours, RGB.
        blank: it is of one grey throughout, and its hash says nothing.
    """

    digest: bytes
    hash: int
    sketch: bytes
    blank: bool


def look_at(image: Tensor) -> Look:
    """The fingerprint of a picture, uint8 (C, H, W) with C = 1 or 3."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=DIGEST)
    digest.update(pixels.data)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    sketch = small.convert("RGB").resize((4, 4), Image.Resampling.BOX).tobytes()
    greys = np.asarray(small.convert("L"), np.float32)
    return Look(digest.digest(), _hash(greys), sketch, bool(np.ptp(greys) <= _BLANK))


def _hash(greys: np.ndarray) -> int:
    waves = (_WAVES @ greys @ _WAVES.T)[_DOWN, _ALONG]
    present = waves > _ABSENT * math.sqrt(np.square(waves).mean())
    return int.from_bytes(np.packbits(present).tobytes(), "big")


_WAVES = np.array(
    [[math.cos(math.pi * (2 * x + 1) * u / (2 * _SIDE)) for x in range(_SIDE)] for u in range(_SIDE // 2)], np.float32
)
_LOWEST = sorted(
    ((u, v) for u in range(_SIDE // 2) for v in range(_SIDE // 2) if u or v), key=lambda wave: (math.hypot(*wave), wave)
)
_DOWN, _ALONG = np.array(_LOWEST[:64]).T
