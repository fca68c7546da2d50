"""Plans and run configurations as estimates; published figures beside what is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from ldm.config import read_tree, validate
from ldm.cost.architecture import of_family
from ldm.cost.diffusion_step import DiffusionStep
from ldm.cost.estimate import Speed, Stage, stage_of
from ldm.cost.money import money_of
from ldm.cost.of_run import HALF, steps_of
from ldm.cost.settings import CostPlan
from ldm.errors import UserError
from ldm.training.gan_settings import GanRun
from ldm.training.kinds import Run
from ldm.training.settings import VAERun

Costed = Annotated[Run | CostPlan, Field(discriminator="task")]


@dataclass(frozen=True)
class Published:
    """What others measured.

    Attributes:
        what: of what.
        predicted, published: in the same unit.
        source: who published it.
    """

    what: str
    predicted: float
    published: float
    source: str

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was published."""
        return self.predicted / self.published - 1

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "error": self.error}


@dataclass(frozen=True)
class Estimate:
    """A training on paper.

    Attributes:
        title: what it is of.
        task: of its configuration.
        parallel: how devices share the work.
        stages: in turn.
        speed: what time was priced with; None where it was not.
        price: of a device and hour.
        published: figures of others.
        notes: what is assumed.
    """

    title: str
    task: str
    parallel: str
    stages: tuple[Stage, ...]
    speed: Speed | None
    price: float | None = None
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Operations of all stages, on all devices."""
        return sum(stage.flops for stage in self.stages)

    @property
    def device_hours(self) -> float | None:
        """Of all stages."""
        return None if self.speed is None else sum(stage.device_hours or 0.0 for stage in self.stages)

    @property
    def hours(self) -> float | None:
        """From the first step to the last."""
        return None if self.device_hours is None else self.device_hours / self.stages[0].devices

    @property
    def money(self) -> float | None:
        """Of all devices."""
        return money_of(self.device_hours, self.price)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "task": self.task,
            "devices": self.stages[0].devices,
            "parallel": self.parallel,
            "stages": [stage.as_data() for stage in self.stages],
            "flops": self.flops,
            "device_hours": self.device_hours,
            "hours": self.hours,
            "price": self.price,
            "money": self.money,
            "published": [figure.as_data() for figure in self.published],
            "notes": list(self.notes),
        }


def read(path: Path, overrides: list[str]) -> Run | CostPlan:
    """A run configuration, or a plan.

    Raises:
        UserError: the file is missing, no YAML, or says what it may not.
    """
    return validate(read_tree(path, overrides), str(path), Costed)


def estimate_plan(plan: CostPlan, speed: Speed, devices: int, price: float | None) -> Estimate:
    """What a plan costs on so many devices."""
    stages = []
    for told in tqdm(plan.stages, desc="counting", unit="stage", disable=None):
        if told.side % 64:
            raise UserError(f"stages: a side of {told.side} is no multiple of 64, as the U-Net of {plan.family} needs")
        step = DiffusionStep(
            of_family(plan.family, told.side),
            told.batch_size,
            told.side,
            half=HALF[plan.mixed_precision],
            checkpointing=plan.gradient_checkpointing,
            encodes=not plan.cached,
            reads=not plan.cached,
        )
        train = plan.model_copy(update={"devices": devices}).train(told)
        title = f"{told.pictures:,} pictures of {told.side} x {told.side}"
        stages.append(stage_of(title, step, train, train.steps, devices, speed, gpu=True))
    found = Estimate(plan.family, plan.task, plan.parallel, tuple(stages), speed, price)
    notes = tuple(note for note in (plan.assumed, speed.assumed) if note)
    return Estimate(**{**vars(found), "published": _published(plan, found), "notes": notes})


def _published(plan: CostPlan, found: Estimate) -> tuple[Published, ...]:
    figures = []
    for told, stage in zip(plan.stages, found.stages, strict=True):
        if told.published is not None and stage.rate is not None:
            figures.append(Published(f"pictures/s and device at {told.side}", stage.rate, told.published, plan.source))
    if plan.published_hours is not None and found.device_hours is not None:
        figures.append(Published("hours of devices", found.device_hours, plan.published_hours, plan.source))
    return tuple(figures)


def estimate_run(run: Run, speed: Speed | None, devices: int, price: float | None, gpu: bool) -> Estimate:
    """What a run costs on so many devices.

    Args:
        run: its settings; its number of steps stays, whatever the devices.
        speed: of a device, where it is known.
        devices: that share the work, each with ``train.batch_size`` pictures at a time.
        price: of a device and hour.
        gpu: devices are GPUs.

    Raises:
        UserError: a model that it begins with is not to be had.
    """
    kinds = steps_of(run)
    has_adversary = isinstance(run, GanRun) or (isinstance(run, VAERun) and run.loss.adversarial > 0)
    if run.train.parallel == "fsdp" and has_adversary:
        raise UserError("train.parallel fsdp splits one network, and this task trains two in turn: use ddp")
    titles = ["the run"] if len(kinds) == 1 else ["before the adversary", "with the adversary"]
    stages = [
        stage_of(title, step, run.train, steps, devices, speed, gpu)
        for title, (steps, step) in zip(titles, kinds, strict=True)
    ]
    notes = () if speed is None or not speed.assumed else (speed.assumed,)
    return Estimate(str(run.output), run.task, run.train.parallel, tuple(stages), speed, price, notes=notes)
