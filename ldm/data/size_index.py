"""The sizes of many pictures, read from their headers once and then remembered.

What is remembered of a picture is found by a hash of what tells its present state, such as path, length and time of
change: a picture that changed is another one. So the file cannot be out of date, and is at worst of no use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.example import BadExample
from ldm.data.user_cache import cache_file, keep, one_at_a_time, recall

Size = tuple[int, int]

_RECORD = np.dtype([("state", "S16"), ("height", "<i4"), ("width", "<i4")])
_WORTH_KEEPING = 1000  # headers that take about a second to read
_THREADS = 16  # most of the time is waiting for the disk or the network behind it


def read_sizes(name: str, states: Sequence[bytes], read: Callable[[int], Size]) -> tuple[Tensor, Tensor]:
    """The sizes of pictures, those of earlier calls from the user's cache.

    Args:
        name: tells this set of pictures from others.
        states: for each picture, what changes when it does.
        read: gives the (height, width) of a picture by its number, or raises ``BadExample``.

    Returns:
        (N, 2) int32; and (N,) bool, whether the size could be read. Where it could not, the commonest size stands in.
    """
    place = cache_file("sizes", name)
    hashes = [hashlib.blake2b(state, digest_size=16).digest() for state in states]
    found = _known(place, hashes)
    missing = int((found[:, 0] == 0).sum())
    if missing >= _WORTH_KEEPING:
        with one_at_a_time(place):
            found = _read_missing(_known(place, hashes), read)
            _save(place, hashes, found)
    elif missing:
        found = _read_missing(found, read)
    return with_stand_ins(found)


def with_stand_ins(found: np.ndarray) -> tuple[Tensor, Tensor]:
    """Sizes as a source has them.

    Args:
        found: (N, 2) int32, heights and widths; zeros where they could not be read.

    Returns:
        The same with the commonest size in place of zeros; and (N,) bool, whether the size could be read.
    """
    sizes, readable = torch.from_numpy(found), torch.from_numpy(found[:, 0] > 0)
    if readable.any():
        several, counts = torch.unique(sizes[readable], dim=0, return_counts=True)
        sizes[~readable] = several[counts.argmax()]
    else:
        sizes.fill_(1)
    return sizes, readable


def _known(place: Path | None, hashes: Sequence[bytes]) -> np.ndarray:
    known = _load(place)
    return np.array([known.get(one, (0, 0)) for one in hashes], np.int32).reshape(-1, 2)


def _read_missing(found: np.ndarray, read: Callable[[int], Size]) -> np.ndarray:
    missing = np.flatnonzero(found[:, 0] == 0)
    if len(missing):
        found[missing] = _read_headers(missing.tolist(), read)
    return found


def _read_headers(numbers: list[int], read: Callable[[int], Size]) -> list[Size]:
    def one(number: int) -> Size:
        try:
            return read(number)
        except BadExample:  # said again, and then heard, when the picture is read
            return 0, 0

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = pool.map(one, numbers)
        return list(tqdm(sizes, "reading sizes", len(numbers), unit=" pictures", disable=None, leave=False, delay=1))


def _load(place: Path | None) -> dict[bytes, Size]:
    content = recall(place) or b""
    records = np.frombuffer(content, _RECORD)
    # a field of S16 loses trailing zeros, so the hashes are taken from the bytes
    hashes = [content[i : i + 16] for i in range(0, len(content), _RECORD.itemsize)]
    return dict(zip(hashes, zip(records["height"].tolist(), records["width"].tolist(), strict=True), strict=True))


def _save(place: Path | None, hashes: Sequence[bytes], sizes: np.ndarray) -> None:
    readable = np.flatnonzero(sizes[:, 0])
    records = np.empty(len(readable), _RECORD)
    records["state"] = [hashes[i] for i in readable.tolist()]
    records["height"], records["width"] = sizes[readable].T
    keep(place, records.tobytes())
