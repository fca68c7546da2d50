"""The settings of consistency distillation: what a configuration with ``task: lcm`` may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.errors import IdleError, UserError
from ldm.schema import Settings
from ldm.training.settings import RunSettings

Guidance = float | tuple[float, float]
EMBEDDED: Guidance = (5.0, 15.0)  # what students are told, and what they have if they cannot be told
FIXED: Guidance = 7.5


class FullStudent(Settings):
    """Every weight is trained."""

    kind: Literal["full"] = "full"


class LcmSample(Settings):
    """How a run, and the student it leaves, draws by default.

    Attributes:
        steps: 1 to 50; 4 is usual.
        guidance: what the student is told where nothing is said; by default the teacher's own, within the range that
            was trained. Only for students that are told.
        conditions: what the pictures of the sample sheet show, in turn; unconditional where empty.
        count: pictures on the sheet.
        columns: pictures in a row.
    """

    steps: int = Field(default=4, ge=1, le=50)
    guidance: float | None = None
    conditions: tuple[str | int, ...] = ()
    count: int = Field(default=40, ge=1)
    columns: int = Field(default=10, ge=1)


class LcmRun(RunSettings):
    """Consistency distillation; the theory is in ``ldm.diffusion.consistency``.

    ``train.ema_decay`` is that of the target network (0.95 is usual), which is also what checkpoints draw with.

    Attributes:
        teacher: a model that draws, as ``ldm generate --model`` takes it.
        tune: every weight of a copy of the teacher, or a LoRA.
        guidance: scale of the teacher's guidance, 1 is none. Two numbers: drawn between them for every sample, and told
            to the student. One number: the student is not told, and has learned it. By default 5 to 15; 7.5 for a LoRA,
            which cannot be told; 1 for teachers without conditions.
        guidance_waves: width of the waves in which the student is told it (``time_cond_proj_dim`` of its U-Net).
        solver_steps: DDIM steps in which the teacher walks from noise to a picture.
        huber_c: where the loss changes from quadratic to linear.
        sample: the sheets of the run, and the defaults of the model.
    """

    task: Literal["lcm"]
    teacher: str = Field(min_length=1)
    tune: FullStudent = FullStudent()
    guidance: Guidance | None = None
    guidance_waves: int = Field(default=256, ge=4, multiple_of=2)
    solver_steps: int = Field(default=50, ge=1)
    huber_c: float = Field(default=0.001, gt=0)
    sample: LcmSample = LcmSample()

    @model_validator(mode="after")
    def _check(self) -> LcmRun:
        if isinstance(self.guidance, tuple) and not self.guidance[0] < self.guidance[1]:
            raise UserError(f"guidance should be one number, or two of which the second is larger: {self.guidance}")
        if isinstance(self.guidance, float) and self.sample.guidance is not None:
            raise IdleError("sample.guidance", f"the student is not told its guidance, it learns {self.guidance:g}")
        return self
