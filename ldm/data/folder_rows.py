"""Which pictures a folder has, and where the words for each are: one function for each layout."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ldm.data.folder_files import METADATA, FolderFiles, printable
from ldm.data.labels import number_labels
from ldm.data.metadata_files import read_metadata
from ldm.data.pictures import as_tuple
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.data.folder import FolderConfig

_KOHYA = re.compile(r"(\d+)_(.*)", re.DOTALL)
_MOST_TIMES = 10_000
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


class Row(NamedTuple):
    """A picture, or what should be one.

    Attributes:
        key: of its example.
        path: of the picture in the folder; None where there is none.
        captions: those that are known.
        sidecars: caption files, in the folder.
        label: the class.
        fault: why it cannot be used, where that is known without opening anything.
        times: how often it comes.
    """

    key: str
    path: str | None
    captions: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()
    label: int | None = None
    fault: str | None = None
    times: int = 1

    @classmethod
    def unpacked(cls, values: list[Any]) -> Row:
        """From the list that it is in JSON."""
        row = cls(*values)
        return row._replace(captions=tuple(row.captions), sidecars=tuple(row.sidecars))


@dataclass(frozen=True)
class Found:
    """What a folder holds, by one layout.

    Attributes:
        layout: its name.
        rows: its pictures.
        captioned: whether they have captions.
        classes: the names of the classes by number; None without classes, or where they have no names.
        num_classes: how many; None without.
        orphans: what belongs to no row.
    """

    layout: str
    rows: list[Row]
    captioned: bool
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    orphans: tuple[str, ...] = ()


def find_rows(files: FolderFiles, config: FolderConfig) -> Found:
    """The pictures of a folder.

    Raises:
        UserError: it holds none, or is not of the layout; the message says what was looked for, and what there is.
    """
    pictures = files.pictures()
    layout = _guess_layout(files, pictures, config) if config.layout == "auto" else config.layout
    if layout != "metadata" and not pictures:
        raise UserError(f"no picture in {files.root} or folders in it: {files.told()}")
    _refuse_splits(files, pictures)
    return _LAYOUTS[layout](files, pictures, config)


def _guess_layout(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> str:
    if files.lists:
        return "metadata"
    folders = {_folder(name) for name in pictures}
    captioned = any(_sidecars(files, name, config) for name in pictures)
    numbered = [match for match in map(_KOHYA.fullmatch, folders) if match]
    if numbered and not captioned:
        _refuse_numbered_classes(files, sorted(int(match[1]) for match in numbered))
    if not numbered:
        _refuse_deeper_kohya(files, pictures)
    if numbered or captioned:
        return "kohya" if numbered else "captions"
    if len(folders) > 1 and "" not in folders:
        return "classes"
    if not pictures:
        looked = f"pictures (.png, .jpg, .webp, ...) or {', '.join(METADATA[:-1])} or {METADATA[-1]}"
        raise UserError(f"{files.root} and folders in it hold none of what was looked for, {looked}: {files.told()}")
    return "plain"


def _folder(name: str) -> str:
    """The folder directly in the root that a file is in or below; "" for the root."""
    return name.partition("/")[0] if "/" in name else ""


def _refuse_numbered_classes(files: FolderFiles, numbers: list[int]) -> None:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2:
        told = "whether these are classes or how often pictures come is unknown; set layout: classes or layout: kohya"
        raise UserError(f"{files.root} has folders numbered {numbers[0]}_ to {numbers[-1]}_, and no captions: {told}")


def _refuse_deeper_kohya(files: FolderFiles, pictures: Sequence[str]) -> None:
    """kohya's projects have their ``10_name`` in ``img``, and it is that folder which is meant."""
    for name in pictures:
        folder, _, rest = name.partition("/")
        match = _KOHYA.fullmatch(_folder(rest))
        if match and int(match[1]) < 1000:  # beyond, it is rather a year
            told = f"give {printable(str(files.root / folder))} as path, or set layout: captions, classes or plain"
            such = f"one level down, such as {printable(_folder(rest))}"
            raise UserError(f"{files.root} has folders as kohya's 10_name {such}: {told}")


def _refuse_splits(files: FolderFiles, pictures: Sequence[str]) -> None:
    folders = {_folder(name) for name in [*pictures, *files.lists]}
    if len(folders) > 1 and {folder.lower() for folder in folders} <= _SPLITS:
        names = sorted(folders)
        first = next((name for name in names if name.lower().startswith("train")), names[0])
        told = f"give one of them as path, such as {files.root / first}"
        raise UserError(f"{files.root} holds the splits {', '.join(names)}: {told}")


# ------------------------------------------------------------------------------------- captions beside pictures


def _sidecars(files: FolderFiles, picture: str, config: FolderConfig) -> tuple[str, ...]:
    stem = os.path.splitext(picture)[0]
    tried = [stem + ending for given in as_tuple(config.caption_extension) for ending in (given, given.upper())]
    return tuple(dict.fromkeys(name for name in tried if name in files))


