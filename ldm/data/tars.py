"""Tar files of samples: consecutive members whose names are alike up to the first dot are one sample.

Python's own ``tarfile`` reads them. ``datasets`` streams tars too, but it takes every member, used or not, through
Arrow, cannot pass over samples without reading them, and ends at the first tar whose samples differ in their members,
without naming it. ``benchmarks/streaming.py`` has both side by side.
"""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Self

from ldm.data.cursor import Row
from ldm.data.shards import digest, find_shards, is_remote, open_shard, read_if_there, remembered, short_names, together
from ldm.errors import UserError

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # a sample's name, and what tells its members apart
_STATISTICS = "_stats.json"


class TarShards:
    """Tars, and how many samples each holds.

    The number is that in ``NNNNN_stats.json`` beside the tar, which img2dataset writes; or else the samples are counted
    once, and the number is kept in the user's cache. Where a tar that was counted is damaged, what follows the damage
    counts as one sample, which cannot be used.

    Args:
        path: as for ``find_shards``.
        pictures: extensions of pictures, in order of preference.
        others: of further members that are read.

    Raises:
        UserError: there are none, or they cannot be reached.
    """

    def __init__(self, path: str | Sequence[str], pictures: Sequence[str], others: Sequence[str]) -> None:
        self._places = find_shards(path, ".tar")
        self._pictures, self._wanted = tuple(pictures), frozenset((*pictures, *others))
        self.names = short_names(self._places)
        self.counts = _counts(self._places)

    def open(self, shard: int) -> TarReader:
        place = self._places[shard]
        return TarReader(place, self.names[shard], self.counts[shard], self._pictures, self._wanted)

    def first(self, count: int) -> tuple[list[Row], list[str]]:
        """The first samples of the first tar that has any, at most ``count``, and the extensions of all their files."""
        shard = next((shard for shard, held in enumerate(self.counts) if held), None)
        if shard is None:
            return [], []
        reader = self.open(shard)
        try:
            rows = [row for row in reader.take(min(count, self.counts[shard])) if not row.trouble]
            return rows, sorted(reader.endings)
        finally:
            reader.close()

    def listing(self) -> bytes:
        return digest(self.names, self._places, self.counts, self._pictures, sorted(self._wanted))


class TarReader:
    """Reads the samples of a tar in sequence.

    Args:
        place: its path or URL.
        name: of the tar, in the keys of its samples.
        count: samples it should have.
        pictures: extensions of pictures; the first that a sample has is in its key.
        wanted: extensions of the members to read; others are passed over.

    Attributes:
        endings: the extensions of all members of the samples that were taken.
    """

    def __init__(self, place: str, name: str, count: int, pictures: Sequence[str], wanted: frozenset[str]) -> None:
        self._place, self._name, self._count = place, name, count
        self._pictures, self._wanted = pictures, wanted
        self._file = open_shard(place)
        self._samples = _samples(self._file)
        self._done, self._damage = 0, ""
        self.endings: set[str] = set()

    def take(self, count: int) -> list[Row]:
        """The next samples; those that a damaged tar no longer has come with what is wrong.

        Raises:
            UserError: the tar has more samples than it should, or it can no longer be reached.
        """
        rows = [self._row(*self._next()) for _ in range(count)]
        self._check_end()
        return rows

    def skip(self, count: int) -> None:
        for _ in range(count):
            self._next()

    def close(self) -> None:
        self._file.close()

    def _next(self) -> tuple[str, list[tarfile.TarInfo]]:
        """The name and members of the next sample, without members where there is none."""
        found = None
        if not self._damage:
            try:
                found = next(self._samples, None)
                if found is None:
                    self._damage = f"{self._place} ends after {self._done} of {self._count} samples"
            except tarfile.ReadError as error:
                self._damage = f"{self._place} is damaged behind its first {self._done} samples: {error}"
        self._done += 1
        return found or (f"#{self._done}", [])

    def _row(self, name: str, members: list[tarfile.TarInfo]) -> Row:
        parts: dict[str, bytes] = {}
        trouble = "" if members else self._damage
        for member in members:
            ending = _ending(member)
            self.endings.add(ending)
            if ending in parts:
                trouble = f"{self._name}/{name} has several .{ending} files: are two samples of one name?"
            if ending in self._wanted:
                self._file.seek(member.offset_data)
                parts[ending] = self._file.read(member.size)
                if len(parts[ending]) < member.size:
                    trouble = f"{self._place} is cut off in the middle of {member.name}"
        picture = next((ending for ending in self._pictures if ending in parts), None)
        key = f"{self._name}/{name}" + (f".{picture}" if picture else "")
        return Row(key, parts, trouble)

    def _check_end(self) -> None:
        if self._done == self._count and not self._damage:
            with contextlib.suppress(tarfile.ReadError):  # as when the end mark is missing: all samples were there
                if next(self._samples, None) is not None:
                    raise UserError(
                        f"{self._place} has more samples than {self._count}, as {_beside(self._place)} has it: "
                        "delete that file, and they are counted"
                    )


def _samples(file: BinaryIO) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Name and members of each sample of a tar.

    Raises:
        tarfile.ReadError: where the tar is damaged, after the samples before that.
    """
    found = _members(file)
    name, members = "", []
    while isinstance(member := _next_member(found), tarfile.TarInfo):
        parts = _NAME.fullmatch(member.name)
        if parts is None or not member.isreg():
            continue
        if members and parts[1] != name:
            yield name, members
            members = []
        name = parts[1]
        members.append(member)
    if members:
        yield name, members
    if member is not None:
        raise member


def _next_member(found: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | tarfile.ReadError | None:
    """The next member; None at the end; what is wrong where the tar is damaged."""
    try:
        return next(found, None)
    except tarfile.ReadError as error:
        return error


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    # A name that is no UTF-8 has to go into lists and logs that are.
    tar: Any = tarfile.TarFile(fileobj=file, mode="r", tarinfo=_Member, errors="backslashreplace")
    while (member := tar.next()) is not None:
        tar.members.clear()  # it would keep all of them
        yield member
    # Where tarfile does not know a header, it takes the tar to end.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        what = "damaged" if any(block) else "missing"
        raise tarfile.ReadError(f"byte {tar.offset:,} should begin a file or the mark of the end, which is {what}")


class _Member(tarfile.TarInfo):
    """A member without the owner, mode and times that nobody asks for and that take most of the time of a header."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        """A plain file with a short name, read here; all else, damage too, is left to ``tarfile``."""
        plain = len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE and not buf[345]
        try:
            size, checksum = int(buf[124:136].strip(b" \0"), 8), int(buf[148:156].strip(b" \0"), 8)
        except ValueError:
            plain, size, checksum = False, 0, 0
        if not plain or checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        member.size = size
        return member


def _ending(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


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
            for _ in _samples(file):
                count += 1
        except tarfile.ReadError:
            count += 1  # where training comes to it, it says what is wrong
    return count
