"""Tables of pictures: parquet files, and data sets of the Hugging Face hub, both through ``datasets``.

``datasets`` keeps a table as an Arrow file in its cache and maps it into memory: a row is read when it is asked for,
and worker processes share what was read. Of a picture whose size alone is asked for, only the beginning is.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator

from ldm.data.decode import Stored
from ldm.data.example import BadExample, Words
from ldm.data.labels import number_labels
from ldm.data.pictures import Columns, PictureConfig, Pictures, as_tuple, clean_all
from ldm.errors import UserError, need


class TableConfig(PictureConfig):
    """What the settings of all tables have.

    Attributes:
        image_column: the pictures: encoded files, as bytes or as ``{bytes, path}``.
        caption_column: the captions, texts or lists of texts; several columns are several captions; null: none.
        label_column: the classes, as numbers or names.
        classes: the names of the classes in the order of their numbers; the table's own, or sorted, when not given.
        cache_dir: where ``datasets`` keeps its copy; its usual cache when not given.
    """

    image_column: str = "image"
    caption_column: Columns = "text"
    label_column: str | None = None
    classes: tuple[str, ...] | None = None
    cache_dir: Path | None = None

    @field_validator("classes")
    @classmethod
    def _each_once(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if given is not None and len(set(given)) != len(given):
            raise UserError("should name each class once")
        return given


class ParquetConfig(TableConfig):
    """Parquet files.

    Attributes:
        path: a file, a folder of them, or a pattern with ``*``; or several of these.
    """

    source: Literal["parquet"] = "parquet"
    path: str | tuple[str, ...]


class HubConfig(TableConfig):
    """A data set of the hub, or a folder, as ``datasets.load_dataset`` takes them.

    Attributes:
        path: the name on the hub, such as ``owner/name``, or a folder.
        name: of the configuration, where there are several.
        split: which part of the data set.
        revision: branch, tag or commit.
    """

    source: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class TableSource(Pictures):
    """Pictures in the rows of a table; the key of each is the number of its row."""

    def __init__(self, config: TableConfig, table: Any, name: str) -> None:
        captions = as_tuple(config.caption_column)
        labels = () if config.label_column is None else (config.label_column,)
        check_columns(table.column_names, (config.image_column, *captions, *labels), name)
        if config.classes is not None and not labels:
            raise UserError("classes does nothing without a label_column")
        super().__init__(config, name, table._fingerprint)  # of the data and of how they were read; there is no other
        self._column, self._captions = config.image_column, captions
        self._images = _undecoded(table, config.image_column, name)
        self._texts = table.select_columns(list(captions)) if captions else None
        self._label_column, self._labels = config.label_column, None
        self.captioned, self.num_classes, self.classes = bool(captions), None, config.classes
        if config.label_column is not None:
            self._number_labels(table, config.label_column)
        rows = range(len(table))
        self._arrange([str(row) for row in rows], [self._state(row) for row in rows])

    def _number_labels(self, table: Any, column: str) -> None:
        try:
            given = table[column][:]
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name}: {column} is not valid UTF-8") from error
        names = getattr(table.features[column], "names", None)
        if names is not None:
            given = [names[label] if label is not None and 0 <= label < len(names) else None for label in given]
        numbered = number_labels(given, self.classes or (names and tuple(names)))
        self.num_classes, self.classes = numbered.count, numbered.names
        self._labels = torch.tensor([-1 if number is None else number for number in numbered.numbers])
        wrong = torch.nonzero(self._labels < 0).flatten().tolist()
        self._unlabelled = {row: f"{self._label(row)} {numbered.fault(row)}" for row in wrong}

    def _label(self, row: int) -> str:
        return f"{self.name} row {row}: {self._label_column}"

    def _key(self, row: int) -> str:
        return str(row)

    def _words(self, row: int) -> Words:
        key, label = str(row), None
        if self._labels is not None:
            if row in self._unlabelled:
                raise BadExample(key, self._unlabelled[row])
            label = int(self._labels[row])
        return Words(label, self._read_captions(row, key))

    def _read_captions(self, row: int, key: str) -> tuple[str, ...]:
        if self._texts is None:
            return ()
        where = f"{self.name} row {row}: {' or '.join(self._captions)}"
        try:
            values = self._texts[row].values()
        except UnicodeDecodeError as error:
            raise BadExample(key, f"{where} is not valid UTF-8") from error
        return clean_all(list(values), key, where)

    def _stored(self, row: int) -> Stored:
        key, held = str(row), self._images[row].column(0)[0]
        path = None
        if isinstance(held, need("pyarrow", "hub").StructScalar):
            path = held["path"].as_py() if "path" in held else None
            held = held["bytes"]
        if held.is_valid:
            return need("pyarrow", "hub").BufferReader(held.as_buffer())
        if path is None:
            raise BadExample(key, f"{self.name} row {row}: {self._column} is missing")
        return Path(path)

    def _called(self, row: int) -> str:
        return f"{self.name} row {row}"

    def _state(self, row: int) -> bytes:
        return f"{self._home} {row}".encode()


class ParquetSource(TableSource):
    """Rows of parquet files."""

    def __init__(self, config: ParquetConfig) -> None:
        files = [name for given in as_tuple(config.path) for name in _parquet_files(given)]
        name = f"{', '.join(as_tuple(config.path))} (parquet)"
        table = _load(name, "parquet", data_files=files, split="train", cache_dir=config.cache_dir)
        super().__init__(config, table, name)


class HubSource(TableSource):
    """Rows of a data set of the hub."""

    def __init__(self, config: HubConfig) -> None:
        name = f"{config.path} {config.split} (hub)"
        options = {"split": config.split, "revision": config.revision, "cache_dir": config.cache_dir}
        super().__init__(config, _load(name, config.path, name=config.name, **options), name)


def _parquet_files(given: str) -> list[str]:
    if "://" in given:  # datasets opens it
        return [given]
    path = Path(given).expanduser()
    found = sorted(map(str, path.rglob("*.parquet") if path.is_dir() else glob.glob(str(path), recursive=True)))
    if not found:
        what = "holds no file that ends in .parquet" if path.is_dir() else "is no file, and no pattern of files"
        raise UserError(f"path: {given} {what}")
    return found


def _load(called: str, place: str, **options: Any) -> Any:
    datasets = need("datasets", "hub")
    try:
        return datasets.load_dataset(place, **options)
    except ConnectionError as error:
        told = "is not here, and the hub cannot be reached; without a network, give a folder or parquet files"
        raise UserError(f"{called} {told} ({error})") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # datasets wraps what went wrong while it read
        raise UserError(f"{called} cannot be read: {reason}") from error


def check_columns(there: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Refuse a table without a column that the settings name.

    Raises:
        UserError: it lacks one; the message has those that are there.
    """
    for column in wanted:
        if column not in there:
            told = "name another in image_column, caption_column or label_column; caption_column: null for none"
            raise UserError(f"{name} has no column {column!r} (it has {', '.join(map(repr, there))}): {told}")


def _undecoded(table: Any, column: str, name: str) -> Any:
    """The pictures as Arrow, encoded as they are stored."""
    datasets = need("datasets", "hub")
    feature = table.features[column]
    images = table.select_columns([column])
    if isinstance(feature, datasets.Image):
        images = images.cast_column(column, datasets.Image(decode=False))
    elif not (isinstance(feature, dict) and "bytes" in feature) and getattr(feature, "dtype", "") not in (
        "binary",
        "large_binary",
    ):
        raise UserError(f"{name}: {column} holds {feature}, and should hold pictures as bytes or as {{bytes, path}}")
    return images.with_format("arrow")
