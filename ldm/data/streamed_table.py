"""Tables of pictures that are read from the front and never as a whole: parquet files, and data sets of the hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from ldm.data.cursor import Row
from ldm.data.decode import decode
from ldm.data.example import BadExample, Example
from ldm.data.parquets import ParquetShards, schema_of
from ldm.data.pictures import Columns, as_tuple, clean_all
from ldm.data.shards import find_shards
from ldm.data.streaming import Least, Stream, StreamConfig
from ldm.data.table import check_columns
from ldm.errors import UserError, need

_PARQUET = ".parquet"


class StreamedTableConfig(StreamConfig):
    """Rows of parquet files, or of a hub data set that is kept in such.

    Attributes:
        path: a file, a folder, a pattern with ``*`` or ``{000..123}``, a URL; or several of these. Or ``hub``.
        hub: a name on the hub, such as ``owner/name``.
        name: of the configuration of a hub data set, where there are several.
        split: which part of a hub data set.
        revision: branch, tag or commit of a hub data set. In ``refs/convert/parquet`` the hub keeps data sets of other
            formats as parquet files.
        image_column: the pictures: encoded files, as bytes or as ``{bytes, path}``.
        caption_column: the captions, texts or lists of texts; several columns are several captions; null: none.
        label_column: the classes, as numbers or names; ``classes`` says which there are, where the table does not.
    """

    source: Literal["stream"] = "stream"
    path: Columns = None
    hub: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str = "image"
    caption_column: Columns = "text"
    label_column: str | None = None

    @model_validator(mode="after")
    def _check(self) -> StreamedTableConfig:
        if bool(self.path) == bool(self.hub):
            raise UserError("exactly one of path and hub should be given: files, or a name on the hub")
        if self.path and (self.name or self.revision or self.split != "train"):
            raise UserError("name, split and revision are for a hub data set, and path names files")
        if self.classes is not None and self.label_column is None:
            raise UserError("classes does nothing without a label_column")
        return self


class StreamedTableSource(Stream):
    """Rows of parquet files, one after the other.

    Raises:
        UserError: there are none, they cannot be reached, or they lack a column.
    """

    def __init__(self, config: StreamedTableConfig) -> None:
        paths = as_tuple(config.path)
        name = f"{config.hub} {config.split} (hub, streamed)" if config.hub else f"{', '.join(paths)} (streamed)"
        places = _hub_files(config) if config.hub else find_shards(paths, _PARQUET)
        captions = as_tuple(config.caption_column)
        columns = (config.image_column, *captions, *as_tuple(config.label_column))
        schema = schema_of(places[0])
        check_columns(schema.names, columns, name)
        _check_pictures(schema, config.image_column, name)
        config = _with_classes(config, schema, name)
        same = f"`source: hub` and `path: {config.hub}`" if config.hub else "`source: parquet`"
        self.instead = f"say {same} in place of `source: stream`"
        shards = ParquetShards(places, list(dict.fromkeys(columns)))
        super().__init__(config, name, shards, bool(captions), _Reading(config))


def _hub_files(config: StreamedTableConfig) -> list[str]:
    """The URLs of the files of a split of a hub data set, at one commit."""
    datasets = need("datasets", "stream")
    told = f"{config.hub} cannot be streamed"
    try:
        builder = datasets.load_dataset_builder(config.hub, config.name, revision=config.revision)
    except ConnectionError as error:
        raise UserError(f"{told}: the hub cannot be reached ({error})") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{told}: {error}") from error
    files = builder.config.data_files or {}
    if config.split not in files:
        raise UserError(f"{told}: it has no split {config.split!r} (it has {', '.join(map(repr, files)) or 'none'})")
    found = [str(file) for file in files[config.split]]
    other = next((file for file in found if not file.endswith(_PARQUET)), None)
    if other is not None:
        raise UserError(
            f"{told}: {other} is no parquet file. For tars there is source: webdataset, path: hf://datasets/...; of "
            "other formats the hub keeps a copy in revision: refs/convert/parquet, and source: hub downloads them first"
        )
    return found


def _check_pictures(schema: Any, column: str, name: str) -> None:
    arrow = need("pyarrow", "stream")
    kind = schema.field(column).type
    held = kind.field("bytes").type if arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (arrow.types.is_binary(held) or arrow.types.is_large_binary(held)):
        raise UserError(f"{name}: {column} holds {kind}, and should hold pictures as bytes or as {{bytes, path}}")


def _with_classes(config: StreamedTableConfig, schema: Any, name: str) -> StreamedTableConfig:
    """The settings with the names of the classes that the table has, where none are given."""
    if config.label_column is None or config.classes is not None:
        return config
    feature = need("datasets", "stream").Features.from_arrow_schema(schema)[config.label_column]
    names = getattr(feature, "names", None)
    if not names:
        raise UserError(f"{name} does not say which classes there are: give their number, or their names, as classes")
    return config.model_copy(update={"classes": tuple(names)})


@dataclass(frozen=True)
class _Reading:
    """Makes an example of a row."""

    config: StreamedTableConfig

    def __call__(self, row: Row, least: Least) -> Example:
        config, key = self.config, row.key
        captions, label = self._captions(row), None
        if config.label_column is not None:
            label = config.label(row.parts[config.label_column], key, f"{key}: {config.label_column}")
        held = row.parts[config.image_column]
        held = held["bytes"] if isinstance(held, dict) else held
        if held is None:
            raise BadExample(key, f"{key}: {config.image_column} is missing")
        image, original = decode(
            held, key, channels=1 if config.colours == "grey" else 3, background=config.background, least=least
        )
        return Example(image, label, captions, key, original)

    def _captions(self, row: Row) -> tuple[str, ...]:
        columns = as_tuple(self.config.caption_column)
        return clean_all([row.parts[column] for column in columns], row.key, f"{row.key}: {' or '.join(columns)}")
