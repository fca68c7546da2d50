"""Parquet files as shards of a stream: rows in the order they are stored, and from any row group on.

pyarrow reads them, as it does for ``datasets``; but where that takes whole groups of rows into memory, which are a
gigabyte in many sets of pictures, here a lane holds a few megabytes (see ``benchmarks/streaming.py``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ldm.data.shards import digest, open_shard, remembered, short_names
from ldm.data.streaming import Row
from ldm.errors import UserError, need

_BATCH = 16  # rows turned into Python's objects at a time
_BUFFER = 2**20  # bytes of each column that are read at a time


class ParquetShards:
    """Parquet files and their rows.

    Args:
        places: paths or URLs.
        columns: that are read.

    Attributes:
        schema: pyarrow's, of the first file.

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

    def listing(self) -> bytes:
        return digest(self.names, self._places, self.counts, self._columns)


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
        self._next, self._rows, self._damage = 0, None, ""

    def take(self, count: int) -> list[Row]:
        """The next rows; those that a damaged file no longer gives come with what is wrong."""
        return [self._row() for _ in range(count)]

    def skip(self, count: int) -> None:
        group, target = bisect_right(self._ends, self._next), self._next + count
        if self._rows is None or bisect_right(self._ends, target) > group:
            self._next, self._rows = target, None  # the groups of rows in between are not read
        else:
            self.take(count)

    def close(self) -> None:
        self._rows = None
        self._file.close()

    def _row(self) -> Row:
        if self._rows is None and not self._damage:
            self._rows = self._read_from(self._next)
        key, self._next = f"{self._name}/{self._next}", self._next + 1
        arrow = need("pyarrow", "stream")
        try:
            if not self._damage:
                return _row(key, next(self._rows or iter(())))
        except UserError:
            raise
        except StopIteration:
            self._damage = f"{self._place} ends after {self._next - 1} of {self._ends[-1]} rows"
        except (arrow.ArrowException, OSError, ValueError) as error:
            self._damage = f"{self._place} is damaged behind its first {self._next - 1} rows: {error}"
        return Row(key, {}, self._damage)

    def _read_from(self, first: int) -> Iterator[dict[str, Any]]:
        """The rows from ``first`` on, by column, as pyarrow's scalars."""
        group = bisect_right(self._ends, first)
        before = first - (self._ends[group - 1] if group else 0)
        file = _open(self._file)
        groups = range(group, len(self._ends))
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=self._columns):
            for row in range(min(before, len(batch)), len(batch)):
                yield {column: batch.column(column)[row] for column in self._columns}
            before = max(0, before - len(batch))


def schema_of(place: str) -> Any:
    """pyarrow's schema of a parquet file.

    Raises:
        UserError: it cannot be reached, or is no parquet file.
    """
    with open_shard(place) as file:
        return _checked(place, file).schema_arrow


def _rows_of_groups(place: str) -> list[int]:
    with open_shard(place) as file:
        footer = _checked(place, file).metadata
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


def _checked(place: str, file: Any) -> Any:
    try:
        return _open(file)
    except (need("pyarrow", "stream").ArrowException, OSError) as error:
        raise UserError(f"{place} is no parquet file, or is damaged: {error}") from error


def _open(file: Any) -> Any:
    return need("pyarrow.parquet", "stream").ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)


def _row(key: str, values: dict[str, Any]) -> Row:
    parts, trouble = {}, ""
    for column, value in values.items():
        try:
            parts[column] = value.as_py()
        except UnicodeDecodeError:
            trouble = f"{key}: {column} is not valid UTF-8"
    return Row(key, parts, trouble)
