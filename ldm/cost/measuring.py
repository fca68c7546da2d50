"""A step of a run, taken on this machine and watched operator by operator; for ``ldm.cost.machine``."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from ldm.accel import peak_memory
from ldm.cost.counting import Clock, counting
from ldm.cost.machine import Measured
from ldm.data.samples import collate
from ldm.training.kinds import Run
from ldm.training.rehearsal import Rehearsed, rehearse
from ldm.training.tasks import Task

_ROUNDS = 5


class Watched(NamedTuple):
    """What was seen.

    Attributes:
        step: the passes of one micro-batch, operator by operator; None on a GPU, which is asked for much at a time.
        rehearsed: whole steps.
        memory: bytes that the run took at most beyond what the process held before.
    """

    step: Measured | None
    rehearsed: Rehearsed
    memory: int


def watch(run: Run) -> Watched:
    """Take a few steps of a run, which leave nothing behind.

    Args:
        run: its settings; one process.

    Raises:
        UserError: what the run itself would raise.
    """
    with peak_beyond() as peak:
        rehearsed, (memory, step) = rehearse(run, lambda task: (peak(), _passes_on_cpu(task, run.train.batch_size)))
    return Watched(step, rehearsed, memory)


def _passes_on_cpu(task: Task, batch_size: int) -> Measured | None:
    return None if torch.cuda.is_available() else passes_of(task, batch_size)


@contextmanager
def peak_beyond() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many bytes the process has held at most beyond what it holds now.

    What it has freed before is given back first, and the mark of the most that it held is lowered. Where the system
    does neither (it is not Linux), what it holds now is taken to be the most that it held so far.
    """
    cpu, status = torch.device("cpu"), Path("/proc/self/statm")
    before = round((peak_memory(cpu) or 0) * 2**20)
    if status.exists():
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # some containers forbid it: the mark is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        import resource

        before = int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    yield lambda: max(0, round((peak_memory(cpu) or 0) * 2**20) - before)


def passes_of(task: Task, batch_size: int, clock: Clock = time.perf_counter, rounds: int = _ROUNDS) -> Measured:
    """The passes of a task over one batch, whole and operator by operator in turn.

    Args:
        task: as it is trained.
        batch_size: of the batch.
        clock: ``time.process_time`` where one thread works and others use the machine too.
        rounds: how often.
    """
    batch: Any = collate(task.samples.__getitems__(list(range(batch_size))))
    players = {name: player.train() for name, player in task.players.items() if task.plays(name, 0)}
    _pass(players, batch)
    watched, fastest = [], float("inf")
    for _ in tqdm(range(rounds), desc="measuring", disable=None):
        began = clock()
        _pass(players, batch)
        fastest = min(fastest, clock() - began)
        with counting(clock) as ledger:
            _pass(players, batch)
        watched.append(ledger.calls)
    return Measured(watched, fastest)


def _pass(players: dict[str, nn.Module], batch: Any) -> None:
    """Forward and backward, as in ``Trainer.take_step``."""
    for player in players.values():
        player(batch, 0).loss.backward()
        player.zero_grad(set_to_none=True)
