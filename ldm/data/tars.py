"""Tar files of samples: consecutive members whose names are alike up to the first dot are one sample.

Python's own ``tarfile`` reads them. ``datasets`` streams tars too, but it takes every member, used or not, through
Arrow, cannot pass over samples without reading them, and ends at the first tar whose samples differ in their members,
without naming it. ``benchmarks/streaming.py`` has both side by side.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from ldm.data.cursor import Row
from ldm.data.known_shards import remembered, together
from ldm.data.shards import (
    find_shards,
    is_remote,
    length_of,
    open_shard,
    read_if_there,
    reading,
    short_names,
)
from ldm.data.tar_members import ending_of, samples_of
from ldm.errors import UserError

_STATISTICS = "_stats.json"
Look = Callable[[BinaryIO, tarfile.TarInfo], Any]


class Tars:
    """The tars that a setting means, and what is read of their samples.

    Args:
        path: as for ``find_shards``.
        pictures: extensions of pictures, in order of preference.
        others: of further members that are read.

    Attributes:
        places: their paths or URLs.
        names: of each, in the keys of its samples.

    Raises:
        UserError: there are none, or they cannot be reached.
    """

    def __init__(self, path: str | Sequence[str], pictures: Sequence[str], others: Sequence[str]) -> None:
        self.places = find_shards(path, ".tar")
        self.names = short_names(self.places)
        self._read = tuple(pictures), frozenset((*pictures, *others))

    def open(self, number: int) -> Tar:
        return Tar(self.places[number], self.names[number], *self._read)

    def look_through(self, place: str, called: str, name: str, look: Look) -> Tar:
        """Open one of the tars to look at its pictures; arguments as of ``Tar``."""
        return Tar(place, name, *self._read, called=called, look=look)

    def first(self, count: int) -> tuple[list[Row], list[str]]:
        """The first samples of the first tar that has any, at most ``count``, and the extensions of all their files."""
        for number in range(len(self.places)):
            with contextlib.closing(self.open(number)) as tar:
                if rows := list(islice(tar.rows(), count)):
                    return [row for row in rows if not row.trouble], sorted(tar.endings)
        return [], []


class TarShards:
    """Tars as shards of a stream, and how many samples each holds.

    The number is that in ``NNNNN_stats.json`` beside the tar, which img2dataset writes; or else the samples are counted
    once, and the number is kept in the user's cache. Where a tar that was counted is damaged, what follows the damage
    counts as one sample, which cannot be used.

    Raises:
        UserError: a tar cannot be reached.
    """

    def __init__(self, tars: Tars) -> None:
        self._tars, self.names = tars, tars.names
        self.counts = _counts(tars.places)

    def open(self, shard: int) -> TarReader:
        return TarReader(self._tars.open(shard), self.counts[shard])


class Tar:
    """An open tar.

    Args:
        place: its path or URL.
        name: of the tar, in the keys of its samples.
        pictures: extensions of pictures; the first that a sample has is in its key.
        wanted: extensions of the members to read; others are passed over.
        called: what messages call it; ``place`` when not given.
        look: gives what is wanted of a picture in place of its bytes, from the open tar and the member.

    Attributes:
        called: see above.
        endings: the extensions of all members of the samples that were read.
    """

    def __init__(
        self,
        place: str,
        name: str,
        pictures: Sequence[str],
        wanted: frozenset[str],
        *,
        called: str | None = None,
        look: Look | None = None,
    ) -> None:
        self.place, self.called = place, called or place
        self._name, self._pictures, self._wanted, self._look = name, pictures, wanted, look
        self._file = open_shard(place)
        self._end = length_of(self._file, place)
        self._samples = samples_of(self._file)
        self._done = 0
        self.endings: set[str] = set()

    def rows(self) -> Iterator[Row]:
        """All samples; what a damage took counts as one, which comes with what is wrong.

        Raises:
            UserError: the tar can no longer be reached.
        """
        try:
            while (found := self.next()) is not None:
                yield self.read(*found)
        except tarfile.ReadError as error:
            yield self.lost(self._done + 1, self.damaged(error))

    def next(self) -> tuple[str, list[tarfile.TarInfo]] | None:
        """The name and members of the next sample, which are not read yet; None at the end.

        Raises:
            tarfile.ReadError: what follows is damaged.
        """
        with reading(self.place):
            found = next(self._samples, None)
        self._done += found is not None
        return found

    def read(self, name: str, members: Sequence[tarfile.TarInfo]) -> Row:
        """A sample."""
        parts: dict[str, Any] = {}
        trouble = ""
        for member in members:
            ending = ending_of(member)
            self.endings.add(ending)
            if ending in parts:
                trouble = f"{self._name}/{name} has several .{ending} files: are two samples of one name?"
            if ending in self._wanted:
                whole = self._end is None or member.offset_data + member.size <= self._end
                with reading(self.place):
                    # of a size that is a lie there may not even be memory
                    part = self._part(member, ending) if whole else b""
                if not whole or (isinstance(part, bytes) and len(part) < member.size):
                    trouble = f"{self.called} is cut off in the middle of {member.name}"
                parts[ending] = part
        picture = next((ending for ending in self._pictures if ending in parts), None)
        key = f"{self._name}/{name}" + (f".{picture}" if picture else "")
        return Row(key, parts, trouble)

    def _part(self, member: tarfile.TarInfo, ending: str) -> Any:
        if self._look is not None and ending in self._pictures:
            return self._look(self._file, member)
        self._file.seek(member.offset_data)
        return self._file.read(member.size)

    def damaged(self, error: tarfile.ReadError) -> str:
        """What to say of a damage that ``next`` came to."""
        return f"{self.called} is damaged behind its first {self._done} samples: {error}"

    def lost(self, number: int, trouble: str) -> Row:
        """What stands in the place of a sample, counted from 1, that is no more."""
        return Row(f"{self._name}/#{number}", {}, trouble)

    def close(self) -> None:
        self._file.close()


class TarReader:
    """Reads the samples of a tar in sequence, of which there should be ``count``."""

    def __init__(self, tar: Tar, count: int) -> None:
        self._tar, self._count = tar, count
        self._done, self._damage = 0, ""

    def take(self, count: int) -> list[Row]:
        """The next samples; those that a damaged tar no longer has come with what is wrong.

        Raises:
            UserError: the tar has more samples than it should, or it can no longer be reached.
        """
        rows = []
        for _ in range(count):
            found = self._next()
            rows.append(self._tar.lost(self._done, self._damage) if found is None else self._tar.read(*found))
        self._check_end()
        return rows

    def skip(self, count: int) -> None:
        for _ in range(count):
            self._next()

    def close(self) -> None:
        self._tar.close()

    def _next(self) -> tuple[str, list[tarfile.TarInfo]] | None:
        """The name and members of the next sample; None where there is none."""
        found = None
        if not self._damage:
            try:
                found = self._tar.next()
                if found is None:
                    self._damage = f"{self._tar.place} ends after {self._done} of {self._count} samples"
            except tarfile.ReadError as error:
                self._damage = self._tar.damaged(error)
        self._done += 1
        return found

    def _check_end(self) -> None:
        if self._done == self._count and not self._damage:
            with contextlib.suppress(tarfile.ReadError):  # as when the end mark is missing: all samples were there
                if self._tar.next() is not None:
                    place = self._tar.place
                    raise UserError(
                        f"{place} has more samples than {self._count}, as {_beside(place)} has it: "
                        "delete that file, and they are counted"
                    )


def _beside(place: str) -> str:
    """Where img2dataset leaves the numbers of a tar."""
    path, question, query = place.partition("?") if is_remote(place) else (place, "", "")
    return path.removesuffix(".tar") + _STATISTICS + question + query


def _counts(places: Sequence[str]) -> list[int]:
    told = together(_told, places, "looking at shards")
    missing = [place for place, count in zip(places, told, strict=True) if count is None]
    counted = iter(remembered(missing, _count, "counting samples") if missing else [])
    return [next(counted) if count is None else count for count in told]


def _told(place: str) -> int | None:
    """The samples that img2dataset says it could fetch, which are those in the tar; None where it says nothing."""
    beside = _beside(place)
    text = read_if_there(beside)
    if text is None:
        return None
    try:
        count = json.loads(text)["successes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        count = None
    if not isinstance(count, int) or count < 0:
        raise UserError(f"{beside} has no number of `successes`: delete it, and the samples of the tar are counted")
    return count


def _count(place: str) -> int:
    count = 0
    with open_shard(place) as file:
        try:
            for _ in samples_of(file):
                count += 1
        except tarfile.ReadError:
            count += 1  # where training comes to it, it says what is wrong
    return count
