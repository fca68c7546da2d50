"""What a comparison of codecs may say: everything is the same in each row, but for what is diffused."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ldm.data.sources import SourceConfig
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import IdleError, UserError
from ldm.models.unet_config import UNetConfig
from ldm.models.vae import VAEConfig
from ldm.schema import Settings
from ldm.training.settings import (
    LabelConditionConfig,
    NoConditionConfig,
    PixelCodecConfig,
    TextConditionConfig,
    VAECodecConfig,
    VAELoss,
)
from ldm.training.train_settings import TrainSettings

_OF_CODEC = ("in_channels", "out_channels", "sample_size")  # fields of a U-Net that follow from what is diffused


class NewVAEConfig(Settings):
    """Diffuse the latents of a VAE that is trained for the comparison.

    Attributes:
        vae: its shape.
    """

    kind: Literal["new"]
    vae: VAEConfig


RowCodec = Annotated[PixelCodecConfig | VAECodecConfig | NewVAEConfig, Field(discriminator="kind")]
Condition = Annotated[NoConditionConfig | LabelConditionConfig | TextConditionConfig, Field(discriminator="kind")]


def _refuse_what_follows(said: Container[str]) -> None:
    for name in _OF_CODEC:
        if name in said:
            raise UserError(f"{name} follows from what is diffused: leave it out")


class RowConfig(Settings):
    """One codec.

    Attributes:
        name: of the row.
        codec: what is diffused.
        unet: where the U-Net of this row has to differ from that of the others, such as in the levels with attention.
    """

    name: str = Field(min_length=1)
    codec: RowCodec = PixelCodecConfig()
    unet: dict[str, Any] = Field(default_factory=dict)

    @field_validator("unet")
    @classmethod
    def _check(cls, unet: dict[str, Any]) -> dict[str, Any]:
        _refuse_what_follows(unet)
        return unet


class VAETraining(Settings):
    """How the VAEs are trained; all of them alike.

    Attributes:
        seed: of all.
        loss, scale_from: as of ``task: vae``.
        train: the same.
    """

    seed: int = Field(default=0, ge=0)
    loss: VAELoss = VAELoss()
    scale_from: int = Field(default=256, ge=1)
    train: TrainSettings


class JudgeTraining(Settings):
    """A judge trained for the comparison on the labels of its pictures: grey ones of at least 28 x 28, such as digits.

    Attributes:
        epochs, batch_size, learning_rate: as of ``scripts/train_judge.py``.
    """

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=200, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)


class Judging(Settings):
    """How the quality of what is drawn is measured, whatever draws it.

    Attributes:
        seeds: everything that differs by chance is trained from each.
        count: pictures drawn each time.
        batch_size: of them drawn together.
        features: networks in which pictures are compared, as ``ldm evaluate --features`` takes them.
        judge: train one, and compare in its features too; the first of all then.
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    count: int = Field(default=1000, ge=10)
    batch_size: int = Field(default=50, ge=1)
    features: tuple[str, ...] = ()
    judge: JudgeTraining | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.features and self.judge is None:
            raise UserError(
                "quality needs a network to compare pictures in: `judge: {}` for labelled digits, or features"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError("the seeds of quality.seeds should be different")
        return self


class QualityConfig(Judging):
    """How the quality of codecs is measured.

    Attributes:
        points: how often on the way: at the end, at half of the steps, at a quarter, ...
    """

    points: int = Field(default=4, ge=1)


class TimingConfig(Settings):
    """How time is taken: every row in turn, over and over.

    Attributes:
        rounds: how often every row has its turn.
        steps: of training that are timed in a turn.
        batch_size: pictures that are drawn together.
        batches: how many such batches are timed in a turn.
        draw_steps: steps of a drawing that are timed, where all of them would take too long: the others take as long.
        training, encoding, drawing: what is timed: training with the cache of latents, without it, and drawing.
    """

    rounds: int = Field(default=3, ge=1)
    steps: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    batches: int = Field(default=1, ge=1)
    draw_steps: int | None = Field(default=None, ge=1)
    training: bool = True
    encoding: bool = True
    drawing: bool = True

    @model_validator(mode="after")
    def _check(self) -> TimingConfig:
        if not (self.training or self.drawing):
            raise UserError("timing times neither training nor drawing: leave it out")
        return self


class DrawingConfig(Settings):
    """How pictures are drawn, in every row: the settings of that name in ``ldm generate``."""

    sampler: str = "dpm++_2m"
    steps: int = Field(default=20, ge=1)
    guidance: float = 1.0


class PublishedRatio(Settings):
    """Somebody else's figures, to stand beside ours.

    Attributes:
        where: the publication.
        row, base: two of its rows, by the names that they have here.
        side: of its pictures.
        what: ``training`` or ``sampling``: pictures a second.
        ratio: how many times as many in ``row`` as in ``base``.
    """

    where: str
    row: str
    base: str
    side: int | None = None
    what: Literal["training", "sampling"]
    ratio: float = Field(gt=0)


class CodecComparison(Settings):
    """One data set, one U-Net, one objective; what is diffused differs from row to row.

    Attributes:
        compare: the kind.
        output: the folder of all that is made.
        data: training pictures; None makes some of noise, with which there is no quality to measure.
        side: height and width that pictures are cut to; the data's own by default.
        held_out: other pictures of the same kind, to compare with; or how many of ``data`` are held out.
        unet: of all rows; ``in_channels``, ``out_channels`` and ``sample_size`` follow from the codec.
        process, prediction, condition: as of ``task: diffusion``.
        train: of the U-Net; the steps of its end.
        vae: how new VAEs are trained; None leaves their first weights, with which there is no quality to measure.
        draw: how pictures are drawn.
        quality: None measures none, and trains nothing.
        timing: None takes no time.
        rows: the first is what the others are compared with.
        published: figures to stand beside.
    """

    compare: Literal["codecs"]
    output: Path
    data: SourceConfig | None = None
    side: int | None = Field(default=None, ge=8)
    held_out: SourceConfig | Annotated[int, Field(ge=1)] | None = None
    unet: UNetConfig
    process: ProcessConfig = ProcessConfig()
    prediction: Prediction = "epsilon"
    condition: Condition = NoConditionConfig()
    train: TrainSettings
    vae: VAETraining | None = None
    draw: DrawingConfig = DrawingConfig()
    quality: QualityConfig | None = None
    timing: TimingConfig | None = TimingConfig()
    rows: tuple[RowConfig, ...] = Field(min_length=2)
    published: tuple[PublishedRatio, ...] = ()

    @field_validator("unet")
    @classmethod
    def _check_unet(cls, unet: UNetConfig) -> UNetConfig:
        _refuse_what_follows(unet.model_fields_set)
        return unet

    @field_validator("rows")
    @classmethod
    def _named_apart(cls, rows: tuple[RowConfig, ...]) -> tuple[RowConfig, ...]:
        names = [row.name for row in rows]
        twice = [name for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise UserError(f"two rows are named {twice[0]!r}")
        return rows

    @model_validator(mode="after")
    def _check(self) -> CodecComparison:
        if self.data is None and self.side is None:
            raise UserError("give `data`, or the `side` of pictures of noise to take their place")
        if self.quality is None and self.timing is None:
            raise UserError("neither quality nor timing is asked for: --dry-run counts")
        self._check_quality()
        part = None if self.timing is None else self.timing.draw_steps
        if part is not None and part > self.draw.steps:
            raise UserError(f"timing.draw_steps {part} is more than draw.steps {self.draw.steps}")
        for ratio in self.published:
            for name in (ratio.row, ratio.base):
                if name not in [row.name for row in self.rows]:
                    raise UserError(f"published: no row is named {name!r}")
        return self

    def _check_quality(self) -> None:
        new = any(isinstance(row.codec, NewVAEConfig) for row in self.rows)
        if self.vae is not None and not new:
            raise IdleError("vae", "vae says how new VAEs are trained, and no row has one")
        if self.quality is None:
            if self.held_out is not None:
                raise IdleError("held_out", "held_out is what quality is measured against, and `quality` is not said")
            return
        if self.data is None or self.held_out is None:
            raise UserError("quality needs `data` to train on and `held_out` to compare with")
        if self.held_out == self.data:
            raise UserError("held_out should be other pictures than `data`")
        if new and self.vae is None:
            raise UserError("quality needs trained VAEs: `vae` says how")
        if self.train.lr_schedule != "constant":
            raise UserError(
                "train.lr_schedule should be constant: quality is measured on the way, where another schedule has not "
                "come to its end"
            )
        if 2 ** (self.quality.points - 1) > self.train.steps:
            raise UserError(f"quality.points {self.quality.points} is too many for {self.train.steps} steps")

    @property
    def marks(self) -> list[int]:
        """The steps at which quality is measured, in order."""
        points = 0 if self.quality is None else self.quality.points
        return [self.train.steps // 2**k for k in reversed(range(points))]

    def unet_of(self, row: RowConfig, channels: int, side: int) -> UNetConfig:
        """The U-Net of a row.

        Args:
            row: which.
            channels: of what it diffuses.
            side: of what it diffuses.

        Raises:
            UserError: there is no such U-Net.
        """
        own = {"in_channels": channels, "out_channels": channels, "sample_size": side}
        return UNetConfig.checked({**self.unet.model_dump(), **row.unet, **own})
