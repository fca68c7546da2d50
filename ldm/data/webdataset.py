"""WebDataset tars, as img2dataset writes them: ``000123.jpg``, ``000123.json`` and ``000123.txt`` follow each other.

They are read as a stream; or, listed once, as pictures at random access: ``ldm.data.indexed_tars``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from ldm.data.cursor import Row
from ldm.data.decode import decode
from ldm.data.example import BadExample, Example, Words
from ldm.data.pictures import Columns, as_tuple, clean
from ldm.data.streaming import Least, Stream, StreamConfig
from ldm.data.tars import Tars, TarShards
from ldm.errors import IdleError, UserError

_JSON = "json"
_LOOKED_AT = 20  # samples at the front, to see whether what the settings name is there


class WebDatasetConfig(StreamConfig):
    """Tar shards, on a disk or behind a URL.

    Attributes:
        path: a folder of tars, a tar, or a pattern: ``*`` on disks and where files can be listed, ``{00000..00099}``
            anywhere; or several of these. URLs are whatever fsspec opens: ``https://``, ``s3://``,
            ``hf://datasets/...``.
        extensions: of pictures; of several pictures in a sample, that of the first extension here.
        caption_key: extension of the file that is the caption, or ``json:KEY`` for a value of the sample's ``.json``,
            text or a list of texts; or several of these, all of which have to be there; null for none.
        label_key: extension of the file that holds the class, or ``json:KEY``.
        indexed: all tars are read through once, to list where their samples are, and from then on a sample is opened
            wherever it is: shuffled as a whole, and with caches, buckets and a validation split, as for a folder. The
            list is kept in the user's cache. The pictures stay in the tars, which should be near, best on a disk.
            ``shuffle``, ``processes`` and ``workers`` are of streams, and do nothing then.
    """

    source: Literal["webdataset"] = "webdataset"
    path: str | tuple[str, ...]
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption_key: Columns = "txt"
    label_key: str | None = None
    indexed: bool = False

    @model_validator(mode="after")
    def _check(self) -> WebDatasetConfig:
        for name in ("shuffle", "processes", "workers"):
            if self.indexed and getattr(self, name) != type(self).model_fields[name].default:
                raise IdleError(name, f"{name} does nothing while indexed is true: samples come in any order")
        if (self.label_key is None) != (self.classes is None):
            raise UserError("label_key and classes go together: where the class of a sample is, and which there are")
        for name in ("path", "extensions"):
            if not getattr(self, name):
                raise UserError(f"{name} should name at least one")
        return self


class WebDatasetSource(Stream):
    """Samples of tar shards.

    Raises:
        UserError: there are no shards, they cannot be reached, or their first samples have nothing of what the
            settings name.
    """

    instead = "set `indexed: true` beside `source: webdataset`, and the tars are listed once"

    def __init__(self, config: WebDatasetConfig) -> None:
        tars, name = open_tars(config)
        super().__init__(config, name, TarShards(tars), bool(as_tuple(config.caption_key)), Reading(config))


def open_tars(config: WebDatasetConfig) -> tuple[Tars, str]:
    """The tars of a source, and what to call it.

    Raises:
        UserError: there are none, they cannot be reached, or their first samples have nothing of what the settings
            name.
    """
    places = as_tuple(config.path)
    name = f"webdataset {places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    others = {key.partition(":")[0] for key in _keys(config)}
    tars = Tars(places, config.extensions, sorted(others))
    _check_first(tars, config, name)
    return tars, name


def _keys(config: WebDatasetConfig) -> tuple[str, ...]:
    """Where words are: ``ENDING`` or ``json:KEY`` each."""
    return as_tuple(config.caption_key) + as_tuple(config.label_key)


def _check_first(tars: Tars, config: WebDatasetConfig, name: str) -> None:
    """A wrong key would make every sample a bad one: say it at once, and what there is."""
    rows, endings = tars.first(_LOOKED_AT)
    if not rows:
        return
    there = ", ".join(f".{ending}" for ending in endings)
    if not set(config.extensions) & set(endings):
        wanted = _any_of(config.extensions)
        raise UserError(f"extensions: the first samples of {name} have no {wanted} files, but {there}")
    fields = {field for row in rows if _JSON in row.parts for field in _fields(row.parts[_JSON])}
    for key in _keys(config):
        ending, _, field = key.partition(":")
        if ending not in endings:
            raise UserError(f"{key}: the first samples of {name} have no .{ending} files, but {there}")
        if field and field not in fields:
            raise UserError(f"{key}: the .json files of {name} have no {field!r}, but {', '.join(sorted(fields))}")


def _any_of(endings: Sequence[str]) -> str:
    return " or ".join(f".{ending}" for ending in endings)


def _fields(document: bytes) -> dict[str, Any]:
    """What a JSON file says; nothing where it is none."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Reading:
    """Makes an example of a sample."""

    config: WebDatasetConfig

    def __call__(self, row: Row, least: Least) -> Example:
        words = self.words(row)
        image, original = decode(
            self.picture(row),
            row.key,
            channels=1 if self.config.colours == "grey" else 3,
            background=self.config.background,
            least=least,
        )
        return Example(image, words.label, words.captions, row.key, original)

    def picture(self, row: Row) -> Any:
        """What there is of the picture of a sample.

        Raises:
            BadExample: it has none.
        """
        return row.parts[self._ending(row)]

    def words(self, row: Row) -> Words:
        """Label and captions of a sample, whose picture need not have been read.

        Raises:
            BadExample: it has no picture, or they cannot be used.
        """
        name = row.key.removesuffix(f".{self._ending(row)}")
        captions = tuple(text for key in as_tuple(self.config.caption_key) for text in _texts(row, name, key))
        if self.config.label_key is None:
            return Words(None, captions)
        value, where = _value(row, name, self.config.label_key)
        return Words(self.config.label(value, row.key, where), captions)

    def _ending(self, row: Row) -> str:
        picture = next((ending for ending in self.config.extensions if ending in row.parts), None)
        if picture is None:
            raise BadExample(row.key, f"{row.key} has no picture: no {_any_of(self.config.extensions)} file")
        return picture


def _texts(row: Row, name: str, key: str) -> list[str]:
    """The captions under a key of the settings."""
    value, where = _value(row, name, key)
    values = value if isinstance(value, list) and value else [value]
    return [clean(one, row.key, where) for one in values]


def _value(row: Row, name: str, key: str) -> tuple[Any, str]:
    """What a sample has under a key of the settings, None where there is nothing; and what messages call it."""
    ending, _, field = key.partition(":")
    where = f"{name}.{ending}"
    if ending not in row.parts:
        return None, where
    try:
        text = row.parts[ending].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadExample(row.key, f"{where} is not valid UTF-8") from error
    if not field:
        return text, where
    try:
        return json.loads(text).get(field), f"{field} in {where}"
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadExample(row.key, f"{where} holds no keys and values in JSON") from error
