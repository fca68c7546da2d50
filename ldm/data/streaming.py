"""Sources that are read from the front of their shards and never as a whole.

Each lane (see ``ldm.data.lanes``) is read by a cursor that holds one block of samples as they are stored, not decoded:
memory does not grow. A cursor is opened when its lane is first asked for, so that a worker reads its own lanes only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor

from ldm.data.cursor import Cursor, Row, Shards
from ldm.data.example import BadExample, Example, Source, Words
from ldm.data.labels import number_labels
from ldm.data.lanes import Lanes
from ldm.data.mixture import Mixture
from ldm.data.pictures import PictureConfig, read_skipped
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


class Stream:
    """A source whose samples come in an order of its own; see ``Source``.

    Args:
        config: its settings.
        name: what to call it.
        shards: where the samples are.
        captioned: whether they have captions.
        example: makes an example of a sample as it is stored; raises ``BadExample``. It goes to other processes.

    Attributes:
        instead: the settings that make an ordinary source of the same samples.

    Raises:
        UserError: there are no samples, or the list of samples to leave out is of other data.
    """

    stream: bool = True
    instead: str
    sizes: Tensor | None = None

    def __init__(
        self, config: StreamConfig, name: str, shards: Shards, captioned: bool, example: Callable[[Row, Least], Example]
    ) -> None:
        self.name, self.captioned = name, captioned
        self.num_classes = len(config.class_names) if config.class_names else None
        self.channels = 3 if config.colours == "rgb" else 1
        self._config, self._shards, self._example = config, shards, example
        if not sum(shards.counts):
            raise UserError(f"{name} has no samples")
        self._skipped = skipped_of(config.skip, shards.names, name)
        self._cursors: dict[int, Cursor] = {}
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
            cursors[place.lane] = Cursor(self._shards, self._lanes, self._skipped)
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

    def key(self, index: int) -> str:
        raise TypeError("the samples of a stream have keys once they are read")

    def stamp(self, index: int) -> str:
        raise TypeError("the samples of a stream have no stamps")

    def words(self, index: int) -> Words:
        raise TypeError("the samples of a stream have words once they are read")

    def _own_cursors(self) -> dict[int, Cursor]:
        if os.getpid() != self._owner:  # a fork has the open files of its parent, and would move its places in them
            self._cursors, self._owner = {}, os.getpid()
        return self._cursors

    def __getstate__(self) -> dict[str, Any]:  # open files stay in their process
        return {**self.__dict__, "_cursors": {}}


def no_stream(use: str, source: Source, otherwise: str) -> UserError:
    """What to say where a stream will not do, as samples are to be found again, or known before they are read.

    Args:
        use: what wants that of the samples.
        source: with a stream in it.
        otherwise: what to do where the source is to stay a stream.
    """
    parts = source.parts if isinstance(source, Mixture) else (source,)
    stream = next(cast(Stream, part) for part in parts if part.stream)
    told = f"{use}, and {stream.name} is a stream, whose samples come as they come"
    return UserError(f"{told}: {stream.instead}; or {otherwise}")


def _open(example: Callable[[Row, Least], Example], row: Row, least: Least = None) -> Example:
    if row.trouble:
        raise BadExample(row.key, row.trouble)
    return example(row, least)


def skipped_of(path: Path | None, shards: Sequence[str], name: str) -> frozenset[str]:
    """The keys in a list of samples of shards to leave out.

    Raises:
        UserError: the list cannot be read, or is of other data.
    """
    keys = read_skipped(path)
    if keys and {folder for key in keys for folder in _folders(key)}.isdisjoint(shards):
        raise UserError(f"skip: no line of {path} is of a shard of {name}; one is {min(keys)!r}")
    return keys


def _folders(key: str) -> Iterator[str]:
    parts = key.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))
