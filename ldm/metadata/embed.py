"""Where a record stands in a picture file, and how the files are written.

| format | for other programs (``a1111``) | the record |
|---|---|---|
| PNG | text chunk ``parameters`` | compressed text chunk ``ldm`` |
| JPEG, WebP | EXIF UserComment, UTF-16 | EXIF MakerNote: ``ldm``, NUL, the JSON compressed by zlib |

MakerNote is the tag that EXIF sets aside for data of the program that wrote the file. Viewers leave it alone, where
ImageDescription would be shown as a caption. It is compressed because all of a JPEG's EXIF has to fit in 64 KiB.

JPEG is written at quality 95 without chroma subsampling. WebP is written lossless: it is smaller than PNG and holds
the pixels that the record speaks of; who wants a small file with losses has JPEG.
"""

from __future__ import annotations

import zlib
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import UserError
from ldm.metadata.a1111 import parameters_text
from ldm.metadata.record import Record

RECORD_CHUNK, PARAMETERS_CHUNK = "ldm", "parameters"
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
UNICODE, OURS = b"UNICODE\0", b"ldm\0"
MAX_RECORD = 2**20  # bytes of JSON; Pillow unpacks no more from one text chunk
_MAX_JPEG_EXIF = 65533
_ENCODING: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


def save_options(format: str, record: Record | None = None, like: Record | None = None) -> dict[str, Any]:
    """What ``PIL.Image.save`` is to be given besides file and format.

    Args:
        format: ``PNG``, ``JPEG`` or ``WEBP``.
        record: written along when it is given.
        like: in its place, what other programs are told; a sheet cannot be drawn again from the record of a part.

    Raises:
        UserError: the record is too long for such a file.
    """
    encoding = dict(_ENCODING[format])
    told = record or like
    if told is None:
        return encoding
    stored = None if record is None else record.to_json().encode("ascii")
    if stored is not None and len(stored) > MAX_RECORD:
        raise UserError(f"the record of this picture has {len(stored):,} bytes, and at most {MAX_RECORD:,} are stored")
    if format == "PNG":
        return {**encoding, "pnginfo": _chunks(told, stored)}
    exif = _exif(told, stored)
    if format == "JPEG" and len(exif) > _MAX_JPEG_EXIF:
        raise UserError(
            f"prompt and settings of this picture have {len(exif):,} bytes, and a JPEG holds {_MAX_JPEG_EXIF:,}: "
            "write a PNG or WebP"
        )
    return {**encoding, "exif": exif}


def _chunks(told: Record, stored: bytes | None) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text(PARAMETERS_CHUNK, parameters_text(told))  # iTXt where Latin-1 does not suffice
    if stored is not None:
        chunks.add_text(RECORD_CHUNK, stored, zip=True)
    return chunks


def _exif(told: Record, stored: bytes | None) -> bytes:
    exif = Image.Exif()
    tags = exif.get_ifd(EXIF_IFD)
    tags[USER_COMMENT] = UNICODE + parameters_text(told).encode("utf-16-be")
    if stored is not None:
        tags[MAKER_NOTE] = OURS + zlib.compress(stored, 9)
    return exif.tobytes()
