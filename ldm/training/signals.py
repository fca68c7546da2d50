"""Being told to stop: SIGTERM, SIGUSR1 as Slurm sends it before a job's time is up, and Ctrl-C.

A signal only makes a note. All processes must stop after the same step, so they pass the note on: before a step they
begin to ask whether anybody has one, on the CPU, and after it they read the answer, which the step has had time to
bring. So nothing waits, and a run ends at the latest one step after that in which the signal came. A process that
hears it while it draws breaks that off, and it is drawn when the run goes on. The run saves a checkpoint and ends with
exit code 75 (``EX_TEMPFAIL`` of ``sysexits.h``: not done, try again), from which the programs that start runs can tell
it from one that is done; after Ctrl-C, with the usual 130. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ldm.training.parallel import Team

T = TypeVar("T")

EXIT_CODE, INTERRUPTED = 75, 130
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
_SAME = 1.0  # seconds in which one Ctrl-C may arrive twice: from the terminal, and passed on by torchrun
_HINT = (
    b"\nstopping after this step; Ctrl-C again ends at once, and what was learned since the last checkpoint is lost\n"
)


class Stopped(SystemExit):
    """A run has saved what it had when a signal asked it to stop."""

    def __init__(self, name: str) -> None:
        super().__init__(INTERRUPTED if name == "SIGINT" else EXIT_CODE)


class _BrokenOff(BaseException):
    """Ends what may be broken off; nobody between takes it for a mistake."""


class StopNote:
    """Whether a process of the team was told to stop, while this is entered.

    In a thread other than the main one no signal can be listened to, and only the other processes' notes are heard.
    """

    def __init__(self, team: Team) -> None:
        self._team, self._noted, self._when = team, 0, 0.0
        self._may_break = False
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
        if number == signal.SIGINT:
            if self._noted == number and time.monotonic() - self._when > _SAME:
                raise KeyboardInterrupt
            if self._noted != number and self._team.is_main:
                os.write(2, _HINT)  # print may be in the middle of a line
        self._noted, self._when = number, time.monotonic()
        if self._may_break:
            self._may_break = False  # once: a second one would break off what the first has to tidy up
            raise _BrokenOff

    def unless_told(self, function: Callable[[], T]) -> T | None:
        """Call what computes and leaves nothing behind; None where a signal comes to this process, or came before."""
        try:
            try:
                self._may_break = True
                return None if self._noted else function()
            finally:
                self._may_break = False
        except _BrokenOff:
            return None

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
