"""The garments of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 28 x 28, ten classes, as MNIST is.

They are harder to draw than digits: a shirt, a pullover and a coat differ in details, and surfaces have shades.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from ldm.data.idx_pictures import IdxConfig, IdxSource, read_folder, read_hub
from ldm.errors import UserError

GARMENTS = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_HUB_NAME = "zalando-datasets/fashion_mnist"
_FOLDER_OR = "give `path`, a folder with the four IDX files, or"
_GET_PACKAGE = "install the Debian package: apt install dataset-fashion-mnist"

_PHRASES = {"t-shirt/top": ("a t-shirt or top",), "trouser": ("a trouser", "a pair of trousers")}  # others: an article
_TEMPLATES = (
    "{phrase}",
    "a photo of {phrase}",
    "a picture of {phrase}",
    "a grey photo of {phrase}",
    "a product photo of {phrase}",
    "{phrase} on a black background",
    "a photo of {phrase} on a black background",
)


class FashionMnistConfig(IdxConfig):
    """The garments of Fashion-MNIST; see also ``IdxConfig``.

    Attributes:
        origin: ``debian`` reads the folder of Debian's package ``dataset-fashion-mnist``; ``folder`` reads ``path``;
            ``hub`` downloads the set from the Hugging Face hub. A ``path`` implies ``folder``.
    """

    source: Literal["fashion_mnist"] = "fashion_mnist"
    origin: Literal["debian", "folder", "hub"] = "debian"


class FashionMnistSource(IdxSource):
    """Garments, bright on black; the label is the place of the garment in ``GARMENTS``."""

    def __init__(self, config: FashionMnistConfig) -> None:
        super().__init__(config, *_read_garments(config), garment_captions)


def garment_captions(images: Tensor, labels: Tensor) -> list[tuple[str, ...]]:
    """All captions of each picture, which name its garment and claim no more: the same for all pictures of a class."""
    table = [_captions_of(name) for name in GARMENTS]
    return [table[label] for label in labels.tolist()]


def _captions_of(name: str) -> tuple[str, ...]:
    article = "an" if name[0] in "aeiou" else "a"
    phrases = _PHRASES.get(name, (f"{article} {name}",))
    return (name, *(template.format(phrase=phrase) for phrase in phrases for template in _TEMPLATES))


def _read_garments(config: FashionMnistConfig) -> tuple[np.ndarray, np.ndarray]:
    if config.path is not None:
        return read_folder(config.path, config.split)
    if config.origin == "hub":
        return read_hub(_HUB_NAME, config.split, f"{_FOLDER_OR} {_GET_PACKAGE}")
    if not DEBIAN_FOLDER.is_dir():
        raise UserError(f"{DEBIAN_FOLDER} is not there: {_GET_PACKAGE}; or {_FOLDER_OR} origin: hub")
    return read_folder(DEBIAN_FOLDER, config.split)
