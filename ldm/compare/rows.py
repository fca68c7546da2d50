"""The rows of a comparison as networks and as runs of ``ldm train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.cache.settings import CacheConfig
from ldm.compare.material import Material
from ldm.compare.settings import CodecComparison, NewVAEConfig, RowConfig
from ldm.cost.architecture import Architecture, TowerShape
from ldm.data.framing import FrameConfig
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
from ldm.weights.fingerprint import fingerprint
from ldm.weights.model import load_vae, resolve

_NOISE_PICTURES = 64
_LEAST_PICTURES = 10
# What of a training changes nothing that is learned.
_ASIDE = ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "workers", "prefetch", "trackers")


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
    def reads_text(self) -> bool:
        """Whether captions condition it, whose states are kept in a cache in all rows."""
        return isinstance(self.told.condition, TextConditionConfig)

    def learns(self) -> dict[str, Any]:
        """What learning depends on beside pictures, codec, seed and the number of steps, as JSON has it."""
        told = self.told.model_dump(mode="json", include={"process", "prediction", "train"})
        told["train"] = {key: value for key, value in told["train"].items() if key not in (*_ASIDE, "steps")}
        return {**told, "unet": self.shape.net.model_dump(mode="json"), **self.reads()}

    def reads(self) -> dict[str, Any]:
        """What conditions it, as JSON has it."""
        condition = self.told.condition
        told = condition.model_dump(mode="json")
        if isinstance(condition, TextConditionConfig):
            told["path"] = fingerprint(resolve(condition.path) / "text_encoder")
        return {"condition": told}

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
    _check_context(config.name, net.cross_attention_dim, towers, labels)
    return Row(config, Architecture(net, vae, towers, labels), told, material)


def _check_context(name: str, width: int | None, towers: tuple[TowerShape, ...], labels: int | None) -> None:
    if labels is not None and width is None:
        raise UserError(f"{name}: condition.kind label needs unet.cross_attention_dim, the width of its token")
    if towers and width != towers[0].config["hidden_size"]:
        told = f"but the text encoder gives {towers[0].config['hidden_size']}"
        raise UserError(f"{name}: unet.cross_attention_dim is {width}, {told}")


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
