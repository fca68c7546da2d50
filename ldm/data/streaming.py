"""Sources that are read from the front of their shards and never as a whole.

Each lane (see ``ldm.data.lanes``) is read by a cursor that holds one block of samples as they are stored, not decoded:
memory does not grow. A cursor is opened when its lane is first asked for, so that a worker reads its own lanes only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field

from ldm.data.example import BadExample, Example, Words
from ldm.data.labels import number_labels
from ldm.data.lanes import Lanes, Place, Span
from ldm.data.pictures import PictureConfig
from ldm.errors import UserError

Least = tuple[int, int] | None


class StreamConfig(PictureConfig):
    """What the settings of all streams have.

    Attributes:
        classes: where samples have labels, how many there are, or their names in order.
        shuffle: so many samples are held, over all lanes, to be shuffled; 1 keeps the order within shards.
        processes, workers: how many may share the reading without anything being read twice. Numbers of processes that
            divide ``processes``, and of workers per process that divide ``workers``, do so; others work too, and see
            the same samples in the same order, but several of them read one lane. A process that accumulates n batches
            counts as n. The order depends on both settings, and at the front of its lane in every epoch a reader has
            to find its place in a shard: there should be many more shards than processes times workers.
    """

    classes: Annotated[int, Field(ge=1)] | tuple[str, ...] | None = None
    shuffle: int = Field(default=4096, ge=1)
    processes: int = Field(default=8, ge=1)
    workers: int = Field(default=4, ge=1)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """How classes are written, by number."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else self.classes

    def label(self, given: object, key: str, where: str) -> int:
        """The number of a class as it is written.

        Raises:
            BadExample: it is none of the classes; the message begins with ``where``.
        """
        labels = number_labels([given], self.class_names)
        if labels.numbers[0] is None:
            raise BadExample(key, f"{where} {labels.fault(0)}")
        return labels.numbers[0]


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

    def listing(self) -> bytes:
        """A digest that changes when a shard does."""
        ...


class Stream:
    """A source whose samples come in an order of its own; see ``Source``.

    Args:
        config: its settings.
        name: what to call it.
        shards: where the samples are.
        captioned: whether they have captions.
        example: makes an example of a sample as it is stored; raises ``BadExample``. It goes to other processes.

    Raises:
        UserError: there are no samples, or the list of samples to leave out is of other data.
    """

    stream = True
    sizes = None

    def __init__(
        self, config: StreamConfig, name: str, shards: Shards, captioned: bool, example: Callable[[Row, Least], Example]
    ) -> None:
        self.name, self.captioned = name, captioned
        self.num_classes = len(config.class_names) if config.class_names else None
        self.channels = 3 if config.colours == "rgb" else 1
        self._config, self._shards, self._example = config, shards, example
        if not sum(shards.counts):
            raise UserError(f"{name} has no samples")
        self._skipped = _skipped(config.skip, shards.names, name)
        self._cursors: dict[int, _Cursor] = {}
        self._owner = os.getpid()
        self.arrange(1, 0)

    def __len__(self) -> int:
        return self._lanes.total

    def arrange(self, per_step: int, seed: int) -> None:
        """Say how many samples a step has, over all processes, and the run's seed: what the order depends on."""
        config = self._config
        for cursor in self._own_cursors().values():
            cursor.close()
        self._cursors.clear()
        self._lanes = Lanes(
            self._shards.counts,
            seed,
            per_step,
            processes=config.processes,
            workers=config.workers,
            shuffle=config.shuffle,
        )

    def read(self, index: int, least: Least = None, turn: int = 0) -> Example:
        """Open sample number ``index`` of the stream, or, with ``turn`` above 0, one that may stand in its place.

        Raises:
            BadExample: it cannot be used; with the next ``turn`` there may be one that can.
            UserError: its shard cannot be reached, or nothing can stand in its place.
        """
        place, cursors = self._lanes.place(index), self._own_cursors()
        if place.lane not in cursors:
            cursors[place.lane] = _Cursor(self._shards, self._lanes, self._skipped)
        row = cursors[place.lane].find(place, turn)
        if row is None:
            raise UserError(f"{self.name}: no sample can stand in the place of those that cannot be used")
        return _open(self._example, row, least)

    def scan(self) -> Iterator[tuple[str, Callable[[], Example]]]:
        """Every sample once, as they are stored: its key, and what opens it."""
        for shard, count in enumerate(self._shards.counts):
            reader = self._shards.open(shard)
            try:
                for _ in range(count):
                    (row,) = reader.take(1)
                    if row.key not in self._skipped:
                        yield row.key, partial(_open, self._example, row)
            finally:
                reader.close()

    def listing(self) -> bytes:
        """A digest of all that ``scan`` gives, taken without reading it: caches are known by it."""
        return self._shards.listing()

    def key(self, index: int) -> str:
        raise TypeError("the samples of a stream have keys once they are read")

    def words(self, index: int) -> Words:
        raise TypeError("the samples of a stream have words once they are read")

    def _own_cursors(self) -> dict[int, _Cursor]:
        if os.getpid() != self._owner:  # a fork has the open files of its parent, and would move its places in them
            self._cursors, self._owner = {}, os.getpid()
        return self._cursors

    def __getstate__(self) -> dict[str, Any]:  # open files stay in their process
        return {**self.__dict__, "_cursors": {}}


def _open(example: Callable[[Row, Least], Example], row: Row, least: Least = None) -> Example:
    if row.trouble:
        raise BadExample(row.key, row.trouble)
    return example(row, least)


def _skipped(path: Path | None, shards: Sequence[str], name: str) -> frozenset[str]:
    """The keys in a list of samples to leave out."""
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"skip: the list {path} cannot be read: {error}") from error
    keys = frozenset(line.rstrip("\r") for line in lines) - {""}
    if keys and {folder for key in keys for folder in _folders(key)}.isdisjoint(shards):
        raise UserError(f"skip: no line of {path} is of a shard of {name}; one is {min(keys)!r}")
    return keys


def _folders(key: str) -> Iterator[str]:
    parts = key.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


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


class _Cursor:
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
