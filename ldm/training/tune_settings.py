"""What of a finished model is trained, and on what beside the data: settings of ``task: diffusion``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ldm.data.sources import SourceConfig
from ldm.errors import IdleError, UserError
from ldm.schema import Settings

LoraTargets = Literal["attention", "all-linear", "conv"]


class TextEncoderSettings(Settings):
    """What kinds of tuning say about the text encoders.

    Attributes:
        text_encoder: train them too.
        text_learning_rate: theirs, where it is not ``train.learning_rate``; 5e-6 is usual where all is trained.
    """

    text_encoder: bool = False
    text_learning_rate: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_rate(self) -> TextEncoderSettings:
        if self.text_learning_rate is not None and not self.text_encoder:
            raise IdleError("text_learning_rate", "text_learning_rate does nothing while text_encoder is false")
        return self


class FullTune(TextEncoderSettings):
    """Every weight of the network."""

    kind: Literal["full"] = "full"


class LoraTune(TextEncoderSettings):
    """Low-rank changes beside weights that stay as they are (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        rank: of every change; 4 to 32 are usual.
        alpha: the change is multiplied by alpha / rank; by default the rank.
        targets: the layers that are changed: those of ``attention``; ``all-linear``, which adds every other linear
            layer of the blocks; ``conv``, which adds every convolution there (LoCon); or names, such as ``to_q`` or a
            whole path.
        dropout: share of the inputs of the changes that is dropped.
    """

    kind: Literal["lora"]
    rank: int = Field(default=4, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: LoraTargets | tuple[str, ...] = "attention"
    dropout: float = Field(default=0.0, ge=0, lt=1)


class InversionTune(Settings):
    """A new word, and nothing else (textual inversion, Gal et al. 2022, https://arxiv.org/abs/2208.01618).

    Attributes:
        token: the new word, as captions and prompts write it.
        initializer: a word of about the meaning; the new one begins as it.
        vectors: tokens that the word stands for; more hold more of the concept, and leave a prompt less room.
    """

    kind: Literal["textual_inversion"]
    token: str = Field(min_length=1, pattern=r"^\S+$")
    initializer: str = Field(min_length=1)
    vectors: int = Field(default=1, ge=1)


TuneConfig = Annotated[FullTune | LoraTune | InversionTune, Field(discriminator="kind")]


class PriorPictures(Settings):
    """Pictures of the class that the model draws itself before training.

    Attributes:
        prompt: of all of them, such as ``a dog``.
        count: of pictures.
        batch_size: drawn at once.
    """

    prompt: str = Field(min_length=1)
    count: int = Field(default=200, ge=1)
    batch_size: int = Field(default=4, ge=1)


class PriorConfig(Settings):
    """What keeps a class what it was while one of its members is learned (DreamBooth, Ruiz et al. 2022, section 3.2).

    Half of the samples of each step are of the class; the loss is that of the others plus ``weight`` times theirs.

    Attributes:
        data: pictures of the class; a source as under the run's ``data``.
        generate: or pictures that the model draws itself, kept in the run's folder under ``prior``.
        weight: of the loss on them.
    """

    data: SourceConfig | None = None
    generate: PriorPictures | None = None
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> PriorConfig:
        if (self.data is None) == (self.generate is None):
            raise UserError("exactly one of `data` and `generate` says where the pictures of the class are from")
        return self


class MaskConfig(Settings):
    """What an inpainting network learns to fill: shares of four kinds of masks, in proportion to each other.

    Attributes:
        rectangles: one to four, each a tenth to a half of a side.
        strokes: a broad line through several points.
        whole: everything, which keeps the network able to draw from words alone.
        border: all but a large rectangle, as when a picture is made larger.
    """

    rectangles: float = Field(default=0.3, ge=0)
    strokes: float = Field(default=0.3, ge=0)
    whole: float = Field(default=0.25, ge=0)
    border: float = Field(default=0.15, ge=0)

    @model_validator(mode="after")
    def _check(self) -> MaskConfig:
        if not sum(self.shares):
            raise UserError("one of rectangles, strokes, whole and border must be more than 0")
        return self

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Of rectangles, strokes, whole and border."""
        return self.rectangles, self.strokes, self.whole, self.border


class ValidationConfig(Settings):
    """How a run is judged on the way.

    Attributes:
        count: pictures held out of training, to measure the loss on.
        times: noise levels that each of them is measured at.
        every: steps between two measurements.
        prompts: drawn at each, always from the same noise.
        pictures: of each prompt.
        seed: of what is held out, and of the noise and times.
    """

    count: int = Field(default=0, ge=0)
    times: int = Field(default=4, ge=1)
    every: int = Field(default=500, ge=1)
    prompts: tuple[str | int, ...] = ()
    pictures: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        if not self.count and not self.prompts:
            raise UserError(
                "validation has nothing to do: give `count` pictures to hold out, `prompts` to draw, or both"
            )
        return self


class MemorisedConfig(Settings):
    """A search for samples that are copies of training pictures; see ``ldm.training.memorised``.

    Attributes:
        pictures: of the training data that samples are compared with, at most.
        quantile: share of the training pictures that have a nearer neighbour than a sample may have.
    """

    pictures: int = Field(default=10_000, ge=2)
    quantile: float = Field(default=0.01, ge=0, lt=1)
