"""The settings of consistency distillation: what a configuration with ``task: lcm`` may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ldm.errors import IdleError, UserError
from ldm.schema import Settings
from ldm.training.settings import DiffusionRun, ModelRun
from ldm.training.train_settings import TrainSettings
from ldm.training.tune_settings import FullTune, LoraTune

Guidance = float | tuple[float, float]
TOLD: Guidance = (5.0, 15.0)  # students that are told their guidance, and those that are not
LEARNED: Guidance = 7.5


class LcmTrain(TrainSettings):
    """How to train.

    Attributes:
        ema_decay: of the target network, which is also what checkpoints draw with; 0 takes the student itself.
    """

    ema_decay: float = Field(default=0.95, ge=0, lt=1)


class LcmSample(Settings):
    """How a run, and the student it leaves, draws by default.

    Attributes:
        steps: 1 to 50; 4 is usual.
        guidance: what the student is told; by default the teacher's own, within the range that was trained. For
            students that are told it.
        conditions: what the pictures of the sample sheet show, in turn; unconditional where empty.
        count: pictures on the sheet.
        columns: pictures in a row.
    """

    steps: int = Field(default=4, ge=1, le=50)
    guidance: float | None = None
    conditions: tuple[str | int, ...] = ()
    count: int = Field(default=40, ge=1)
    columns: int = Field(default=10, ge=1)


class LcmRun(ModelRun):
    """Consistency distillation; the theory is in ``ldm.diffusion.consistency``.

    Attributes:
        teacher: a model that draws, as ``ldm generate --model`` takes it.
        tune: every weight of a copy of the teacher, or a LoRA.
        guidance: scale of the teacher's guidance; 1 is none. Two numbers: drawn between them for every sample, and told
            to the student. One number: the student learns that one, and is told nothing. By default 5 to 15; 7.5 for a
            LoRA, which cannot be told; 1 for teachers without conditions.
        guidance_waves: width of the waves in which the student is told it (``time_cond_proj_dim`` of its U-Net).
        solver_steps: DDIM steps in which the teacher would walk from noise to a picture.
        huber_c: about where the loss changes from quadratic to linear.
        sample: the sheets of the run, and the defaults of the model.
    """

    task: Literal["lcm"]
    train: LcmTrain
    teacher: str = Field(min_length=1)
    tune: Annotated[FullTune | LoraTune, Field(discriminator="kind")] = FullTune()
    guidance: Guidance | None = None
    guidance_waves: int = Field(default=256, ge=4, multiple_of=2)
    solver_steps: int = Field(default=50, ge=1)
    huber_c: float = Field(default=0.001, gt=0)
    sample: LcmSample = LcmSample()

    @model_validator(mode="after")
    def _check(self) -> LcmRun:
        told = isinstance(self.guidance, tuple)
        if isinstance(self.guidance, tuple) and not self.guidance[0] < self.guidance[1]:
            raise UserError("guidance should be one number, or two of which the second is larger")
        if self.tune.text_encoder:
            raise UserError("tune.text_encoder: distillation leaves the text encoder as it is")
        if isinstance(self.tune, LoraTune) and told:
            raise UserError("a LoRA cannot be told its guidance: give one number in place of a range")
        if self.sample.guidance is not None and not told and not (self.guidance is None and self.tune.kind == "full"):
            raise IdleError("sample.guidance", "sample.guidance is for students that are told it, from a range of it")
        return self

    def of_teacher(self) -> DiffusionRun:
        """The run that would train the teacher itself on these data: what it starts from and keeps serves both."""
        shared = {name: getattr(self, name) for name in ModelRun.model_fields}
        return DiffusionRun(task="diffusion", model=self.teacher, **shared)
