"""What there is in a tar, found by going through it from end to end, and then kept: a tar itself has no list.

The list of a tar is a file in the user's cache. It is known by the tar's path or URL and by the settings that say where
words are, and it begins with the tar's state: a tar that has changed is listed again, and the others are not. A sample
takes some hundred bytes, and all samples of a tar share a few objects of Python, so that worker processes have the
memory in common.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ldm.data.cursor import Row
from ldm.data.decode import stored_size
from ldm.data.example import BadExample
from ldm.data.known_shards import cache_of, real, state_of, together
from ldm.data.packed import Packed
from ldm.data.tars import Tar, Tars
from ldm.data.user_cache import cache_file, keep, one_at_a_time, recall
from ldm.data.webdataset import Reading, WebDatasetConfig

_FORM = 1  # of a list as it is kept; another number when what is in it changes
_NO_PICTURE = (-1, 0, 0, 0)
_BUFFER = 8192  # bytes; the beginnings of most pictures
# What is kept of a tar holds for any path to it, so these stand in messages for its path and for its name.
PLACE, NAME = "\0place", "\0name"


class Listing(NamedTuple):
    """What there is in a tar.

    Attributes:
        pictures: (N, 4) int64: where each picture begins, its bytes, height and width. Height and width are zeros where
            they cannot be read, and the first is -1 where there is no picture.
        words: of each sample, the name, captions, label, and what is wrong with it, if anything, in JSON.
    """

    pictures: np.ndarray
    words: Packed

    def to_bytes(self) -> bytes:
        numbers = np.array([_FORM, len(self.words)], "<i8")
        return b"".join([numbers.tobytes(), self.pictures.tobytes(), self.words.ends.tobytes(), self.words.content])

    @classmethod
    def of_bytes(cls, held: bytes) -> Listing | None:
        """What ``to_bytes`` has made; None where that was of another form."""
        form, count = np.frombuffer(held, "<i8", 2).tolist()
        if form != _FORM:
            return None
        pictures = np.frombuffer(held, "<i8", 4 * count, offset=16).reshape(count, 4).copy()  # so that `held` may go
        ends = np.frombuffer(held, "<i8", count, offset=16 + 32 * count).copy()
        return cls(pictures, Packed(held[16 + 40 * count :], ends))


def list_tars(tars: Tars, config: WebDatasetConfig) -> tuple[list[str], list[Listing]]:
    """The state of every tar, and what is in it, from the user's cache as far as that has it.

    Raises:
        UserError: a tar cannot be reached.
    """
    states = together(state_of, tars.places, "looking at shards")
    kept = {place: _kept_at(place, state, config) for place, state in zip(tars.places, states, strict=True)}
    found = dict(zip(kept, together(lambda place: _recalled(kept[place]), list(kept), "reading lists"), strict=True))
    missing = [place for place, listing in found.items() if listing is None]
    if missing:
        with one_at_a_time(cache_of([real(place) for place in tars.places])):
            make = partial(_recall_or_list, tars, config, kept)
            found |= zip(missing, together(make, missing, "listing samples"), strict=True)
    return states, [listing for listing in found.values() if listing is not None]


class _Kept(NamedTuple):
    """Where the list of a tar is kept, and what it has to begin with."""

    file: Path | None
    state: bytes


def _kept_at(place: str, state: str, config: WebDatasetConfig) -> _Kept:
    what = json.dumps([config.extensions, config.caption_key, config.label_key, config.classes])
    file = cache_file("shards", f"{what} {real(place)}")
    return _Kept(file and file.with_suffix(".list"), f"{state}\n".encode())


def _recalled(kept: _Kept) -> Listing | None:
    held = recall(kept.file)
    return Listing.of_bytes(held[len(kept.state) :]) if held is not None and held.startswith(kept.state) else None


def _recall_or_list(tars: Tars, config: WebDatasetConfig, kept: dict[str, _Kept], place: str) -> Listing:
    found = _recalled(kept[place])  # another process may just have listed it
    if found is None:
        with contextlib.closing(tars.look_through(place, PLACE, NAME, _look)) as tar:
            found = _list(tar, Reading(config))
        keep(kept[place].file, kept[place].state + found.to_bytes())
    return found


def _list(tar: Tar, reading: Reading) -> Listing:
    pictures, words = [], []
    for row in tar.rows():
        picture, said = _entry(row, reading)
        pictures.append(picture)
        words.append(json.dumps(said, separators=(",", ":")).encode())
    return Listing(np.array(pictures, "<i8").reshape(-1, 4), Packed.of(words))


def _entry(row: Row, reading: Reading) -> tuple[Sequence[int], list[Any]]:
    """Where the picture of a sample is, and what is said of it."""
    name = row.key.removeprefix(f"{NAME}/")
    if row.trouble:
        return _NO_PICTURE, [name, [], None, row.trouble]
    picture = _NO_PICTURE
    try:
        picture = reading.picture(row)
        words = reading.words(row)
    except BadExample as error:
        return picture, [name, [], None, str(error)]
    return picture, [name, words.captions, words.label, ""]


def _look(file: BinaryIO, member: tarfile.TarInfo) -> Sequence[int]:
    """Where a picture is, and its height and width, zeros where they cannot be read."""
    part = _Part(file, member.offset_data, member.size)
    height = width = 0
    try:
        height, width = stored_size(_buffered(part), member.name)
    except BadExample:  # said again, and then heard, when the picture is read
        if part.failure is not None:  # of the disk or network, and not the picture's fault
            raise part.failure from None
    return member.offset_data, member.size, height, width


def _buffered(part: _Part) -> Any:
    return io.BufferedReader(part, _BUFFER)


class _Part(io.RawIOBase):
    """A part of an open file, as a file.

    Attributes:
        failure: why it could not be read, if so.
    """

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence] + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        try:
            self._file.seek(self._start + self._at)
            data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
