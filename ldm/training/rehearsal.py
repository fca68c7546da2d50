"""A few steps of a run that leave nothing behind, to see what all of them will cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.accel import peak_memory
from ldm.data.samples import Batch
from ldm.flops import formulas
from ldm.training.loader import batches
from ldm.training.meter import Meter
from ldm.training.run import build_task, processes, provenance
from ldm.training.settings import RunSettings
from ldm.training.tasks import Task
from ldm.training.trainer import Trainer, seed_weights

STEPS = 3
_ENDLESS = 10**9  # steps that a rehearsal could take


@dataclass(frozen=True)
class Rehearsed:
    """What a process has measured.

    Attributes:
        seconds: of a step, the median.
        waited: of these, for data.
        sheet: seconds in which a sheet of samples is drawn.
        flops: operations of a step of this process, forwards and backwards, as of ``ldm.flops``.
        memory: MiB, as ``ldm.accel.peak_memory`` has them.
        reserved: MiB that torch has reserved on a GPU; None elsewhere.
        parameters, trained: numbers in all networks, and those that are trained.
        device: its name.
        devices: processes.
        samples: of a step, over all processes.
        skipped: examples that could not be used.
    """

    seconds: float
    waited: float
    sheet: float
    flops: int
    memory: float | None
    reserved: float | None
    parameters: int
    trained: int
    device: str
    devices: int
    samples: int
    skipped: tuple[str, ...]


def rehearse(
    run: RunSettings,
    look: Callable[[Task], Any] = lambda task: None,
    *,
    steps: int = STEPS,
    least: float = 0.0,
    sheet: bool = True,
) -> tuple[Rehearsed, Any]:
    """Set a run up, take one step to warm up and some that are timed, draw a sheet, and forget it all.

    A step before those has its operations counted, without compilation, whose graphs a counter does not see.

    Args:
        run: its settings; nothing is written to its folder but what it makes before it begins, such as a cache.
        look: is given the task.
        steps: to be timed at least.
        least: seconds that are timed at least.
        sheet: draw one; without, its seconds are 0, and its memory is not in the peak.

    Returns:
        What was measured in this process, and what ``look`` returned.

    Raises:
        UserError: what the run itself would raise.
    """
    with processes(run) as (accelerator, team):
        seed_weights(run.seed)
        task = build_task(run, accelerator.device)
        trainer = Trainer(run, task, accelerator, team, provenance(run))
        train = run.train.model_copy(update={"steps": _ENDLESS})
        meter = Meter()
        with contextlib.closing(batches(task.samples, 0, train, team, accelerator.device)) as source:
            flops, _, _ = _take(trainer, source, meter, counted=True)
            _take(trainer, source, meter)  # where compilation happens
            timed: list[tuple[float, float]] = []
            while len(timed) < steps or sum(whole for whole, _ in timed) < least:
                timed.append(_take(trainer, source, meter)[1:])
        modules = [*task.players.values()]
        found = Rehearsed(
            seconds=median(whole for whole, _ in timed),
            waited=median(waited for _, waited in timed),
            sheet=_sheet(trainer) if sheet else 0.0,
            flops=flops,
            memory=peak_memory(accelerator.device),
            reserved=_reserved(accelerator.device),
            parameters=_numbers(modules, trained=False),
            trained=_numbers(modules, trained=True),
            device=_name(accelerator.device),
            devices=team.size,
            samples=run.train.batch_size * run.train.gradient_accumulation * team.size,
            skipped=tuple(dict.fromkeys(skip.message for skip in meter.skipped)),
        )
        return found, look(task)


def _take(trainer: Trainer, source: Iterator[Batch], meter: Meter, counted: bool = False) -> tuple[int, float, float]:
    """One step, finished on the device: its operations where counted, its seconds, and those of waiting for data."""
    began = time.perf_counter()
    micro = [next(source) for _ in range(trainer.run.train.gradient_accumulation)]
    waited, flops = time.perf_counter() - began, 0
    if counted:
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=formulas()) as of:
            trainer.take_step(micro, meter)
        flops = of.get_total_flops()
    else:
        trainer.take_step(micro, meter)
    trainer.step += 1
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize(trainer.accelerator.device)
    return flops, time.perf_counter() - began, waited


@torch.no_grad()
def _sheet(trainer: Trainer) -> float:
    """Draw this process's share of a sheet of samples: its seconds."""
    began, team = time.perf_counter(), trainer.team
    with trainer.average.whole() as module:
        trainer.task.draw(module.eval(), team.rank, team.size)
    return time.perf_counter() - began


def _reserved(device: torch.device) -> float | None:
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None


def _numbers(modules: list[nn.Module], trained: bool) -> int:
    parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad or not trained}
    return sum(p.numel() for p in parameters.values())


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
