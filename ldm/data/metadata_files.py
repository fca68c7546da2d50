"""The lists ``metadata.jsonl``, ``metadata.csv`` and ``metadata.parquet`` that name pictures and say what they show.

As the imagefolder of Hugging Face's ``datasets``: ``file_name`` is relative to the folder of the list. A line that
cannot be used is no reason to fail as a whole: it becomes an entry with its fault, which has the line's number.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.data.example import BadExample
from ldm.data.folder_files import METADATA, FolderFiles, ending, printable
from ldm.data.pictures import clean_all
from ldm.errors import UserError, need

_FILE_NAME = "file_name"


@dataclass(frozen=True)
class Entry:
    """What a list says of a picture.

    Attributes:
        key: the picture's path in the folder, or, where that is not known, the place of the line.
        path: of the picture in the folder; None where there is none.
        where: the list and the line.
        captions: all that can be used.
        label: as written, which may be anything.
        fault: why the line cannot be used.
    """

    key: str
    path: str | None
    where: str
    captions: tuple[str, ...] = ()
    label: object = None
    fault: str | None = None


Line = tuple[str, dict[str, Any] | str]  # its place in the list, and what it says, or its fault


def read_metadata(files: FolderFiles, caption_columns: Sequence[str], label_column: str | None) -> list[Entry]:
    """All entries of the lists in a folder and the folders in it; several lines for a picture are joined.

    Raises:
        UserError: there is no list, there are two in one folder, or one cannot be read at all or lacks a column.
    """
    if not files.lists:
        looked = f"{', '.join(METADATA[:-1])} or {METADATA[-1]}"
        raise UserError(f"no {looked} in {files.root} or folders in it: {files.told()}")
    first: dict[str, str] = {}
    for name in files.lists:
        if (other := first.setdefault(os.path.dirname(name), name)) != name:
            raise UserError(f"{files.root / name} stands beside {os.path.basename(other)}, and one of them is enough")
    columns = [_FILE_NAME, *caption_columns, *([] if label_column is None else [label_column])]
    entries: dict[str, Entry] = {}
    for name in files.lists:
        lines = list(_READERS[ending(name)](files.root / name))
        _check_columns(files.root / name, lines, columns)
        for place, said in lines:
            entry = _entry(files, name, place, said, caption_columns, label_column)
            known = entries.get(entry.key)
            entries[entry.key] = entry if known is None else _joined(known, entry)
    return list(entries.values())


def _check_columns(path: Path, lines: Sequence[Line], columns: Sequence[str]) -> None:
    """Refuse a list in which no line has a column: its name is mistaken."""
    there = dict.fromkeys(key for _, said in lines if isinstance(said, dict) for key in said)
    if not there:
        faults = [f": {path}{place} {fault}" for place, fault in lines if isinstance(fault, str)]
        raise UserError(f"{path} has no line that can be used{faults[0] if faults else ''}")
    for column in columns:
        if column not in there:
            hint = "" if column == _FILE_NAME else "; name another in caption_column or label_column, or null for none"
            raise UserError(f"{path} has no column {column!r} (it has {', '.join(map(repr, there))}){hint}")


def _entry(
    files: FolderFiles, name: str, place: str, said: dict[str, Any] | str, captions: Sequence[str], label: str | None
) -> Entry:
    where = f"{files.root / name}{place}"
    nameless = Entry(printable(name + place), None, where)
    if isinstance(said, str):
        return replace(nameless, fault=f"{where} {said}")
    file_name = said.get(_FILE_NAME)
    if not isinstance(file_name, str) or not file_name:
        return replace(nameless, fault=f"{where}: file_name is missing")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), file_name.replace("\\", "/")))
    entry = Entry(printable(path), None, where, label=said.get(label) if label else None)
    if path.startswith(("/", "../")) or "://" in file_name:
        return replace(entry, fault=f"{where}: file_name {file_name!r} should be a path in {files.root}")
    if path not in files:
        return replace(entry, fault=f"{where} names {printable(path)}, and there is no such file")
    try:
        given = clean_all([said.get(column) for column in captions], entry.key, f"{where}: {' or '.join(captions)}")
    except BadExample as error:
        return replace(entry, path=path, fault=str(error))
    return replace(entry, path=path, captions=given)


def _joined(one: Entry, other: Entry) -> Entry:
    """Two lines about one picture."""
    fault = one.fault or other.fault
    if one.label != other.label:
        fault = fault or f"{other.where} gives {one.key} the class {other.label!r}, and {one.where} {one.label!r}"
    return replace(one, captions=one.captions + other.captions, fault=fault)


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        place = f":{number}"
        try:
            said = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield place, "is not valid UTF-8"
        except (ValueError, RecursionError) as error:
            yield place, f"is no JSON: {error}"
        else:
            yield place, said if isinstance(said, dict) else 'should be an object such as {"file_name": ...}'


def _csv(path: Path) -> Iterator[Line]:
    text = _read(path).decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        place = f":{rows.line_num + 1}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, f"is no CSV: {error}"
            continue
        if not row:
            continue
        if header is None:
            header = row
        elif len(row) != len(header):
            yield place, f"has {len(row)} fields, and the first line has {len(header)}"
        else:
            yield place, {name: value or None for name, value in zip(header, row, strict=True)}


def _parquet(path: Path) -> Iterator[Line]:
    parquet, arrow = need("pyarrow.parquet", "hub"), need("pyarrow", "hub")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from error
    for number, row in enumerate(rows):
        yield f" row {number}", row


_READERS: dict[str, Callable[[Path], Iterator[Line]]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
