"""The rows of a comparison as networks and as runs of ``ldm train``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.cache.settings import CacheConfig
from ldm.compare.settings import CodecComparison, NewVAEConfig, RowConfig
from ldm.cost.architecture import Architecture, TowerShape
from ldm.data.folder import FolderConfig
from ldm.data.framing import FrameConfig
from ldm.data.sources import SourceConfig, SplitConfig, open_source
from ldm.errors import UserError
from ldm.models.vae import VAEConfig
from ldm.training.settings import (
    DiffusionRun,
    LabelConditionConfig,
    PixelCodecConfig,
    SampleSettings,
    TextConditionConfig,
    VAECodecConfig,
    VAERun,
)
from ldm.weights.components import load_tower
from ldm.weights.model import load_vae, resolve

_NOISE_PICTURES = 64


@dataclass(frozen=True)
class Material:
    """The pictures of a comparison.

    Attributes:
        train: what is trained on.
        held_out: what is compared with; None where nothing is.
        side: height and width.
        colours: channels of a picture.
    """

    train: SourceConfig
    held_out: SourceConfig | None
    side: int
    colours: int

    def as_told(self) -> dict[str, Any]:
        """As JSON has it."""
        sources = {"train": self.train, "held_out": self.held_out}
        told = {name: None if data is None else data.model_dump(mode="json") for name, data in sources.items()}
        return {**told, "side": self.side}


def material_of(told: CodecComparison) -> Material:
    """Open the data of a comparison, or make pictures of noise, in its folder.

    Raises:
        UserError: it cannot be opened, or its pictures have no one size, and ``side`` does not say any.
    """
    if told.data is None:
        assert told.side is not None
        train = FolderConfig(source="folder", path=_noise_pictures(told.output / "noise", told.side))
        return Material(train, None, told.side, 3)
    source = open_source(told.data)
    return Material(*_sides_of_split(told), told.side or _own_side(source), source.channels)


def _sides_of_split(told: CodecComparison) -> tuple[SourceConfig, SourceConfig | None]:
    assert told.data is not None
    if not isinstance(told.held_out, int):
        return told.data, told.held_out
    part = functools.partial(SplitConfig, source="split", of=told.data, hold_out=told.held_out)
    return part(part="train"), part(part="held_out")


def _own_side(source: Any) -> int:
    sizes = [] if source.sizes is None else torch.unique(source.sizes, dim=0).tolist()
    if len(sizes) != 1 or sizes[0][0] != sizes[0][1]:
        raise UserError(
            f"the pictures of {source.name} are not all squares of one size: `side` says what to cut them to"
        )
    return int(sizes[0][0])


def _noise_pictures(folder: Path, side: int) -> Path:
    """A folder of pictures that mean nothing: what is done to them takes as long."""
    place = folder / f"{side}"
    place.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    for k in range(_NOISE_PICTURES):
        path = place / f"{k:03d}.png"
        if not path.is_file():
            pixels = chance.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return place


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        config: what the configuration says.
        shape: its networks.
        told: the whole comparison.
        material: the pictures.
    """

    config: RowConfig
    shape: Architecture
    told: CodecComparison
    material: Material

    @property
    def name(self) -> str:
        """For people."""
        return self.config.name

    @property
    def new_vae(self) -> VAEConfig | None:
        """The shape of the VAE that is trained for it, if one is."""
        return self.config.codec.vae if isinstance(self.config.codec, NewVAEConfig) else None

    def vae_run(self, output: Path) -> VAERun:
        """The training of its VAE."""
        told, vae = self.told.vae, self.new_vae
        assert told is not None
        assert vae is not None
        size = self.material.side
        return VAERun(
            task="vae",
            seed=told.seed,
            output=output,
            data=self.material.train,
            frame=self._frame,
            vae=vae.model_copy(update={"sample_size": size}),
            loss=told.loss,
            scale_from=told.scale_from,
            train=told.train,
        )

    def run(self, output: Path, vae: Path | None, cache: Path | None, seed: int, steps: int) -> DiffusionRun:
        """The training of its U-Net.

        Args:
            output: the run's folder.
            vae: the folder of its VAE; None for pixels.
            cache: the folder of its latents; None trains without.
            seed: of the run.
            steps: to be trained.
        """
        told, net = self.told, self.shape.net
        return DiffusionRun(
            task="diffusion",
            seed=seed,
            output=output,
            data=self.material.train,
            frame=self._frame,
            unet=net,  # pyright: ignore[reportArgumentType]
            process=told.process,
            prediction=told.prediction,
            codec=PixelCodecConfig() if vae is None else VAECodecConfig(kind="vae", path=vae),
            cache=None if cache is None else CacheConfig(path=cache),
            condition=told.condition,
            sample=SampleSettings(**told.draw.model_dump(), count=1),
            train=told.train.model_copy(update={"steps": steps, "keep_checkpoints": 1}),
        )

    @property
    def _frame(self) -> FrameConfig | None:
        side = self.told.side
        return (
            None if side is None or self.told.data is None else FrameConfig(resolution=side, step=side, buckets=False)
        )


def rows_of(told: CodecComparison, material: Material) -> list[Row]:
    """All rows.

    Raises:
        UserError: a model that one begins with is not to be had, or does not fit.
    """
    towers, labels = _reader(told)
    return [_row(told, config, material, towers, labels) for config in told.rows]


def _row(
    told: CodecComparison, config: RowConfig, material: Material, towers: tuple[TowerShape, ...], labels: int | None
) -> Row:
    vae = _vae_of(config)
    colours, factor = (material.colours, 1) if vae is None else (vae.latent_channels, vae.factor)
    if vae is not None and vae.in_channels != material.colours:
        raise UserError(
            f"{config.name}: its VAE reads {vae.in_channels} channels, the pictures have {material.colours}"
        )
    if material.side % factor:
        raise UserError(f"{config.name}: pictures of {material.side} x {material.side} are no multiple of {factor}")
    try:
        net = told.unet_of(config, colours, material.side // factor)
    except UserError as error:
        raise UserError(f"{config.name}: {error}") from error
    return Row(config, Architecture(net, vae, towers, labels), told, material)


def _vae_of(config: RowConfig) -> VAEConfig | None:
    if isinstance(config.codec, NewVAEConfig):
        return config.codec.vae
    return load_vae(resolve(config.codec.path)).config if isinstance(config.codec, VAECodecConfig) else None


def _reader(told: CodecComparison) -> tuple[tuple[TowerShape, ...], int | None]:
    """What reads the conditions: text encoders, or a number of classes."""
    condition = told.condition
    if isinstance(condition, TextConditionConfig):
        return (TowerShape.of(load_tower(resolve(condition.path)).encoder),), None
    return (), condition.classes if isinstance(condition, LabelConditionConfig) else None
