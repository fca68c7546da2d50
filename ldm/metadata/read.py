"""What a picture file says of itself, read without decoding its pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ldm.errors import UserError
from ldm.metadata.embed import (
    EXIF_IFD,
    MAKER_NOTE,
    MAX_RECORD,
    OURS,
    PARAMETERS_CHUNK,
    RECORD_CHUNK,
    UNICODE,
    USER_COMMENT,
)
from ldm.metadata.record import Record
from ldm.open_picture import opened, picture_trouble

COMFYUI = ("prompt", "workflow")  # the texts that hold its graphs
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")


class Fields(NamedTuple):
    """What was found.

    Attributes:
        format: of the file.
        size: width and height in pixels.
        texts: named texts; that of EXIF UserComment, which has no name, goes by ``parameters``.
        record: the JSON of ours, or None.
    """

    format: str
    size: tuple[int, int]
    texts: dict[str, str]
    record: str | bytes | None


def read_record(path: Path | str) -> Record | None:
    """The record in a picture; None when there is none.

    Raises:
        UserError: the file is no readable picture, or its record is damaged or of a newer ldm.
    """
    stored = read_fields(Path(path)).record
    return None if stored is None else Record.from_json(stored, str(path))


def read_fields(path: Path) -> Fields:
    """Texts and record of a picture.

    Raises:
        UserError: the file is no readable picture, or its metadata is damaged.
    """
    with opened(path) as image, picture_trouble(path):
        texts = _texts(image) if isinstance(image, PngImageFile) else {}
        main, tags = _exif(image.info.get("exif"))
        shape = (image.format or "", image.size)
    for value in main.values():  # ComfyUI puts its graphs into whatever tags of cameras are at hand
        name, colon, graph = str(value).partition(":")
        if colon and name in COMFYUI:
            texts[name] = graph
    if PARAMETERS_CHUNK not in texts and (comment := decode_comment(tags.get(USER_COMMENT))):
        texts[PARAMETERS_CHUNK] = comment
    record = texts.pop(RECORD_CHUNK, None)
    return Fields(*shape, texts, _unpacked(tags.get(MAKER_NOTE), path) if record is None else record)


def _texts(image: PngImageFile) -> dict[str, str]:
    """The text chunks, also those behind the pixels, where Pillow looks only once it decodes them."""
    stream, file = image.png, image.fp
    if stream is not None and file is not None and image.tile:
        file.seek(image.tile[0].offset - 8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            start = file.tell()
            if name in _TEXT_CHUNKS:
                stream.call(name, start, length)  # puts what it finds into image.info
            file.seek(start + length + 4)
    return {str(key): str(text) for key, text in image.info.items() if isinstance(text, str)}


def _exif(stored: object) -> tuple[dict[int, object], dict[int, object]]:
    """The main tags of EXIF data, and those of its Exif part."""
    if not isinstance(stored, bytes):
        return {}, {}
    exif = Image.Exif()
    exif.load(stored)
    return dict(exif), dict(exif.get_ifd(EXIF_IFD))


def _unpacked(note: object, path: Path) -> bytes | None:
    """The JSON in a MakerNote; None when it is a camera's."""
    if not isinstance(note, bytes) or not note.startswith(OURS):
        return None
    unpacking = zlib.decompressobj()
    try:
        stored = unpacking.decompress(note.removeprefix(OURS), MAX_RECORD + 1)
    except zlib.error as error:
        raise UserError(f"{path}: the record cannot be unpacked: {error}") from error
    if len(stored) > MAX_RECORD or not unpacking.eof:
        raise UserError(f"{path}: the record is cut off or larger than {MAX_RECORD:,} bytes")
    return stored


def decode_comment(comment: object) -> str:
    """The text of an EXIF UserComment: 8 bytes name its encoding.

    UTF-16 is written big-endian by most, whatever the file's byte order, but not by all. Settings are mostly ASCII, so
    the byte order that puts the zeros first in each pair is big-endian.
    """
    if isinstance(comment, str):
        return comment
    if not isinstance(comment, bytes):
        return ""
    text = comment[8:]
    if comment.startswith(UNICODE):
        little = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")
    return text.decode("utf-8", "replace").strip("\0")
