"""A training that is only costed: what a file of ``configs/cost`` may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ldm.errors import UserError
from ldm.schema import Settings
from ldm.training.train_settings import TrainSettings


class Stage(Settings):
    """Pictures of one size.

    Attributes:
        side: height and width in pixels.
        pictures: seen in all.
        batch_size: of a device, at a time.
        gradient_accumulation: how often, for a step.
        published: what others measured for this stage, in pictures a second and device.
    """

    side: PositiveInt
    pictures: PositiveInt
    batch_size: PositiveInt
    gradient_accumulation: PositiveInt = 1
    published: PositiveFloat | None = None


class CostPlan(Settings):
    """A model of a family of Stable Diffusion, from scratch.

    Attributes:
        family: as ``ldm info`` calls it: sd1, sd2, sdxl, and each with -inpainting.
        stages: in turn.
        cached: latents and texts were encoded before; what that took is not in the cost.
        mixed_precision, gradient_checkpointing, parallel, optimizer, ema_decay: as under ``train`` of a run.
        devices: how many.
        device: what they are: a name that ``ldm cost --device-tflops`` knows, or TFLOP/s.
        mfu: share of their peak that is reached.
        price: of a device and hour.
        published_hours: hours of devices that others needed.
        source: who published that.
        assumed: what in this file was not published, in words.
    """

    task: Literal["cost"]
    family: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    cached: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    devices: PositiveInt = 1
    device: str | PositiveFloat = "A100"
    mfu: float = Field(default=0.3, gt=0, le=1)
    price: float | None = Field(default=None, ge=0)
    published_hours: PositiveFloat | None = None
    source: str = ""
    assumed: str = ""

    @model_validator(mode="after")
    def _check(self) -> CostPlan:
        figures = self.published_hours is not None or any(stage.published is not None for stage in self.stages)
        if figures != bool(self.source):
            raise UserError("published figures and `source`, who published them, go together")
        return self

    def train(self, stage: Stage) -> TrainSettings:
        """The settings of a run that would train a stage on these devices."""
        together = stage.batch_size * stage.gradient_accumulation * self.devices
        return TrainSettings(
            steps=max(1, round(stage.pictures / together)),
            batch_size=stage.batch_size,
            gradient_accumulation=stage.gradient_accumulation,
            mixed_precision=self.mixed_precision,
            gradient_checkpointing=self.gradient_checkpointing,
            parallel=self.parallel,
            optimizer=self.optimizer,
            ema_decay=self.ema_decay,
        )
