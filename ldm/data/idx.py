"""Read the IDX format, in which MNIST is published.

A file is a magic number (two zero bytes, one byte for the element type, one for the number of dimensions),
then one big-endian 32-bit size per dimension, then the elements in C order, big-endian.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path, shape: Sequence[int | None] | None = None) -> np.ndarray:
    """Read an IDX file, compressed with gzip or not (told by its content, not by its name).

    Args:
        path: the file.
        shape: what the array must look like, with None where any size will do: ``(None, 28, 28)`` for
            pictures of digits. Without it any shape is accepted.

    Returns:
        A read-only array in the machine's byte order.

    Raises:
        UserError: the file is missing, is not IDX, is cut short, has bytes left over, or has another shape.
    """
    path = Path(path)
    content = _read_bytes(path)
    dtype, sizes, start = _read_header(path, content)
    if shape is not None and not _fits(sizes, shape):
        raise UserError(f"{path}: found an array of {_show(sizes)}, expected {_show(shape)}")
    expected = int(np.prod(sizes, dtype=object)) * dtype.itemsize
    found = len(content) - start
    if found != expected:
        problem = "is cut short" if found < expected else "has bytes left over"
        raise UserError(
            f"{path}: {problem}: found {found} bytes after the header, expected {expected} ({_show(sizes)})"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(sizes)
    return array if dtype.itemsize == 1 else array.astype(dtype.newbyteorder("="))


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected an IDX file (compressed with gzip or not)")
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        size = f"{len(content)} bytes"
        raise UserError(
            f"{path}: found {size} of gzip that are cut short or damaged ({error}), expected a whole file"
        ) from error


def _read_header(path: Path, content: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Element type, sizes, and where the elements begin."""
    if len(content) < 4:
        raise UserError(f"{path}: is cut short: found {len(content)} bytes, expected a magic number of 4 bytes")
    if content[:2] != b"\0\0" or content[2] not in _ELEMENT_TYPES:
        known = ", ".join(f"{code:02x}" for code in _ELEMENT_TYPES)
        raise UserError(
            f"{path}: is not IDX: found the magic number {content[:4].hex()}, "
            f"expected 0000, one of {known}, and the number of dimensions"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise UserError(f"{path}: is cut short: found a header of {len(content)} bytes, expected {start}")
    return np.dtype(_ELEMENT_TYPES[content[2]]), struct.unpack(f">{content[3]}I", content[4:start]), start


def _fits(sizes: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(want in (None, size) for size, want in zip(sizes, shape, strict=True))


def _show(shape: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape) or "no dimensions"
