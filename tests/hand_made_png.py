"""PNG files put together by hand: kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(header: tuple[int, int, int, int], pixels: bytes, *between: bytes) -> bytes:
    """A PNG from its (width, height, bits, colour type) and filtered rows."""
    parts = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *between]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, png_chunk(b"IDAT", zlib.compress(pixels)), png_chunk(b"IEND", b"")])
