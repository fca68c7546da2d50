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
from ldm.training.tasks import Task, Validated


class Outlook:
    """Draws and measures at the intervals that a run names.

    Args:
        run: its settings.
        task: what is trained.
        team: the processes.
        journal: in the main process alone.
    """

    def __init__(self, run: RunSettings, task: Task, team: Team, journal: Journal | None) -> None:
        self._run, self._task, self._team, self._journal = run, task, team, journal
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

    @torch.no_grad()
    def look(self, step: int, average: Average) -> None:
        """Do what is due after so many steps; all processes call it.

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

    def _validate(self, module: nn.Module, step: int) -> None:
        task = self._judged
        assert task is not None
        with self._team.together():
            shares = self._team.gather(task.validation(module, self._team.rank, self._team.size))
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
            shares = self._team.collect(draw(module, self._team.rank, self._team.size))
            if shares is None or not shares[0]:
                return
            # picture number k is number k // size of process k % size
            pictures = [share[k] for k in range(len(shares[0])) for share in shares if k < len(share)]
            told = write(pictures, self._run.output / folder / f"step_{step:08d}.png")
            if told and self._journal is not None:
                self._journal.write({"step": step, **told})
