"""The training loop: one for every task, under Accelerate.

Every step is a function of the weights, the seed and the step's number alone (see ``ldm.data.order``), so a
run that was interrupted and resumed ends with the very weights of one that was not, and one that is resumed with
another number of processes goes on with the very samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.data.order import mix
from ldm.data.samples import Batch
from ldm.errors import NotFinite, UserError
from ldm.publishing import disk_trouble
from ldm.training.averaging import Average
from ldm.training.checkpoint import checkpoint_folder, publishing, unfinished_folder
from ldm.training.journal import Journal
from ldm.training.loader import batches, check_samples, samples_per_step
from ldm.training.meter import Meter
from ldm.training.optimisers import learning_rate
from ldm.training.outlook import Outlook, Part
from ldm.training.parallel import Team
from ldm.training.player import Player, place
from ldm.training.progress import Progress
from ldm.training.settings import RunSettings
from ldm.training.signals import StopNote
from ldm.training.skipped import SkippedList
from ldm.training.state import TrainingState, read_numbers
from ldm.training.tasks import Following, Paced, Task
from ldm.weights.model import latest_checkpoint

_DROPOUT = 14  # purpose of a seed; the one thing that draws from the global generators


class Trainer:
    """Trains a task from a step to the last one.

    Attributes:
        step: steps done.
        stopped: the signal that ended training before the last step; None where none did.
    """

    def __init__(
        self, run: RunSettings, task: Task, accelerator: Accelerator, team: Team, provenance: dict[str, Any]
    ) -> None:
        self.run, self.task, self.accelerator, self.team, self.provenance = run, task, accelerator, team, provenance
        self.step = 0
        self.stopped: str | None = None
        settings, device = run.train, accelerator.device
        if settings.parallel == "fsdp" and len(task.players) > 1:
            names = " and ".join(task.players)
            raise UserError(f"train.parallel fsdp splits one network, and this task trains {names} in turn: use ddp")
        for module in task.players.values():
            place(module, device, settings)
            module.train()  # a finished model is opened for drawing, and recomputes no activations then
        # Copied before Accelerate wraps its forward, as it is used without autocast.
        self.average = Average(next(iter(task.players.values())), settings, device)
        pace = task.pace if isinstance(task, Paced) else lambda player, parameter: 1.0
        self.players = [Player(name, module, settings, accelerator, pace) for name, module in task.players.items()]
        self.average.begin(self.players[0].trained)
        if isinstance(task, Following):
            task.follow(self._always_there())
        if settings.compile:
            task.compile()
        self._skipped = SkippedList(run.skip_bad)
        self._state = TrainingState(self.players, self.average, accelerator.scaler, team)
        self._bad_step = torch.full((), -1, dtype=torch.long, device=device)

    def _always_there(self) -> nn.Module:
        if self.average.module is None:
            raise UserError("this task learns from its moving average: it needs train.parallel ddp and no ema_device")
        return self.average.module

    # ---------------------------------------------------------------- one step

    def fit(self, journal: Journal | None) -> None:
        """Train from ``self.step`` to the end, or to a signal; ``journal`` is given on the main process only.

        Raises:
            UserError: a loss or gradient is not finite, and the weights are those before that step; or too much of the
                data cannot be used.
        """
        settings = self.run.train
        bar = Progress(settings.steps, self.step, hidden=journal is None)
        prepared = batches(self.task.samples, self.step, settings, self.team, self.accelerator.device)
        # closed here, as its processes do not hear the signal by which the interpreter would end them
        with bar, contextlib.closing(prepared) as source, StopNote(self.team) as note:
            outlook = Outlook(self.run, self.task, self.team, journal, note)
            if self.step > 0:
                self._look(outlook, note, outlook.lacking(self.step))
            meter = Meter()
            while self.step < settings.steps and self.stopped is None:
                note.ask()
                with meter.waiting():
                    micro = [next(source) for _ in range(settings.gradient_accumulation)]
                self.take_step(micro, meter)
                self.step += 1
                bar.advance()
                signal = note.heard()
                self.stopped = signal if self.step < settings.steps else None
                self._leave(meter, journal, bar, outlook, note)
        if self.stopped is not None and journal is not None:
            journal.write({"step": self.step, "event": "stopped", "signal": self.stopped})

    def _leave(self, meter: Meter, journal: Journal | None, bar: Progress, outlook: Outlook, note: StopNote) -> None:
        """What is due after a step: a line of the log, pictures, a checkpoint."""
        settings = self.run.train
        save, due = self._is_due(settings.checkpoint_every) or self.stopped is not None, outlook.due(self.step)
        if not (save or self._is_due(settings.log_every) or due):
            return
        self._check_finite()
        self._log(meter, journal, bar)
        if self.stopped is None:
            self._look(outlook, note, due)
        if save or self.stopped is not None:
            self.checkpoint()
        meter.reset()

    def _look(self, outlook: Outlook, note: StopNote, parts: Sequence[Part]) -> None:
        """Draw and measure, and hear whether it was broken off."""
        if not parts:
            return
        outlook.look(self.step, self.average, parts)
        note.ask()
        self.stopped = note.heard()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.train.steps

    def take_step(self, micro: list[Batch], meter: Meter) -> None:
        """Train on the micro-batches of one step; the caller counts it."""
        rate = learning_rate(self.run.train, self.step)
        torch.manual_seed(mix(self.run.seed, _DROPOUT, self.step, self.team.rank))
        meter.steps += 1
        meter.skipped += [skipped for batch in micro for skipped in batch.skipped]
        for player in self.players:
            if not self.task.plays(player.name, self.step):
                continue
            for i, batch in enumerate(micro):
                last = i == len(micro) - 1
                with contextlib.nullcontext() if last else player.alone():
                    found = player(batch, self.step)
                    self.accelerator.backward(found.loss / len(micro))
                meter.add(found.parts)
                self._note_bad(found.loss)
            self._update(player, rate, meter)
        self.average.update(self.step)

    def _update(self, player: Player, rate: float, meter: Meter) -> None:
        norm = player.clip(self.run.train.max_grad_norm)
        if self.accelerator.scaler is None:  # fp16 overflows now and then, and its scaler skips those steps
            self._note_bad(norm)
            player.skip_if(self._bad_step >= 0)
        finite = torch.isfinite(norm)
        name = f"grad_norm_{player.name}" if len(self.players) > 1 else "grad_norm"
        meter.add({name: (norm.masked_fill(~finite, 0.0), finite)})
        if self.accelerator.device.type == "cpu" or not player.skips_bad_steps:
            self._check_finite()
        player.step(rate)

    def _note_bad(self, value: Tensor) -> None:
        """Remember, on the device, the first step at which a loss or gradient was not finite."""
        fresh = (self._bad_step < 0) & ~torch.isfinite(value.detach())
        self._bad_step = self._bad_step.masked_fill(fresh, self.step)  # torch.where would copy the number, and wait

    def _check_finite(self) -> None:
        gathered: Any = self.accelerator.gather(self._bad_step[None])
        bad = int(gathered.max())
        if bad < 0:
            return
        last = latest_checkpoint(self.run.output)
        size = samples_per_step(self.run.train, self.team)
        raise NotFinite(
            f"the loss or a gradient was not finite at step {bad}, on samples {bad * size} to {(bad + 1) * size - 1} "
            f"of the run; that step was not taken, and {f'{last} is good' if last else 'there is no checkpoint yet'}. "
            "A lower train.learning_rate, or train.mixed_precision bf16 or no, is the usual cure"
        )

    # ------------------------------------------------------- what a run leaves

    def _log(self, meter: Meter, journal: Journal | None, bar: Progress) -> None:
        values, elapsed, skipped = meter.read(self.accelerator)
        if skipped:
            found = [item for share in self.team.gather(meter.skipped) for item in share]
            self._skipped.add(found, self.step, journal)
        if journal is None:
            return
        rate = meter.steps * samples_per_step(self.run.train, self.team) / elapsed
        told = {"loss": f"{values['loss']:.4f}"} if "loss" in values else {}  # not of pictures of the class alone
        bar.tell(self.step, {**told, "img/s": f"{rate:.0f}"}, elapsed / meter.steps)
        lr = learning_rate(self.run.train, self.step - 1)
        journal.write({"step": self.step, **values, "lr": lr, "images_per_second": round(rate, 2)})

    def checkpoint(self) -> None:
        """Publish a checkpoint of this moment; all processes call it.

        Raises:
            UserError: it cannot be written.
        """
        output, main = self.run.output, self.team.is_main
        folder = unfinished_folder(output, self.step)
        with self.team.together(), contextlib.ExitStack() as published:
            with self.team.together(), self.average.whole(here=main) as averaged:
                if main:
                    published.enter_context(publishing(output, self.step, self.run.train.keep_checkpoints))
                    self._write(folder, averaged)
            if self._state.sharded:
                with self.team.together(), disk_trouble(str(folder), "; the last one is intact"):
                    self._state.write_shares(folder)

    def _write(self, folder: Path, averaged: nn.Module) -> None:
        final = checkpoint_folder(self.run.output, self.step)
        with disk_trouble(f"the checkpoint {final}", "; the last one is intact"):
            self.task.save(folder, averaged, {**self.provenance, "steps": self.step})
            numbers = {"step": self.step, "samples_per_step": samples_per_step(self.run.train, self.team)}
            self._state.write(folder, {**numbers, "skipped": self._skipped.keys})

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint: weights, averages, optimisers and step; all processes call it.

        Raises:
            UserError: it is of another network, or of a run with another number of samples in a step.
        """
        numbers = read_numbers(folder)
        check_samples(numbers["samples_per_step"], self.run.train, self.team)
        self._state.read(folder)
        self.step, self._skipped.keys = int(numbers["step"]), list(numbers["skipped"])


def seed_weights(seed: int) -> None:
    """First weights as a function of the run's seed."""
    torch.manual_seed(mix(seed, 2))
