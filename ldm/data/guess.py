"""The settings of a source from no more than its place, as a user types it."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ldm.data.fashion_mnist import FashionMnistConfig
from ldm.data.folder import FolderConfig
from ldm.data.folder_files import METADATA, READABLE, ending
from ldm.data.idx import read_idx
from ldm.data.idx_pictures import IdxConfig, Split, labels_file
from ldm.data.mnist import MnistConfig
from ldm.data.pictures import PictureConfig
from ldm.data.table import HubConfig, ParquetConfig
from ldm.data.webdataset import WebDatasetConfig
from ldm.errors import UserError, need

_CAPTIONS = ("text", "caption", "captions", "prompt", "description", "sentences")  # as data sets call them
_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # on the hub; a single word is rather a folder that is not there
_REMOTE = re.compile(r"\w+://")
_MOST = 10_000  # files looked at to tell what a folder holds
_GARMENT_LABELS = ("657fbd221bfc9f41", "3d0e6c6ea990b53b")  # of Fashion-MNIST: sha256, training and test
_DIGIT_LABELS = ("1feba77c54802fa5", "ddeff807876a9661")  # of MNIST


def guess(place: str) -> PictureConfig | IdxConfig:
    """The settings of the source at a place: a folder, a file or pattern of files, or a name on the hub.

    Captions in tables are taken from the first column that has a usual name; where there is none, the source has no
    captions. IDX files of digits and of garments have the same names, and their labels tell them apart; files with
    other labels are taken for digits, and a line on stderr says so.

    Raises:
        UserError: there is nothing at the place, or nothing that is a source.
    """
    place = os.path.expanduser(place)
    if os.path.isdir(place):
        return _folder(Path(place))
    remote = _REMOTE.match(place)
    files = [] if remote else glob.glob(place, recursive=True)
    endings = {ending(name) for name in files or [place]}
    if endings == {".tar"}:  # there may be none by the name itself, as with {00..99}
        return WebDatasetConfig(path=place)
    if endings == {".parquet"} and (files or remote):
        columns = _parquet_columns(files[0]) if files else _CAPTIONS
        return ParquetConfig(path=place, caption_column=_first_known(columns))
    if files:
        raise UserError(
            f"{place} is no source of pictures: expected a folder, .tar or .parquet files, or a name on the hub"
        )
    if _NAME.fullmatch(place) and not place.startswith("."):
        return HubConfig(path=place)
    raise UserError(f"there is no {place}, and it is no name on the hub, such as owner/name")


def _folder(folder: Path) -> PictureConfig | IdxConfig:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        labels = labels_file(folder, split)
        if labels is not None:
            return _idx(folder, split, labels)
    found: dict[str, str] = {}
    lists = []
    for count, name in enumerate(_walk(folder)):
        if os.path.basename(name) in METADATA:
            lists.append(name)
        if count >= _MOST:
            break
        found.setdefault(ending(name), name)
    if lists:
        column = _first_known(_columns_of_list(lists[0]))
        return FolderConfig(path=folder, caption_column=column)
    if not any(kind in found for kind in READABLE):
        if ".tar" in found:
            return WebDatasetConfig(path=str(folder))
        if ".parquet" in found:
            return ParquetConfig(path=str(folder), caption_column=_first_known(_parquet_columns(found[".parquet"])))
    return FolderConfig(path=folder)  # which says what it looked for, where there is nothing


def _idx(folder: Path, split: Split, labels: Path) -> IdxConfig:
    digest = hashlib.sha256(read_idx(labels).tobytes()).hexdigest()[:16]
    if digest in _GARMENT_LABELS:
        return FashionMnistConfig(path=folder, split=split, captions=True)
    if digest not in _DIGIT_LABELS:
        other = f"'{{source: fashion_mnist, path: {folder}}}' in its place reads garments"
        print(f"{folder} is read as digits, as MNIST is; {other}", file=sys.stderr)
    return MnistConfig(path=folder, split=split, captions=True)


def _walk(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(names, key=_lists_first))


def _lists_first(name: str) -> tuple[bool, str]:
    return name not in METADATA, name


def _first_known(columns: Sequence[str]) -> str | None:
    return next((name for name in _CAPTIONS if name in columns), None)


def _columns_of_list(name: str) -> list[str]:
    """The columns of a metadata file, as far as its first line tells."""
    if ending(name) == ".parquet":
        return _parquet_columns(name)
    try:
        with open(name, encoding="utf-8-sig", newline="") as file:
            if ending(name) == ".csv":
                return next(csv.reader(file), [])
            said = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, ValueError, csv.Error):  # opening the source names what is wrong
        return list(_CAPTIONS)
    return list(said) if isinstance(said, dict) else list(_CAPTIONS)


def _parquet_columns(name: str) -> list[str]:
    parquet, arrow = need("pyarrow.parquet", "hub"), need("pyarrow", "hub")
    try:
        return parquet.read_schema(name).names
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{name} cannot be read as parquet: {error}") from error
