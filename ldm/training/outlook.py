"""How far training is: sheets of samples, and the loss on what is held out, with the averaged weights.

All processes work at it: each draws its share of the pictures and measures its share of the held-out ones, and the main
process writes what comes together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.training.averaging import Average
from ldm.training.journal import Journal
from ldm.training.parallel import Team
from ldm.training.settings import RunSettings
from ldm.training.signals import StopNote
from ldm.training.tasks import Task, Validated


class Outlook:
    """Draws and measures at the intervals that a run names.

    Args:
        run: its settings.
        task: what is trained.
        team: the processes.
        journal: in the main process alone.
        note: by which signals are heard.
    """

    def __init__(self, run: RunSettings, task: Task, team: Team, journal: Journal | None, note: StopNote) -> None:
        self._run, self._task, self._team, self._journal, self._note = run, task, team, journal, note
        validation: Any = getattr(run, "validation", None)
        self._judged = task if validation is not None and isinstance(task, Validated) else None
        self._validate_every = validation.every if validation is not None else 0

    def _draws_at(self, step: int) -> bool:
        return step % self._run.train.sample_every == 0 or step == self._run.train.steps

    def _validates_at(self, step: int) -> bool:
        return self._judged is not None and (step % self._validate_every == 0 or step == self._run.train.steps)

    def is_due(self, step: int) -> bool:
        """Whether there is anything to do after so many steps."""
        return self._draws_at(step) or self._validates_at(step)

    def lacks(self, step: int) -> bool:
        """Whether what was due after so many steps is not there, as it was broken off; all processes call it."""
        return self._team.tell(self._journal is not None and self._is_lacking(self._journal, step))

    def _is_lacking(self, journal: Journal, step: int) -> bool:
        if self._draws_at(step) and not self._place("samples", step).is_file():
            return True
        if not self._validates_at(step):
            return False
        validation: Any = getattr(self._run, "validation", None)
        measured = any(r["step"] == step and "validation_loss" in r for r in journal.records)
        drawn = self._place("validation", step).is_file()
        return (validation.count > 0 and not measured) or (len(validation.prompts) > 0 and not drawn)

    @torch.no_grad()
    def look(self, step: int, average: Average) -> None:
        """Do what is due after so many steps, as far as no signal comes; all processes call it.

        Raises:
            UserError: pictures cannot be drawn or written.
        """
        if not self.is_due(step):
            return
        with average.whole() as module:
            was_training = module.training
            module.eval()
            if self._validates_at(step):
                self._validate(module, step)
            if self._draws_at(step):
                self._sheet(self._task.draw, self._task.write_sheet, module, step, "samples")
            module.train(was_training)
        if self._journal is not None:
            self._journal.plot()

    def _place(self, folder: str, step: int) -> Path:
        return self._run.output / folder / f"step_{step:08d}.png"

    def _validate(self, module: nn.Module, step: int) -> None:
        task = self._judged
        assert task is not None
        with self._team.together():
            own = self._note.unless_told(lambda: task.validation(module, self._team.rank, self._team.size))
            shares = [share for share in self._team.gather(own) if share is not None]
        if len(shares) < self._team.size:
            return
        sums: dict[str, tuple[float, float]] = {}
        for name, (total, count) in (item for share in shares for item in share.items()):
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + total, before[1] + count
        means = {f"validation_{name}": total / count for name, (total, count) in sums.items() if count}
        if means and self._journal is not None:
            self._journal.write({"step": step, **means})
        self._sheet(task.draw_validation, task.write_validation, module, step, "validation")

    def _sheet(
        self,
        draw: Callable[[nn.Module, int, int], list[Tensor]],
        write: Callable[[list[Tensor], Path], dict[str, float]],
        module: nn.Module,
        step: int,
        folder: str,
    ) -> None:
        with self._team.together():
            own = self._note.unless_told(lambda: draw(module, self._team.rank, self._team.size))
            collected = self._team.collect(own)
            shares = [share for share in collected or () if share is not None]
            if len(shares) < self._team.size or not shares[0]:
                return
            # picture number k is number k // size of process k % size
            pictures = [share[k] for k in range(len(shares[0])) for share in shares if k < len(share)]
            told = write(pictures, self._place(folder, step))
            if told and self._journal is not None:
                self._journal.write({"step": step, **told})
