"""What a training costs on paper: operations, memory, time and money, stage by stage.

Time is that of computing: waiting for data, exchange between devices, pictures and checkpoints on the way are not in it
(``ldm train --dry-run`` measures what they take where the run is to be).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm.cost.counting import Kind, Work, Works, add_all
from ldm.cost.diffusion_step import UNET, DiffusionStep
from ldm.cost.inventory import Network, networks_of
from ldm.cost.machine import Machine
from ldm.cost.memory import Memory, gradients_stay, memory_of
from ldm.cost.step import Counted, Step, count_step
from ldm.training.train_settings import TrainSettings
from ldm.training.tune_settings import FullTune

# Bytes moved for a number that is trained: the norm of the gradient reads it; clipping reads and writes it; AdamW reads
# weight, gradient and two moments and writes three of them; the average reads two and writes one.
_CLIP, _ADAMW, _AVERAGE = 4 + 8, 4 * 7, 4 * 3


@dataclass(frozen=True)
class Speed:
    """What a device does: operators priced one by one, or operations a second at a utilisation.

    Attributes:
        machine: measured; None for a device on paper.
        tflops: the device's peak, in TFLOP/s.
        mfu: share of it that is reached.
        beside: bytes that a run was seen to hold on it beside what is counted.
        assumed: what of this has no source, in words.
    """

    machine: Machine | None = None
    tflops: float = 0.0
    mfu: float = 0.0
    beside: int = 0
    assumed: str = ""

    def seconds(self, works: Works) -> float:
        """Of work."""
        if self.machine is not None:
            return self.machine.seconds(works)
        return sum(work.flops for work in works.values()) / (self.tflops * 1e12 * self.mfu)


@dataclass(frozen=True)
class Stage:
    """A part of a training whose steps are alike.

    Attributes:
        title: what tells it from others.
        steps: how many.
        accumulation: micro-batches of a step.
        devices: that share a step.
        counted: a micro-batch of one device.
        memory: of a device.
        networks: all that the model is made of, with operations of a forward pass for a picture.
        seconds: of a step; None where no speed is known.
    """

    title: str
    steps: int
    accumulation: int
    devices: int
    counted: Counted
    memory: Memory
    networks: dict[str, Network]
    seconds: float | None

    @property
    def pictures(self) -> int:
        """Of a step, on all devices."""
        return self.counted.batch * self.accumulation * self.devices

    @property
    def rate(self) -> float | None:
        """Pictures a second and device."""
        return None if self.seconds is None else self.pictures / self.devices / self.seconds

    @property
    def flops(self) -> int:
        """Operations of the stage, on all devices."""
        return self.counted.flops * self.accumulation * self.devices * self.steps

    @property
    def device_hours(self) -> float | None:
        """Hours of devices."""
        return None if self.seconds is None else self.seconds * self.steps * self.devices / 3600

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        counted, memory = self.counted, self.memory
        return {
            "title": self.title,
            "steps": self.steps,
            "pictures_per_step": self.pictures,
            "numbers_per_picture": counted.numbers,
            "networks": {name: network._asdict() for name, network in self.networks.items()},
            "step": {
                name: {"forward": part.forward * self.accumulation, "backward": part.backward * self.accumulation}
                | {"parameters": part.parameters, "trained": part.trained}
                for name, part in counted.parts.items()
            },
            "flops_per_step_and_device": counted.flops * self.accumulation,
            "activations_by_dtype": counted.activations,
            "memory_per_device": {**vars(memory), "total": memory.total},
            "seconds_per_step": self.seconds,
            "pictures_per_second_and_device": self.rate,
            "flops": self.flops,
            "device_hours": self.device_hours,
        }


def stage_of(
    title: str, step: Step, train: TrainSettings, steps: int, devices: int, speed: Speed | None, gpu: bool
) -> Stage:
    """Count a stage.

    Args:
        title: what to call it.
        step: the passes of its micro-batches.
        train: how it is trained.
        steps: how many.
        devices: that share the work.
        speed: of a device, if known.
        gpu: memory is that of a GPU.
    """
    stays = gradients_stay(train, devices)
    counted = count_step(step, gpu=gpu, gathered=train.parallel == "fsdp", kept=stays)
    seconds = None if speed is None else speed.seconds(works_of_step(counted, train))
    networks = networks_of(step.shape, step.side, _unet(step, counted)) if isinstance(step, DiffusionStep) else {}
    memory = memory_of(counted, train, devices, 0 if speed is None else speed.beside)
    return Stage(title, steps, train.gradient_accumulation, devices, counted, memory, networks, seconds)


def _unet(step: DiffusionStep, counted: Counted) -> Network | None:
    """The U-Net as the step has counted it; None where the step has changed it."""
    if step.asked or not isinstance(step.tune, FullTune):
        return None
    part = counted.parts[UNET]
    return Network(part.parameters, part.forward // counted.batch)


def works_of_step(counted: Counted, train: TrainSettings) -> Works:
    """All that one device does in a step: its micro-batches, clipping, the optimiser and the average."""
    works: Works = {}
    add_all(works, counted.works, train.gradient_accumulation)
    moved = counted.trained * (_CLIP + _ADAMW) + (counted.averaged * _AVERAGE if train.ema_decay > 0 else 0)
    works[Kind("optimiser", "float32")] = Work(0, moved, 0)
    return works
