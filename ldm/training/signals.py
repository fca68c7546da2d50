"""Being told to stop: SIGTERM, and SIGUSR1 as Slurm sends it before a job's time is up.

A signal only makes a note. All processes must stop after the same step, so they pass the note on: before a step they
begin to ask whether anybody has one, on the CPU, and after it they read the answer, which the step has had time to
bring. So nothing waits, and a run ends at the latest one step after that in which the signal came. It saves a
checkpoint and ends with exit code 75 (``EX_TEMPFAIL`` of ``sysexits.h``: not done, try again), from which the programs
that start runs can tell it from one that is done.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ldm.training.parallel import Team

EXIT_CODE = 75
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A run has saved what it had when a signal asked it to stop."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopNote:
    """Whether a process of the team was told to stop, while this is entered.

    In a thread other than the main one no signal can be listened to, and only the other processes' notes are heard.
    """

    def __init__(self, team: Team) -> None:
        self._team, self._noted = team, 0
        self._before: dict[int, Any] = {}
        self._answer: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> StopNote:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        if self._answer is not None and exception[0] is None:
            self._answer[1].wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number

    def ask(self) -> None:
        """Begin to ask all processes: before a step."""
        if self._team.group is not None:
            note = torch.tensor(self._noted)
            self._answer = note, dist.all_reduce(note, dist.ReduceOp.MAX, group=self._team.group, async_op=True)

    def heard(self) -> str | None:
        """The name of the signal that some process had when :meth:`ask` was called: after the step, in all of them."""
        number = self._noted
        if self._answer is not None:
            note, work = self._answer
            work.wait()
            self._answer, number = None, int(note)
        return signal.Signals(number).name if number else None


def leave_to_parent(worker: int) -> None:
    """In a process that prepares samples: go on when the whole job is told to stop, as the step that runs needs it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
