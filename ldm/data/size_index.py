"""The sizes of many pictures, read from their headers once and then remembered.

What is remembered of a picture is found by a hash of what tells its present state, such as path, length and time of
change: a picture that changed is another one. So the file cannot be out of date, and is at worst of no use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.example import BadExample
from ldm.publishing import write_whole

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
    place = _place(name)
    hashes = [hashlib.blake2b(state, digest_size=16).digest() for state in states]
    known = _load(place)
    found = np.array([known.get(one, (0, 0)) for one in hashes], np.int32).reshape(-1, 2)
    missing = np.flatnonzero(found[:, 0] == 0)
    if len(missing):
        found[missing] = _read_headers(missing.tolist(), read)
        if len(missing) >= _WORTH_KEEPING:
            _save(place, hashes, found)
    sizes, readable = torch.from_numpy(found), torch.from_numpy(found[:, 0] > 0)
    if readable.any():
        several, counts = torch.unique(sizes[readable], dim=0, return_counts=True)
        sizes[~readable] = several[counts.argmax()]
    else:
        sizes.fill_(1)
    return sizes, readable


def _read_headers(numbers: list[int], read: Callable[[int], Size]) -> list[Size]:
    def one(number: int) -> Size:
        try:
            return read(number)
        except BadExample:  # said again, and then heard, when the picture is read
            return 0, 0

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = pool.map(one, numbers)
        return list(tqdm(sizes, "reading sizes", len(numbers), unit=" pictures", disable=None, leave=False, delay=1))


def _place(name: str) -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # a user without a home, as in some containers
        return None
    return (
        Path(base)
        / "ldm"
        / "sizes"
        / hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    )


def _load(place: Path | None) -> dict[bytes, Size]:
    try:
        held = place.read_bytes() if place else b""
    except OSError:  # none yet
        return {}
    checksum, content = held[:16], held[16:]
    if hashlib.blake2b(content, digest_size=16).digest() != checksum:  # damaged: it is only a cache
        return {}
    records = np.frombuffer(content, _RECORD)
    # a field of S16 loses trailing zeros, so the hashes are taken from the bytes
    hashes = [content[i : i + 16] for i in range(0, len(content), _RECORD.itemsize)]
    return dict(zip(hashes, zip(records["height"].tolist(), records["width"].tolist(), strict=True), strict=True))


def _save(place: Path | None, hashes: Sequence[bytes], sizes: np.ndarray) -> None:
    if place is None:
        return
    readable = np.flatnonzero(sizes[:, 0])
    records = np.empty(len(readable), _RECORD)
    records["state"] = [hashes[i] for i in readable.tolist()]
    records["height"], records["width"] = sizes[readable].T
    content = records.tobytes()
    held = hashlib.blake2b(content, digest_size=16).digest() + content
    own = place.with_name(f"{place.name}.{os.getpid()}")  # every process of a run may come here at once
    with contextlib.suppress(OSError):  # a home that cannot be written: the headers are read again next time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(own, lambda path: path.write_bytes(held))
        os.replace(own, place)
