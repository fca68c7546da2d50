"""How far training is: sheets of samples, and the loss on what is held out, with the averaged weights.

All processes work at it: each draws its share of the pictures and measures its share of the held-out ones, and the main
process writes what comes together. A signal breaks it off; what is lacking then is made when the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.training.averaging import Average
from ldm.training.journal import Journal
from ldm.training.parallel import Team
from ldm.training.settings import RunSettings
from ldm.training.signals import StopNote
from ldm.training.tasks import Task, Validated

Part = Literal["loss", "validation", "samples"]  # the loss on what is held out, and folders of sheets


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
        self._judged = task if isinstance(task, Validated) else None
        self._validation: Any = getattr(run, "validation", None)

    def due(self, step: int) -> tuple[Part, ...]:
        """What there is to do after so many steps."""
        train, validation = self._run.train, self._validation
        validates = validation is not None and (step % validation.every == 0 or step == train.steps)
        wanted: dict[Part, bool] = {
            "loss": bool(validates and self._validation.count),
            "validation": bool(validates and self._validation.prompts),
            "samples": step % train.sample_every == 0 or step == train.steps,
        }
        return tuple(part for part, is_wanted in wanted.items() if is_wanted)

    def lacking(self, step: int) -> tuple[Part, ...]:
        """What was due after so many steps and is not there, as it was broken off; all processes call it."""
        due = self.due(step)
        found: list[Part] = [part for part in due if self._journal is not None and not self._is_there(part, step)]
        return self._team.tell((*found,))

    def _is_there(self, part: Part, step: int) -> bool:
        assert self._journal is not None
        if part == "loss":
            return any(r["step"] == step and "validation_loss" in r for r in self._journal.records)
        return self._sheet(part, step).is_file()

    @torch.no_grad()
    def look(self, step: int, average: Average, parts: Sequence[Part]) -> None:
        """Do ``parts`` of what is due after so many steps, until a signal comes; all processes call it.

        Raises:
            UserError: in all processes, where one of them cannot draw, measure or write.
        """
        with average.whole() as module:
            was_training = module.training
            module.eval()
            for part in parts:
                if not self._whole(part, module, step):
                    break
            module.train(was_training)
        if self._journal is not None:
            self._journal.plot()

    def _whole(self, part: Part, module: nn.Module, step: int) -> bool:
        """Do one thing; whether it was not broken off."""
        task, judged = self._task, self._judged
        if part == "samples":
            return self._draw(task.draw, task.write_sheet, module, self._sheet(part, step), step)
        assert judged is not None
        if part == "loss":
            return self._measure(judged, module, step)
        return self._draw(judged.draw_validation, judged.write_validation, module, self._sheet(part, step), step)

    def _sheet(self, folder: str, step: int) -> Path:
        return self._run.output / folder / f"step_{step:08d}.png"

    def _measure(self, task: Validated, module: nn.Module, step: int) -> bool:
        with self._team.together():
            own = self._note.unless_told(lambda: task.validation(module, self._team.rank, self._team.size))
        shares = [share for share in self._team.gather(own) if share is not None]
        if len(shares) < self._team.size:
            return False
        sums: dict[str, tuple[float, float]] = {}
        for name, (total, count) in (item for share in shares for item in share.items()):
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + total, before[1] + count
        self._log(step, {f"validation_{name}": total / count for name, (total, count) in sums.items() if count})
        return True

    def _draw(
        self,
        draw: Callable[[nn.Module, int, int], list[Tensor]],
        write: Callable[[list[Tensor], Path], dict[str, float]],
        module: nn.Module,
        place: Path,
        step: int,
    ) -> bool:
        with self._team.together():
            own = self._note.unless_told(lambda: draw(module, self._team.rank, self._team.size))
        if not all(self._team.gather(own is not None)):
            return False
        shares, told = self._team.collect(own or []), {}
        with self._team.together():
            if shares is not None and shares[0]:
                # picture number k is number k // size of process k % size
                pictures = [share[k] for k in range(len(shares[0])) for share in shares if k < len(share)]
                told = self._note.unless_told(lambda: write(pictures, place))
        self._log(step, told or {})
        return self._team.tell(told is not None)

    def _log(self, step: int, told: dict[str, float]) -> None:
        if told and self._journal is not None:
            self._journal.write({"step": step, **told})
