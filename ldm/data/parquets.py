"""Parquet files as shards of a stream: rows in the order they are stored, and from any row group on.

pyarrow reads them, as it does for ``datasets``; but that reads whole groups of rows ahead, which for pictures are many
megabytes in every lane, cannot begin at a group, and does not tell which rows a damage takes. See
``benchmarks/streaming.py`` for both side by side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ldm.data.cursor import Row
from ldm.data.known_shards import remembered
from ldm.data.shards import open_shard, short_names
from ldm.errors import UserError, need

_BATCH = 16  # rows turned into Python's objects at a time
_BUFFER = 2**20  # bytes of each column that are read at a time


class ParquetShards:
    """Parquet files and their rows.

    Args:
        places: paths or URLs.
        columns: that are read.

    Raises:
        UserError: a file cannot be reached, or is no parquet file.
    """

    def __init__(self, places: Sequence[str], columns: Sequence[str]) -> None:
        self._places, self._columns = list(places), list(columns)
        self.names = short_names(self._places)
        self._groups: list[list[int]] = remembered(self._places, _rows_of_groups, "counting rows")
        self.counts = [sum(groups) for groups in self._groups]

    def open(self, shard: int) -> ParquetReader:
        return ParquetReader(self._places[shard], self.names[shard], self._groups[shard], self._columns)


class ParquetReader:
    """Reads the rows of a parquet file in sequence.

    Args:
        place: its path or URL.
        name: of the file, in the keys of its rows.
        groups: rows of each group.
        columns: that are read.
    """

    def __init__(self, place: str, name: str, groups: Sequence[int], columns: Sequence[str]) -> None:
        self._place, self._name, self._columns = place, name, columns
        self._ends = list(accumulate(groups))
        self._file: Any = open_shard(place)
        self._table = _open(place, self._file)
        self._next = 0
        self._rows: Iterator[dict[str, Any]] | None = None  # of one group, from ``_next`` on
        self._damage, self._lost = "", 0  # what is wrong with the rows before ``_lost``

    def take(self, count: int) -> list[Row]:
        """The next rows; those of a damaged group come with what is wrong."""
        return [self._row() for _ in range(count)]

    def skip(self, count: int) -> None:
        target = self._next + count
        if self._rows is not None and bisect_right(self._ends, target) == bisect_right(self._ends, self._next):
            self.take(count)
        else:
            self._next, self._rows = target, None  # the groups in between are not read

    def close(self) -> None:
        self._rows = None
        self._file.close()

    def _row(self) -> Row:
        number, self._next = self._next, self._next + 1
        key, group = f"{self._name}/{number}", bisect_right(self._ends, number)
        if number >= self._lost:
            try:
                if self._rows is None:
                    self._rows = self._read(group, number - self._first(group))
                row = _row(key, next(self._rows))
            except UserError:
                raise
            except Exception as error:  # of pyarrow, or of the codec of a column; what is lost is this group
                rows = f"rows {self._first(group):,} to {self._ends[group] - 1:,}"
                self._damage = f"{self._place} is damaged in {rows}: {error}"
                self._lost = self._ends[group]
            else:
                self._rows = None if self._next == self._ends[group] else self._rows
                return row
        self._rows = None
        return Row(key, {}, self._damage)

    def _first(self, group: int) -> int:
        return self._ends[group - 1] if group else 0

    def _read(self, group: int, before: int) -> Iterator[dict[str, Any]]:
        """The rows of a group behind its first ``before``, by column, as pyarrow's scalars."""
        for batch in self._table.iter_batches(_BATCH, row_groups=[group], columns=self._columns):
            for row in range(min(before, len(batch)), len(batch)):
                yield {column: batch.column(column)[row] for column in self._columns}
            before = max(0, before - len(batch))


def schema_of(place: str) -> Any:
    """pyarrow's schema of a parquet file.

    Raises:
        UserError: it cannot be reached, or is no parquet file.
    """
    with open_shard(place) as file:
        return _open(place, file).schema_arrow


def _rows_of_groups(place: str) -> list[int]:
    with open_shard(place) as file:
        footer = _open(place, file).metadata
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def _open(place: str, file: Any) -> Any:
    try:
        return need("pyarrow.parquet", "stream").ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)
    except (need("pyarrow", "stream").ArrowException, OSError) as error:
        raise UserError(f"{place} is no parquet file, or is damaged: {error}") from error


def _row(key: str, values: dict[str, Any]) -> Row:
    parts, trouble = {}, ""
    for column, value in values.items():
        try:
            parts[column] = value.as_py()
        except UnicodeDecodeError:
            trouble = f"{key}: {column} is not valid UTF-8"
    return Row(key, parts, trouble)
