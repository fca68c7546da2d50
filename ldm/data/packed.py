"""Many short pieces of bytes in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Packed:
    """Pieces of bytes that worker processes share: counting references to so many objects would copy them.

    Args:
        content: all pieces, one behind the other.
        ends: (N,) int64, where each ends.
    """

    def __init__(self, content: bytes, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Packed:
        return cls(b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> bytes:
        start = int(self.ends[number - 1]) if number else 0
        return self.content[start : int(self.ends[number])]
