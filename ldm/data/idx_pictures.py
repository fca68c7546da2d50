"""Small grey pictures of ten classes: what the digits of MNIST and the garments of Fashion-MNIST have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ldm.data.example import Example, Words
from ldm.data.idx import read_idx
from ldm.errors import UserError, need
from ldm.schema import Settings

SIDE = 28
CLASSES = 10
_IDX_PREFIX = {"train": "train", "test": "t10k"}

Split = Literal["train", "test"]


class IdxConfig(Settings):
    """What is said about such pictures, whatever they show.

    Attributes:
        source, origin: which they are, and where they come from; the kinds say.
        path: a folder of IDX files, gzip or not, in their standard names.
        split: 60,000 training or 10,000 test pictures.
        size: side in pixels; the 28 x 28 pictures are padded with zeros on all sides.
        limit: take the first so many pictures.
        captions: describe every picture in words.
    """

    source: str
    path: Path | None = None
    origin: str
    split: Split = "train"
    size: int = Field(default=SIDE, ge=SIDE, multiple_of=2)
    limit: int | None = Field(default=None, ge=1)
    captions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _path_means_folder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {"origin": "folder", **values}
        return values

    @model_validator(mode="after")
    def _check_place(self) -> IdxConfig:
        if (self.origin == "folder") != (self.path is not None):
            given = f"origin is {self.origin!r} and path is {str(self.path) if self.path else None!r}"
            raise UserError(f"{given}: origin 'folder' needs a path, and no other origin takes one")
        return self


class IdxSource:
    """Pictures held in memory as one tensor.

    Args:
        config: the settings.
        images: (N, 28, 28) uint8.
        labels: (N,) integers 0..9.
        describe: gives the captions of pictures (N, 28, 28) and their labels (N,).

    Attributes:
        images: (N, 1, size, size) uint8, bright on black (0).
        labels: (N,) int64, 0..9.
        captions: one tuple of captions per picture; empty tuples unless the settings ask for captions.
    """

    channels: int = 1
    num_classes: int | None = CLASSES
    stream: bool = False

    def __init__(
        self,
        config: IdxConfig,
        images: np.ndarray,
        labels: np.ndarray,
        describe: Callable[[Tensor, Tensor], list[tuple[str, ...]]],
    ) -> None:
        # A copy: torch wants writable memory, and arrays read from bytes are not.
        pictures = torch.from_numpy(images[: config.limit].copy())
        margin = (config.size - SIDE) // 2
        self.name = f"{config.source} {config.split} ({config.origin})"
        self.size = (config.size, config.size)
        self.sizes: Tensor | None = torch.tensor([self.size], dtype=torch.int32).expand(len(pictures), 2)
        self.captioned = config.captions
        self.labels = torch.from_numpy(labels[: config.limit].astype(np.int64))
        self.captions = describe(pictures, self.labels) if config.captions else [()] * len(pictures)
        self.images = F.pad(pictures[:, None], (margin,) * 4)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return str(index)

    def stamp(self, index: int) -> str:
        return hashlib.blake2b(self.images[index].numpy().tobytes(), digest_size=16).hexdigest()

    def words(self, index: int) -> Words:
        return Words(int(self.labels[index]), self.captions[index])

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        return Example(self.images[index], *self.words(index), self.key(index), self.size)


def read_folder(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (N, 28, 28) uint8 and labels (N,) uint8 of a folder of IDX files.

    Raises:
        UserError: a file is missing or damaged, or holds something else.
    """
    images_path, labels_path = _find(folder, split, "images"), _find(folder, split, "labels")
    images, labels = read_idx(images_path, (None, SIDE, SIDE)), read_idx(labels_path, (None,))
    for path, array in ((images_path, images), (labels_path, labels)):
        if array.dtype != np.uint8:
            raise UserError(f"{path}: found elements of type {array.dtype}, expected uint8")
    if len(images) != len(labels):
        raise UserError(f"{labels_path}: found {len(labels)} labels, expected {len(images)} as in {images_path.name}")
    if len(labels) and labels.max() >= CLASSES:
        raise UserError(f"{labels_path}: found the label {labels.max()}, expected 0 to {CLASSES - 1}")
    return images, labels


def labels_file(folder: Path, split: Split) -> Path | None:
    """The labels of a split in a folder of IDX files; None where there are none."""
    return next((folder / name for name in _names(split, "labels") if (folder / name).is_file()), None)


def read_hub(name: str, split: str, others: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of a data set of the hub with the columns ``image`` and ``label``.

    Raises:
        UserError: it cannot be fetched; ``others`` says where else there is one.
    """
    datasets = need("datasets", "hub")
    try:
        table = datasets.load_dataset(name, split=split)
    except OSError as error:
        raise UserError(f"{name} cannot be fetched from the hub ({error}); {others}") from error
    return np.stack([np.asarray(picture) for picture in table["image"]]), np.asarray(table["label"])


def _find(folder: Path, split: str, kind: str) -> Path:
    names = _names(split, kind)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected one that holds {names[1]}")
    raise UserError(f"{folder}: holds none of {', '.join(names)}")


def _names(split: str, kind: str) -> list[str]:
    dims = {"images": 3, "labels": 1}[kind]
    return [f"{_IDX_PREFIX[split]}-{kind}{mark}idx{dims}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
