"""Going along the lanes of a stream: what a shard has to do, and who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ldm.data.lanes import Lanes, Place, Span


class Row(NamedTuple):
    """A sample as it is stored.

    Attributes:
        key: as in ``Example``.
        parts: its bytes and values, by name.
        trouble: why it cannot be read; empty where it could be.
    """

    key: str
    parts: dict[str, Any]
    trouble: str = ""


class Reader(Protocol):
    """An open shard, and how far it has been read."""

    def take(self, count: int) -> list[Row]:
        """The next ``count`` samples, of those the shard is said to have."""
        ...

    def skip(self, count: int) -> None:
        """Pass over samples."""
        ...

    def close(self) -> None: ...


class Shards(Protocol):
    """The shards of a source."""

    @property
    def names(self) -> Sequence[str]:
        """What messages call them; the keys of their samples begin so."""
        ...

    @property
    def counts(self) -> Sequence[int]:
        """Samples in each."""
        ...

    def open(self, shard: int) -> Reader:
        """Open a shard before its first sample.

        Raises:
            UserError: it cannot be reached.
        """
        ...


class _Head:
    """Reads spans of shards, and keeps the last shard open as more of it may be asked for."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._reader: Reader | None = None
        self._shard, self._next = -1, 0  # what ``_reader`` reads, and the sample that comes next

    def take(self, spans: Sequence[Span]) -> list[Row]:
        return [row for span in spans for row in self._take(span)]

    def _take(self, span: Span) -> list[Row]:
        if self._reader is None or span.shard != self._shard or span.first < self._next:
            self.close()
            self._reader, self._shard, self._next = self._shards.open(span.shard), span.shard, 0
        self._reader.skip(span.first - self._next)
        rows, self._next = self._reader.take(span.last - span.first), span.last
        if span.last == self._shards.counts[span.shard]:
            self.close()
        return rows

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class Cursor:
    """Goes along a lane and holds one block of it."""

    def __init__(self, shards: Shards, lanes: Lanes, skipped: frozenset[str]) -> None:
        self._shards, self._lanes, self._skipped = shards, lanes, skipped
        self._head = _Head(shards)
        self._held: tuple[int, int] | None = None  # epoch and block of ``_rows``
        self._rows: list[Row] = []
        self._reserve: list[Row] = []  # what may stand in where none of that block can, and where more comes from
        self._more: Iterator[Row] | None = None

    def find(self, place: Place, turn: int) -> Row | None:
        """The sample at a place; or the ``turn``-th that may stand in for it, if there are so many."""
        if self._held != place[:2]:
            self._rows, self._reserve, self._more = [], [], None  # not two blocks at once
            self._rows = self._head.take(self._lanes.spans(*place[:3]))
            self._held = place[:2]
        row = self._rows[place.at]
        if row.key not in self._skipped:
            if turn == 0:
                return row
            turn -= 1
        others = self._usable(self._rows[: place.at] + self._rows[place.at + 1 :])
        if turn < len(others):
            return others[(place.at + turn) % len(others)]
        return self._from_reserve(place, turn - len(others))

    def _usable(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if not row.trouble and row.key not in self._skipped]

    def _from_reserve(self, place: Place, turn: int) -> Row | None:
        """Where a block cannot be used, as behind a damage in a shard, those that follow help out."""
        if self._more is None:
            self._more = self._following(place)
        while len(self._reserve) < max(turn + 1, self._lanes.size) and (row := next(self._more, None)) is not None:
            self._reserve.append(row)
        if turn >= len(self._reserve):
            return None
        first = min(self._lanes.size, len(self._reserve))  # not one sample in the place of all
        return self._reserve[(place.at + turn) % first if turn < first else turn]

    def _following(self, place: Place) -> Iterator[Row]:
        """What can be used of the rest of the epoch, from the next block of the lane on."""
        head = _Head(self._shards)
        try:
            for block, lane in self._lanes.others(place):
                yield from self._usable(head.take(self._lanes.spans(place.epoch, block, lane)))
        finally:
            head.close()

    def close(self) -> None:
        self._head.close()
