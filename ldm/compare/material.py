"""The pictures that a comparison trains on, and those that it compares with."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.compare.settings import Judging
from ldm.data.folder import FolderConfig
from ldm.data.sources import SourceConfig, SplitConfig, open_source
from ldm.errors import UserError
from ldm.evaluate.features import HOW
from ldm.evaluate.reference import RealPictures
from ldm.publishing import disk_trouble, replacing

_NOISE_PICTURES = 64
_LEAST_PICTURES = 10


@dataclass(frozen=True)
class Material:
    """The pictures of a comparison.

    Attributes:
        train: what is trained on.
        held_out: what is compared with; None where nothing is.
        side: height and width.
        colours: channels of a picture.
        noise: the folder of pictures that mean nothing, where it is they that are trained on.
    """

    train: SourceConfig
    held_out: SourceConfig | None
    side: int
    colours: int
    noise: Path | None = None

    def as_told(self) -> dict[str, Any]:
        """What depends on the pictures depends on this: their settings, and which they are."""
        found: dict[str, Any] = {"side": self.side}
        for name, data in (("train", self.train), ("held_out", self.held_out)):
            if data is not None and self.noise is None:
                pictures = RealPictures.at(data, (self.side, self.side))
                found[name] = {"data": data.model_dump(mode="json"), "pictures": pictures.fingerprint()}
        return found


def noise_of(folder: Path, side: int) -> Material:
    """Pictures of noise, in colour, yet to be made (see :func:`make_noise`)."""
    noise = folder / "noise" / f"{side}"
    return Material(FolderConfig(source="folder", path=noise), None, side, 3, noise)


def material_of(
    data: SourceConfig, held_out: SourceConfig | int | None, side: int | None, judging: Judging | None
) -> Material:
    """The pictures of a comparison.

    Args:
        data: training pictures.
        held_out: others to compare with, or how many of ``data`` are held out; None compares with none.
        side: height and width that they are cut to; None is their own.
        judging: how they are to be compared.

    Raises:
        UserError: they cannot be opened; or have no one size, and ``side`` does not say any; or cannot be judged so.
    """
    source, train = open_source(data), data
    if isinstance(held_out, int):
        part = functools.partial(SplitConfig, source="split", of=data, hold_out=held_out)
        train, held_out = part(part="train"), part(part="held_out")
    found = Material(train, held_out, side or _own_side(source), source.channels)
    if judging is not None:
        _check_judging(found, judging)
    return found


def _check_judging(material: Material, quality: Judging) -> None:
    """Refuse now what would be found out after hours."""
    train, held_out = open_source(material.train), open_source(material.held_out)
    if held_out.channels != material.colours:
        raise UserError(f"held_out has {held_out.channels} channels, and the training pictures have {material.colours}")
    if min(len(train), len(held_out)) < _LEAST_PICTURES:
        raise UserError(f"{train.name} and {held_out.name} should have {_LEAST_PICTURES} pictures each, or more")
    if quality.count > len(train):
        told = f"as many training pictures show what the best model could come to, and there are {len(train):,}"
        raise UserError(f"quality.count is {quality.count:,}: {told}")
    if quality.judge is not None and (train.num_classes is None or material.colours != 1):
        raise UserError("quality.judge learns from labels of grey pictures, which these are not: take quality.features")
    told = [network for network in quality.features if ":" not in network]
    if told:
        raise UserError(f"quality.features: {told[0]!r} should be {HOW}")


def _own_side(source: Any) -> int:
    sizes = [] if source.sizes is None else torch.unique(source.sizes, dim=0).tolist()
    if len(sizes) != 1 or sizes[0][0] != sizes[0][1]:
        raise UserError(
            f"the pictures of {source.name} are not all squares of one size: `side` says what to cut them to"
        )
    return int(sizes[0][0])


def make_noise(material: Material) -> None:
    """Make the pictures of noise, if the material is such: what is done to them takes as long as with others."""
    if material.noise is None or material.noise.is_dir():
        return
    chance = np.random.default_rng(0)
    with disk_trouble(str(material.noise)), replacing(material.noise) as folder:
        for k in range(_NOISE_PICTURES):
            pixels = chance.integers(0, 256, (material.side, material.side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k:03d}.png")
