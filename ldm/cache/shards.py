"""Files of rows, each found by an identity, sealed so that no damage goes unseen.

A cache is made of shards, safetensors files of rows of one shape. Every shard stands for itself: it says by what recipe
its rows were made and which rows they are, and carries a seal over every byte of the file. So a build that was killed
goes on with the rows that are missing, whoever wrote the others, and of a damaged shard nothing but its own rows is
made again.

The seal is the CRC-32 of the file with zeros in the seal's own place. It sees every burst of up to 32 bits with
certainty and misses other damage once in 2^32 cases, at some 4 GB/s, where SHA-256 reaches 1.8.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ldm.publishing import write_whole

LARGEST = 2**28  # bytes of a shard
_FEWEST, _MOST_SHARDS = 256, 1000
_NOTE = "ldm"
_BLANK = b"0" * 8
_PLACE_OF_SEAL = re.compile(rb'"ldm":"([0-9a-f]{8}) ')
_CHUNK = 2**22


class Shard(NamedTuple):
    """What a shard says of itself.

    Attributes:
        path: of the file.
        ids: identities of its rows, (n, 2) int64; those left out come last.
        note: what was told when it was written.
    """

    path: Path
    ids: np.ndarray
    note: dict[str, Any]

    @property
    def rows(self) -> int:
        """How many rows it has, without those left out."""
        return len(self.ids) - len(self.note.get("left_out", ()))


def rows_per_shard(row_bytes: int, total: int) -> int:
    """How many rows share a shard, of ``total`` in the cache.

    A killed process loses what it has not written, so a shard is a thousandth of the whole where that is less than
    the largest size.
    """
    return max(1, min(LARGEST // row_bytes, max(_FEWEST, total // _MOST_SHARDS)))


def identity(*parts: str) -> tuple[int, int]:
    """128 bits that tell these words from others, as two signed integers."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:], "little", signed=True)


def write_shard(path: Path, ids: np.ndarray, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write a shard whole, through to the disk.

    Args:
        path: the file; its folder exists.
        ids: (n, 2) int64.
        tensors: at most n rows each, on the CPU.
        note: plain data, which :func:`read_shard` gives back.
    """
    told = _BLANK.decode() + " " + json.dumps(note, ensure_ascii=True, sort_keys=True)
    blob = save({"ids": torch.from_numpy(ids), **tensors}, {_NOTE: told})
    length = _head_length(blob)
    head, body = blob[:length], memoryview(blob)[length:]
    head = _with_seal(head, zlib.crc32(body, zlib.crc32(head)))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(head)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def read_shard(path: Path) -> Shard:
    """What a shard, which is whole, says of itself."""
    with safe_open(path, framework="np") as file:
        note = json.loads(file.metadata()[_NOTE][len(_BLANK) :])
        return Shard(path, file.get_tensor("ids"), note)


def open_rows(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, mapped: only what is read of them comes from the disk."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name != "ids"}  # noqa: SIM118


def is_whole(path: Path) -> bool:
    """Whether every byte of a shard is as it was written."""
    with path.open("rb") as file:
        head = file.read(8)
        head += file.read(max(0, min(_head_length(head), path.stat().st_size) - len(head)))
        found = _PLACE_OF_SEAL.search(head)
        if found is None:
            return False
        check = zlib.crc32(head[: found.start(1)] + _BLANK + head[found.end(1) :])
        chunk = memoryview(bytearray(_CHUNK))
        while count := file.readinto(chunk):
            check = zlib.crc32(chunk[:count], check)
        return check == int(found[1], 16)


def state_of(path: Path) -> list[int]:
    """What changes when a file does: size, time of change of its bytes, and of anything about it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Plain data as JSON under a seal, which :func:`unsealed_json` reads."""
    told = json.dumps({_NOTE: _BLANK.decode() + " seal", **value}, indent=1, ensure_ascii=False)
    blob = told.replace(f'"{_NOTE}": ', f'"{_NOTE}":', 1).encode() + b"\n"
    return _with_seal(blob, zlib.crc32(blob))


def unsealed_json(blob: bytes) -> dict[str, Any] | None:
    """What :func:`sealed_json` was given; None where a byte has changed."""
    found = _PLACE_OF_SEAL.search(blob)
    if found is None or zlib.crc32(blob[: found.start(1)] + _BLANK + blob[found.end(1) :]) != int(found[1], 16):
        return None
    value = json.loads(blob)
    del value[_NOTE]
    return value


class Places:
    """Where the rows of shards are, by identity; of what was left out once and kept later, the row that is kept.

    Attributes:
        ids: of all rows, (M, 2) int64.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self.ids = np.concatenate([np.empty((0, 2), np.int64), *(shard.ids for shard in shards)])
        counts = [len(shard.ids) for shard in shards]
        shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        row_of = np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)])
        is_out = row_of >= np.repeat(np.array([shard.rows for shard in shards], np.int32), counts)
        # the second number alone tells rows apart, but for chance; both are compared in the end
        order = np.lexsort((is_out, self.ids[:, 1]))
        self._sorted, self._places = self.ids[order], np.stack([shard_of, row_of], axis=1)[order]
        self._keys = self._sorted[:, 1].copy()  # in one piece: searching makes it so, at every call

    def find(self, ids: np.ndarray) -> np.ndarray:
        """(shard, row) of each identity (n, 2), as (n, 2) int32; -1 where there is none."""
        if not len(self._sorted):
            return np.full((len(ids), 2), -1, np.int32)
        at = np.searchsorted(self._keys, ids[:, 1]).clip(max=len(self._sorted) - 1)
        found = (self._sorted[at] == ids).all(1)
        return np.where(found[:, None], self._places[at], np.int32(-1))


def _head_length(blob: bytes) -> int:
    return 8 + int.from_bytes(blob[:8], "little")


def _with_seal(blob: bytes, seal: int) -> bytes:
    found = _PLACE_OF_SEAL.search(blob)
    assert found is not None
    return blob[: found.start(1)] + f"{seal:08x}".encode() + blob[found.end(1) :]
