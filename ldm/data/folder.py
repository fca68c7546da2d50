"""Folders of pictures, in every layout that people have them in.

| layout | captions and labels |
|---|---|
| ``metadata`` | ``metadata.jsonl``, ``.csv`` or ``.parquet``, in any folder, with ``file_name`` and ``text`` |
| ``kohya`` | folders ``10_name``: ten times as often; a caption file beside each picture, or else ``name`` |
| ``captions`` | a caption file beside each picture |
| ``classes`` | a folder for each class |
| ``plain`` | none |

These are read here and not by ``datasets``, whose reader of folders knows the first and the fourth of them only, and
fails as a whole over one line or one missing file, which it cannot name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ldm.data.decode import Stored
from ldm.data.example import BadExample, Words
from ldm.data.folder_files import FolderFiles
from ldm.data.folder_rows import Row, find_rows
from ldm.data.packed import Packed
from ldm.data.pictures import Columns, PictureConfig, Pictures, as_tuple, clean
from ldm.errors import UserError

Layout = Literal["auto", "metadata", "captions", "kohya", "classes", "plain"]
_OF_LAYOUTS = {  # settings that only some layouts have a use for
    "caption_column": ("metadata",),
    "label_column": ("metadata",),
    "caption_extension": ("captions", "kohya"),
    "caption": ("classes", "plain"),
    "classes": ("classes", "metadata"),
}


class FolderConfig(PictureConfig):
    """A folder of pictures.

    Attributes:
        path: the folder; folders in it are looked into, but for those whose names begin with a dot.
        layout: where captions and labels are; ``auto`` takes the first of ``metadata``, ``kohya``, ``captions``,
            ``classes`` and ``plain`` that fits.
        caption_column: of ``metadata``: the column with the caption; several columns are several captions; null: none.
        label_column: of ``metadata``: the column with the class, as a number or a name.
        caption_extension: of caption files; where a picture has files of several, it has several captions.
        caption: for ``classes``, the caption of every picture, such as ``"a photo of a {label}"``; for ``plain``, too,
            without a label.
        classes: the names of the classes in the order of their numbers; sorted when not given.
    """

    source: Literal["folder"] = "folder"
    path: Path
    layout: Layout = "auto"
    caption_column: Columns = "text"
    label_column: str | None = None
    caption_extension: str | tuple[str, ...] = (".txt", ".caption")
    caption: Annotated[str, Field(pattern=r"\S")] | None = None
    classes: tuple[str, ...] | None = None

    @field_validator("caption_extension")
    @classmethod
    def _with_dots(cls, given: str | tuple[str, ...]) -> tuple[str, ...]:
        extensions = tuple(ending if ending.startswith(".") else f".{ending}" for ending in as_tuple(given))
        if not extensions or "." in extensions:
            raise UserError("should name at least one ending, such as .txt")
        return extensions

    @model_validator(mode="after")
    def _check(self) -> FolderConfig:
        if self.layout != "auto":
            self.check_used(self.layout)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise UserError("classes should name each class once")
        return self

    def check_used(self, layout: str) -> None:
        """Refuse settings that do nothing in a layout.

        Raises:
            UserError: for the first of them.
        """
        for name, layouts in _OF_LAYOUTS.items():
            if layout not in layouts and getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(
                    f"{name} does nothing for a folder with layout {layout} (only with {' or '.join(layouts)})"
                )


class FolderSource(Pictures):
    """Pictures in a folder; the key of each is its path in that folder."""

    def __init__(self, config: FolderConfig) -> None:
        self._files = FolderFiles(config.path.expanduser())
        found = find_rows(self._files, config)
        config.check_used(found.layout)
        super().__init__(config, f"{config.path} ({found.layout})", os.path.realpath(self._files.root))
        self.captioned, self.num_classes, self.orphans = found.captioned, found.num_classes, found.orphans
        self.layout, self.classes = found.layout, found.classes
        self._rows = Packed.of([json.dumps(row, separators=(",", ":")).encode() for row in found.rows])
        states = [self._state_of(row.path) for row in found.rows]
        self._arrange([row.key for row in found.rows], states, [row.times for row in found.rows])

    def _row(self, row: int) -> Row:
        return Row.unpacked(json.loads(self._rows[row]))

    def _key(self, row: int) -> str:
        return self._row(row).key

    def _words(self, row: int) -> Words:
        found = self._row(row)
        if found.fault is not None:
            raise BadExample(found.key, found.fault)
        beside = [self._read_caption(name, found.key) for name in found.sidecars]
        return Words(found.label, tuple(dict.fromkeys([*found.captions, *beside])))

    def _read_caption(self, name: str, key: str) -> str:
        path = self._files.root / name
        try:
            held = path.read_bytes()
        except OSError as error:
            raise BadExample(key, f"the caption {path} cannot be read: {error.strerror}") from error
        if held[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadExample(key, f"the caption {path} is not valid UTF-8: it begins as UTF-16 does; save it as UTF-8")
        return clean(held.decode("utf-8-sig", "surrogateescape"), key, f"the caption {path}")

    def _stored(self, row: int) -> Stored:
        found = self._row(row)
        if found.path is None:
            raise BadExample(found.key, found.fault or "there is no picture")
        return self._files.root / found.path

    def _state(self, row: int) -> bytes:
        return self._state_of(self._row(row).path)

    def _state_of(self, path: str | None) -> bytes:
        return b"" if path is None else self._files.state(path)
