"""Picture files of others to tensors, and their sizes without their pixels.

All reading goes through ``ldm.open_picture``, which turns pictures upright, flattens transparency, brings every kind of
pixel to 8 bits, and refuses what is damaged, animated or too large. Here a refusal becomes a ``BadExample``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from ldm.data.example import BadExample
from ldm.open_picture import (
    ORIENTATION,
    QUARTER_TURNS,
    BadPicture,
    check_extent,
    opened,
    opened_stream,
    picture_trouble,
    plain,
)

Stored = Path | bytes | BinaryIO  # a file, what one holds, or one that is open
_MODES: dict[int, Literal["RGB", "L"]] = {1: "L", 3: "RGB"}
_MAY_TURN = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG that may say how it lies


def decode(
    stored: Stored,
    key: str,
    *,
    name: str | None = None,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
    least: tuple[int, int] | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Decode a picture.

    Args:
        stored: the picture.
        key: of its example.
        name: what messages call it; the path of a file, and otherwise the key, when not given.
        channels: 3 for RGB; 1 for grey (luma, ITU-R 601-2).
        background: what transparent parts show, RGB, 0..255 each.
        least: upright (height, width); a JPEG may be decoded at a half, a quarter or an eighth of its size, where
            neither side comes out shorter than this.

    Returns:
        uint8 (channels, H, W), whose memory is (H, W, channels); and the upright (height, width) that it is stored at.

    Raises:
        BadExample: it is missing, damaged, cut off, too large, animated, or of a kind that has no 8-bit form.
    """
    with _open(stored, key, name) as (image, path):
        original = _upright_size(image, path)
        return to_tensor(plain(image, path, _MODES[channels], background, least)), original


def stored_size(stored: Stored, key: str, name: str | None = None) -> tuple[int, int]:
    """The upright (height, width) of a picture, whose pixels are not read; arguments as of ``decode``.

    Raises:
        BadExample: its beginning cannot be read.
    """
    with _open(stored, key, name) as (image, path):
        return _upright_size(image, path)


def to_tensor(image: Image.Image) -> Tensor:
    """A picture of mode ``L`` or ``RGB`` as uint8 (C, H, W), whose memory is (H, W, C)."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


@contextlib.contextmanager
def _open(stored: Stored, key: str, name: str | None) -> Iterator[tuple[Image.Image, Path]]:
    try:
        if isinstance(stored, Path):
            with opened(stored) as image:
                yield image, stored
        else:
            path = Path(name or key)
            with opened_stream(io.BytesIO(stored) if isinstance(stored, bytes) else stored, path) as image:
                yield image, path
    except BadPicture as error:
        raise BadExample(key, str(error), error.fault) from error


def _upright_size(image: Image.Image, path: Path) -> tuple[int, int]:
    check_extent(image, path)
    with picture_trouble(path):
        # Pillow gives the sides of a TIFF as they are once it is turned
        turned = image.format != "TIFF" and _orientation(image) in QUARTER_TURNS
        return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int | None:
    # A PNG may say it behind its pixels, so Pillow decodes them to know. Few do, and a look at the chunks tells.
    if isinstance(image, PngImageFile) and not _says_more_behind(image):
        return Image.Image.getexif(image).get(ORIENTATION)
    return image.getexif().get(ORIENTATION)


def _says_more_behind(image: PngImageFile) -> bool:
    """Whether any chunk behind the pixels of a PNG may tell its orientation."""
    file = image.fp
    assert file is not None
    place = file.tell()
    try:
        file.seek(8)
        pixels_seen = False
        while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
            pixels_seen |= start[4:] == b"IDAT"
            if pixels_seen and start[4:] in _MAY_TURN:
                return True
            file.seek(int.from_bytes(start[:4], "big") + 4, io.SEEK_CUR)
        return False
    except OSError:  # Arrow's files refuse a place beyond their end
        return False
    finally:
        file.seek(place)
