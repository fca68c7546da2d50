"""The settings of a generative adversarial network: what a configuration with ``task: gan`` may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ldm.models.generator import GeneratorConfig
from ldm.schema import Settings
from ldm.training.settings import RunSettings
from ldm.training.train_settings import TrainSettings


class GanTrain(TrainSettings):
    """How to train.

    Attributes:
        adam_beta1: lower than elsewhere, as is usual for an adversary that moves (Radford et al. 2016).
    """

    adam_beta1: float = Field(default=0.5, ge=0, lt=1)


class DiscriminatorSettings(Settings):
    """The adversary: ``ldm.models.discriminator.PatchDiscriminator``.

    Attributes:
        layers: how often it halves the picture.
        channels: of its first convolution.
    """

    layers: int = Field(default=2, ge=1)
    channels: int = Field(default=64, ge=1)


class GanRun(RunSettings):
    """A GAN with the hinge loss.

    Attributes:
        generator: its shape.
        discriminator: that of its adversary.
        count: pictures on the sheets of the run.
        columns: pictures in a row.
    """

    task: Literal["gan"]
    train: GanTrain
    generator: GeneratorConfig
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    count: int = Field(default=40, ge=1)
    columns: int = Field(default=10, ge=1)
