"""Batches of this process, prepared ahead in other processes and on their way to the device while it works."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ldm.data.order import ShardedBatches
from ldm.data.samples import Batch, TrainingSamples, collate
from ldm.errors import UserError
from ldm.training.parallel import Team
from ldm.training.signals import leave_to_parent
from ldm.training.skipped import stop_of
from ldm.training.train_settings import TrainSettings


class _Batches(Dataset[Any]):
    """Whole batches, or the message of a mistake: an exception of a worker would arrive with its traceback as text."""

    def __init__(self, samples: TrainingSamples) -> None:
        self._samples = samples

    def __getitem__(self, numbers: list[int]) -> Batch | str:
        try:
            return collate(self._samples.__getitems__(numbers))
        except UserError as error:
            return stop_of(error)


def samples_per_step(settings: TrainSettings, team: Team) -> int:
    """Samples of a step, over all processes."""
    return settings.batch_size * settings.gradient_accumulation * team.size


def check_samples(wanted: int, settings: TrainSettings, team: Team) -> None:
    """Refuse to go on with another number of samples in a step than a run has had so far.

    Raises:
        UserError: with the settings that would do.
    """
    found = samples_per_step(settings, team)
    if found == wanted:
        return
    told = (
        f"a step of this run has {wanted} samples, and {team.size} process{'es' * (team.size > 1)} with "
        f"train.batch_size {settings.batch_size} and train.gradient_accumulation {settings.gradient_accumulation} "
        f"make it {found}"
    )
    each, rest = divmod(wanted, team.size)
    if rest:
        fitting = ", ".join(str(n) for n in range(1, wanted + 1) if wanted % n == 0)
        raise UserError(f"{told}; {wanted} cannot be shared by {team.size} processes, but by {fitting}")
    sizes = [size for size in range(1, each + 1) if each % size == 0]
    near = sorted(sizes, key=lambda size: abs(size - settings.batch_size))[:3]
    ways = " or ".join(f"train.batch_size={size} train.gradient_accumulation={each // size}" for size in near)
    raise UserError(f"{told}; {ways} would do")


def batches(
    samples: TrainingSamples, first_step: int, settings: TrainSettings, team: Team, device: torch.device
) -> Generator[Batch, None, None]:
    """The micro-batches of this process from a step on, on ``device``; to be closed by who asks for them.

    Raises:
        UserError: the data cannot be used.
    """
    samples.begin(samples_per_step(settings, team))
    order = ShardedBatches(
        first_step,
        settings.steps,
        settings.batch_size,
        rank=team.rank,
        processes=team.size,
        accumulation=settings.gradient_accumulation,
    )
    loader: Any = DataLoader(
        _Batches(samples),
        sampler=order,
        batch_size=None,  # what the sampler gives is a whole batch
        num_workers=settings.workers,
        prefetch_factor=settings.prefetch if settings.workers else None,
        worker_init_fn=leave_to_parent,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch.to(device)