def _captioned(files: FolderFiles, picture: str, config: FolderConfig, otherwise: str = "", times: int = 1) -> Row:
    """A picture with its caption files; the caption ``otherwise`` stands in where there are none."""
    key, sidecars = printable(picture), _sidecars(files, picture, config)
    if sidecars or otherwise:
        return Row(key, picture, () if sidecars else (otherwise,), sidecars, times=times)
    stem = os.path.splitext(key)[0]
    tried = " or ".join(stem + ending for ending in as_tuple(config.caption_extension))
    return Row(key, picture, fault=f"{files.root / key} has no caption: looked for {tried} beside it", times=times)


def _lone_captions(files: FolderFiles, rows: Sequence[Row], config: FolderConfig) -> tuple[str, ...]:
    used = {name for row in rows for name in row.sidecars}
    endings = as_tuple(config.caption_extension)
    lone = [name for name in files.names if name not in used and name.lower().endswith(endings)]
    return tuple(f"{files.root / printable(name)} is a caption without a picture" for name in lone)


def _caption_files(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> Found:
    rows = [_captioned(files, name, config) for name in pictures]
    if not any(row.sidecars for row in rows):
        raise UserError(f"none of {len(rows):,} pictures has a caption: {rows[0].fault}; {files.told()}")
    return Found("captions", rows, captioned=True, orphans=_lone_captions(files, rows, config))


def _kohya(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> Found:
    folders = sorted({_folder(name) for name in pictures})
    parts = {folder: _KOHYA.fullmatch(folder) for folder in folders}
    if not any(parts.values()):
        there = ", ".join(printable(folder) or "(none)" for folder in folders[:5])
        raise UserError(f"no folder in {files.root} is named as 10_name (with pictures: {there}); {files.told()}")
    times, names = defaultdict(lambda: 1), defaultdict(str)
    for folder, match in parts.items():
        if match:
            times[folder], names[folder] = int(match[1]), printable(match[2])
            if not 1 <= times[folder] <= _MOST_TIMES:  # a date, or the number of a class
                told = f"its pictures would come {times[folder]:,} times; set layout: captions, classes or plain"
                raise UserError(f"{files.root / printable(folder)}: {told}")
    rows = [_captioned(files, p, config, names[_folder(p)].strip(), times[_folder(p)]) for p in pictures]
    return Found("kohya", rows, captioned=True, orphans=_lone_captions(files, rows, config))


# --------------------------------------------------------------------------------------------- no captions


def _plain(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> Found:
    if config.caption is not None and "{label}" in config.caption:
        raise UserError(f"caption {config.caption!r} has a {{label}}, and {files.root} has no classes")
    given = () if config.caption is None else (config.caption,)
    rows = [Row(printable(name), name, given) for name in pictures]
    return Found("plain", rows, captioned=bool(given))


def _class_folders(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> Found:
    classes = config.classes or tuple(sorted({_folder(name) for name in pictures} - {""}))
    if not classes:
        raise UserError(f"no folder in {files.root} holds pictures, which would be those of a class: {files.told()}")
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_classified(files, name, numbers, config) for name in pictures]
    return Found("classes", rows, config.caption is not None, tuple(map(printable, classes)), len(classes))


def _classified(files: FolderFiles, picture: str, numbers: dict[str, int], config: FolderConfig) -> Row:
    key, folder = printable(picture), _folder(picture)
    if folder not in numbers:
        where = f"the folder {printable(folder)}, which is none of classes" if folder else "no folder of a class"
        return Row(key, picture, fault=f"{files.root / key} is in {where}")
    given = () if config.caption is None else (config.caption.replace("{label}", printable(folder)),)
    return Row(key, picture, given, label=numbers[folder])


# ------------------------------------------------------------------------------------------------ metadata


def _metadata(files: FolderFiles, pictures: Sequence[str], config: FolderConfig) -> Found:
    columns = as_tuple(config.caption_column)
    entries = read_metadata(files, columns, config.label_column)
    rows = [Row(entry.key, entry.path, entry.captions, fault=entry.fault) for entry in entries]
    if all(row.path is None for row in rows):
        raise UserError(f"{rows[0].fault}; no line of the metadata names a picture that is there: {files.told()}")
    used = {row.path for row in rows}
    lone = tuple(f"{files.root / printable(name)} is in no metadata file" for name in pictures if name not in used)
    if config.label_column is None:
        return Found("metadata", rows, bool(columns), orphans=lone)
    numbered = number_labels([entry.label for entry in entries], config.classes)
    for i, (row, entry, number) in enumerate(zip(rows, entries, numbered.numbers, strict=True)):
        unlabelled = f"{entry.where}: {config.label_column} {numbered.fault(i)}" if number is None else None
        rows[i] = row._replace(label=number, fault=row.fault or unlabelled)
    return Found("metadata", rows, bool(columns), numbered.names, numbered.count, lone)


_LAYOUTS: dict[str, Callable[[FolderFiles, Sequence[str], FolderConfig], Found]] = {
    "metadata": _metadata,
    "kohya": _kohya,
    "captions": _caption_files,
    "classes": _class_folders,
    "plain": _plain,
}
