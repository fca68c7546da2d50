"""Sources that are read from the front of their shards and never as a whole.

Each lane (see ``ldm.data.lanes``) is read by a cursor that holds one block of samples as they are stored, not decoded:
memory does not grow. A cursor is opened when its lane is first asked for, so that a worker reads its own lanes only.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from pydantic import Field

from ldm.data.example import BadExample, Example, Words
from ldm.data.lanes import Lanes, Place
from ldm.data.pictures import PictureConfig, read_skipped
from ldm.errors import UserError


class StreamConfig(PictureConfig):
    """What the settings of all streams have.

    Attributes:
        classes: how many there are, where samples have labels: 0 .. classes - 1.
        shuffle: so many samples are held, over all lanes, to be shuffled; 1 keeps the order within shards.
        processes, workers: how many may share the reading without anything being read twice. Numbers of processes that
            divide ``processes``, and of workers per process that divide ``workers``, do so; others work too, and see
            the same samples in the same order, but several of them read one lane. The order depends on both settings.
    """

    classes: int | None = Field(default=None, ge=1)
    shuffle: int = Field(default=4096, ge=1)
    processes: int = Field(default=8, ge=1)
    workers: int = Field(default=4, ge=1)


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
    """The shards of a source.

    Attributes:
        names: what messages call them; the keys of their samples begin so.
        counts: samples in each.
    """

    names: Sequence[str]
    counts: Sequence[int]

    def open(self, shard: int, first: int) -> Reader:
        """Open a shard before its sample number ``first``.

        Raises:
            UserError: it cannot be reached.
        """
        ...

    def listing(self) -> bytes:
        """A digest that changes when a shard does."""
        ...


class Stream(abc.ABC):
    """A source whose samples come in an order of its own; see ``Source``.

    Args:
        config: its settings.
        name: what to call it.
        shards: where the samples are.
        captioned: whether they have captions.

    Raises:
        UserError: there are no samples, or the list of samples to leave out is of other data.
    """

    stream = True
    sizes = None

    def __init__(self, config: StreamConfig, name: str, shards: Shards, captioned: bool) -> None:
        self.name, self.captioned, self.num_classes = name, captioned, config.classes
        self.channels = 3 if config.colours == "rgb" else 1
        self._config, self._shards = config, shards
        self._skipped = read_skipped(config.skip)
        if not sum(shards.counts):
            raise UserError(f"{name} has no samples")
        if self._skipped and not any(key.startswith(f"{shard}/") for key in self._skipped for shard in shards.names):
            raise UserError(f"skip: no line of {config.skip} is of a shard of {name}; the first is {min(self._skipped)!r}")
        self._cursors: dict[int, _Cursor] = {}
        self._owner = os.getpid()
        self.arrange(1, 0)

    def __len__(self) -> int:
        return self._lanes.total

    def arrange(self, per_step: int, seed: int) -> None:
        """Say how many samples a step has, over all processes, and the run's seed: what the order depends on."""
        config = self._config
        self._close()
        self._lanes = Lanes(
            self._shards.counts,
            seed,
            per_step,
            processes=config.processes,
            workers=config.workers,
            shuffle=config.shuffle,
        )

    def read(self, index: int, least: tuple[int, int] | None = None, turn: int = 0) -> Example:
        """Open sample number ``index`` of the stream, or, with ``turn`` above 0, one that may stand in its place.

        Raises:
            BadExample: it cannot be used; the next ``turn`` may be.
            UserError: its shard cannot be reached, or nothing can stand in its place.
        """
        if os.getpid() != self._owner:  # a fork has the files of its parent, and would move what that one reads
            self._cursors, self._owner = {}, os.getpid()
        place = self._lanes.place(index)
        if place.lane not in self._cursors:
            self._cursors[place.lane] = _Cursor(self._shards, self._lanes, self._skipped)
        row = self._cursors[place.lane].find(place, turn)
        if row is None:
            raise UserError(f"{self.name}: no sample can stand in the place of those that cannot be used")
        return self._open(row, least)

    def scan(self) -> Iterator[tuple[str, Callable[[], Example]]]:
        """Every sample once, as they are stored: its key, and what opens it."""
        for shard, count in enumerate(self._shards.counts):
            reader = self._shards.open(shard, 0)
            try:
                for _ in range(count):
                    for row in reader.take(1):
                        if row.key not in self._skipped:
                            yield row.key, partial(self._open, row)
            finally:
                reader.close()

    def listing(self) -> bytes:
        """A digest of what the samples are, taken without reading them: caches are known by it."""
        return self._shards.listing()

    def key(self, index: int) -> str:
        raise TypeError("the samples of a stream have keys once they are read")

    def words(self, index: int) -> Words:
        raise TypeError("the samples of a stream have words once they are read")

    @abc.abstractmethod
    def _example(self, row: Row, least: tuple[int, int] | None) -> Example:
        """Decode a sample.

        Raises:
            BadExample: it cannot be used.
        """

    def _open(self, row: Row, least: tuple[int, int] | None = None) -> Example:
        if row.trouble:
            raise BadExample(row.key, row.trouble)
        return self._example(row, least)

    def _close(self) -> None:
        if os.getpid() == self._owner:
            for cursor in self._cursors.values():
                cursor.close()
        self._cursors = {}

    def __getstate__(self) -> dict[str, Any]:  # open files stay in their process
        return {**self.__dict__, "_cursors": {}}


class _Cursor:
    """Reads a lane: one block at a time, and one shard."""

    def __init__(self, shards: Shards, lanes: Lanes, skipped: frozenset[str]) -> None:
        self._shards, self._lanes, self._skipped = shards, lanes, skipped
        self._reader: Reader | None = None
        self._shard, self._next = -1, 0  # what ``_reader`` reads, and the sample that comes next
        self._blocks: dict[bool, tuple[tuple[int, int, int], list[Row]]] = {}  # the block itself; one that stands in

    def find(self, place: Place, turn: int) -> Row | None:
        """The sample at a place; or the ``turn``-th that may stand in for it, if there is one."""
        rows = self._block(place, place.block)
        row = rows[place.at]
        if row.key not in self._skipped:
            if turn == 0:
                return row
            turn -= 1
        # Where a whole block cannot be used, as behind a damage, those after it have to help.
        for further in range(blocks := self._lanes.blocks(place.epoch, place.lane)):
            rows = self._block(place, (place.block + further) % blocks)
            usable = [row for row in rows if not row.trouble and row.key not in self._skipped]
            if turn < len(usable):
                return usable[(place.at + turn) % len(usable)]
            turn -= len(usable)
        return None

    def _block(self, place: Place, block: int) -> list[Row]:
        wanted, main = (place.epoch, place.lane, block), block == place.block
        held = self._blocks.get(main)
        if held is None or held[0] != wanted:
            self._blocks.pop(main, None)  # not two blocks at once
            spans = self._lanes.spans(*wanted)
            if not main:
                reading = _Cursor(self._shards, self._lanes, self._skipped)
                rows = [row for span in spans for row in reading._take(*span)]
                reading.close()
            else:
                rows = [row for span in spans for row in self._take(*span)]
            held = self._blocks[main] = (wanted, rows)
        return held[1]

    def _take(self, shard: int, first: int, last: int) -> list[Row]:
        if self._reader is None or shard != self._shard or first < self._next:
            self.close()
            self._reader, self._shard, self._next = self._shards.open(shard, first), shard, first
        self._reader.skip(first - self._next)
        rows, self._next = self._reader.take(last - first), last
        if last == self._shards.counts[shard]:
            self.close()
        return rows

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
