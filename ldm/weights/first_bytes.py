"""What a file is that should hold weights and does not, told from its first bytes.

Downloads go wrong in few ways: a page to log in, an answer of the server, a pointer in place of the file, half of it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP"}  # how they begin
_PICKLE = "data.pkl"  # in every zip that torch writes
_LONGEST = 100_000_000  # bytes of a header, as the format has it


def picture_kind(path: Path) -> str | None:
    """``PNG``, ``JPEG``, ``GIF`` or ``WebP``; None where a file is none of these."""
    return _picture(_start(path))


def mistaken_for_weights(path: Path) -> str | None:
    """What a file that cannot be read as weights is instead, as the end of a sentence; None where that is unknown."""
    start, size = _start(path), path.stat().st_size
    text = b"" if b"\0" in start else start.lstrip(b"\xef\xbb\xbf \t\r\n")  # lengths of headers have zeros
    picture = _picture(start)
    if not size:
        return "it is empty"
    if picture is not None:
        return f"it is a {picture} picture"
    if text.startswith(b"<"):
        return "it is a web page, not a model: download it again, perhaps after logging in"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer: `git lfs pull` fetches the file"
    if text.startswith(b"{"):
        return "it is JSON, perhaps an error message of the server"
    return _cut_off(path, size)


def foreign_zip(path: Path) -> str | None:
    """What a zip holds that is no pickle of torch, as the end of a sentence; None for all other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # none, or damaged: its reader says so
        return None
    if any(name.rpartition("/")[2] == _PICKLE for name in names):
        return None
    weights = next((name for name in names if name.endswith(".safetensors")), None)
    return f"a zip with {weights} inside: unpack it" if weights else "a zip without weights in it"


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _picture(start: bytes) -> str | None:
    for magic, name in _PICTURES.items():
        if start.startswith(magic) and (name != "WebP" or start[8:12] == b"WEBP"):
            return name
    return None


def _cut_off(path: Path, size: int) -> str | None:
    """That a safetensors file ends too early: it begins with the length of its header, which says where tensors are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) != b"{" or length > _LONGEST:
            return None
        if size < 8 + length:
            return f"it is incomplete: {size:,d} of more than {8 + length:,d} bytes"
        file.seek(8)
        end = _end(file.read(length))
    return f"it is incomplete: {size:,d} of {8 + length + end:,d} bytes" if size < 8 + length + end else None


def _end(header: bytes) -> int:
    """Where the last tensor ends; 0 where the header does not say."""
    try:
        entries = json.loads(header).values()
        return max(entry["data_offsets"][1] for entry in entries if "data_offsets" in entry)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0
