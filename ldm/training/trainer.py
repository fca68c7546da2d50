"""The training loop: one for every task, under Accelerate.

Every step is a function of the weights, the seed and the step's number alone (see ``ldm.data.order``), so a
run that was interrupted and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ldm.data.order import ShardedBatches, mix
from ldm.data.samples import Batch, collate
from ldm.errors import UserError
from ldm.training.checkpoint import publish, read_state, write_state
from ldm.training.journal import Journal
from ldm.training.settings import RunSettings, TrainSettings
from ldm.training.tasks import Losses, Task
from ldm.weights.model import latest_checkpoint


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of step number ``step`` (from 0): linear warm-up, then constant or cosine to 0."""
    if step < settings.lr_warmup_steps:
        return settings.learning_rate * (step + 1) / settings.lr_warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    rest = max(1, settings.steps - settings.lr_warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - settings.lr_warmup_steps) / rest))


def ema_decay(settings: TrainSettings, step: int) -> float:
    """Decay of the moving average at step ``step`` (from 0); its warm-up forgets the first, bad weights."""
    return min(settings.ema_decay, 1 - (1 + step) ** -settings.ema_power)


class Player:
    """A module with its optimiser, prepared by Accelerate."""

    def __init__(self, name: str, module: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> None:
        self.name, self.module = name, module
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.trained = trained
        self.forward, self.optimizer = accelerator.prepare(module, optimizer)


class Trainer:
    """Trains a task from a step to the last one.

    Attributes:
        step: steps done.
    """

    def __init__(self, run: RunSettings, task: Task, accelerator: Accelerator, provenance: dict[str, Any]) -> None:
        self.run, self.task, self.accelerator, self.provenance = run, task, accelerator, provenance
        self.step = 0
        settings = run.train
        for module in task.players.values():
            _place(module, accelerator.device, settings)
        first = next(iter(task.players.values()))
        # Copied before Accelerate wraps its forward, as it is used without autocast.
        self.average = AveragedModel(first, multi_avg_fn=self._average, use_buffers=False)
        self.players = [Player(name, module, settings, accelerator) for name, module in task.players.items()]
        if settings.compile:
            task.compile()
        self._bad_step = torch.full((), -1, dtype=torch.long, device=accelerator.device)

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        get_ema_multi_avg_fn(ema_decay(self.run.train, self.step))(averaged, current, count)

    # ---------------------------------------------------------------- one step

    def fit(self, journal: Journal | None) -> None:
        """Train from ``self.step`` to the end; ``journal`` is given on the main process only.

        Raises:
            UserError: a loss or gradient is not finite; the weights are those before that step.
        """
        settings = self.run.train
        hidden = None if journal else True  # None: where there is no terminal
        with tqdm(total=settings.steps, initial=self.step, unit="step", disable=hidden) as bar:
            meter, began = _Meter(), time.perf_counter()
            batches = self._batches()
            for _ in range(self.step, settings.steps):
                micro = [next(batches) for _ in range(settings.gradient_accumulation)]
                self._train_step(micro, meter)
                self.step += 1
                meter.steps += 1
                bar.update()
                save = self._is_due(settings.checkpoint_every)
                if save or self._is_due(settings.log_every) or self._is_due(settings.sample_every):
                    self._check_finite()
                    elapsed, began = time.perf_counter() - began, time.perf_counter()
                    self._log(meter, elapsed, journal, bar)
                if self._is_due(settings.sample_every):
                    self._draw(journal)
                    began = time.perf_counter()
                if save:
                    self.checkpoint()
                    began = time.perf_counter()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.run.train.steps

    def _batches(self) -> Iterator[Batch]:
        settings, accelerator = self.run.train, self.accelerator
        self.task.samples.begin(settings.batch_size * accelerator.num_processes * settings.gradient_accumulation)
        order = ShardedBatches(
            self.step,
            settings.steps,
            settings.batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            accumulation=settings.gradient_accumulation,
        )
        loader: Any = DataLoader(
            self.task.samples,
            batch_sampler=order,
            num_workers=settings.workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
        )
        for batch in loader:
            yield batch.to(accelerator.device)

    def _train_step(self, micro: list[Batch], meter: _Meter) -> None:
        rate = learning_rate(self.run.train, self.step)
        for player in self.players:
            if not self.task.plays(player.name, self.step):
                continue
            for group in player.optimizer.param_groups:
                group["lr"] = rate
            for i, batch in enumerate(micro):
                last = i == len(micro) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(player.forward):
                    found: Losses = player.forward(batch, self.step)
                    self.accelerator.backward(found.loss / len(micro))
                meter.add(found.parts)
                self._note_bad(found.loss)
            self._update(player, meter)
        self.average.update_parameters(self.players[0].module)

    def _update(self, player: Player, meter: _Meter) -> None:
        norm = self.accelerator.clip_grad_norm_(player.trained, self.run.train.max_grad_norm)
        assert isinstance(norm, Tensor)
        if self.accelerator.scaler is None:  # fp16 overflows now and then, and its scaler skips those steps
            self._note_bad(norm)
            # The fused optimiser reads this on the device: a bad step changes nothing, without a sync.
            player.optimizer.optimizer.found_inf = (self._bad_step >= 0).float()
        finite = torch.isfinite(norm)
        name = f"grad_norm_{player.name}" if len(self.players) > 1 else "grad_norm"
        meter.add({name: (torch.where(finite, norm, 0.0), finite)})
        if self.accelerator.device.type == "cpu":
            self._check_finite()
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)

    def _note_bad(self, value: Tensor) -> None:
        """Remember, on the device, the first step at which a loss or gradient was not finite."""
        fresh = (self._bad_step < 0) & ~torch.isfinite(value.detach())
        self._bad_step = torch.where(fresh, self.step, self._bad_step)

    def _check_finite(self) -> None:
        gathered: Any = self.accelerator.gather(self._bad_step[None])
        bad = int(gathered.max())
        if bad < 0:
            return
        settings, last = self.run.train, latest_checkpoint(self.run.output)
        size = settings.batch_size * self.accelerator.num_processes * settings.gradient_accumulation
        raise UserError(
            f"the loss or a gradient was not finite at step {bad}, on samples {bad * size} to {(bad + 1) * size - 1} "
            f"of the run; that step was not taken, and {f'{last} is good' if last else 'there is no checkpoint yet'}. "
            "A lower train.learning_rate, or train.mixed_precision bf16 or no, is the usual cure"
        )

    # ------------------------------------------------------- what a run leaves

    def _log(self, meter: _Meter, elapsed: float, journal: Journal | None, bar: Any) -> None:
        steps = meter.steps
        values = meter.read(self.accelerator)
        settings = self.run.train
        samples = steps * settings.batch_size * settings.gradient_accumulation * self.accelerator.num_processes
        if journal is None or not steps:
            return
        rate = samples / elapsed
        shown = {"loss": f"{values['loss']:.4f}", "img/s": f"{rate:.0f}"}
        bar.set_postfix(shown)
        lr = learning_rate(settings, self.step - 1)
        journal.write({"step": self.step, **values, "lr": lr, "images_per_second": round(rate, 2)})

    def averaged(self) -> nn.Module:
        """The first player with averaged weights; itself where ``ema_decay`` is 0."""
        return self.average.module if self.run.train.ema_decay > 0 else self.players[0].module

    def _draw(self, journal: Journal | None) -> None:
        if journal is not None:
            module = self.averaged()
            was_training = module.training
            module.eval()
            self.task.draw(module, self.run.output / "samples" / f"step_{self.step:08d}.png", self.run.seed)
            journal.plot()
            module.train(was_training)
        self.accelerator.wait_for_everyone()

    def checkpoint(self) -> None:
        """Publish a checkpoint of this moment; the main process writes it."""
        if self.accelerator.is_main_process:
            publish(self.run.output, self.step, self._write, self.run.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        provenance = {**self.provenance, "steps": self.step}
        self.task.save(folder, self.averaged(), provenance)
        scaler = self.accelerator.scaler
        state = {
            "optimizers": {p.name: p.optimizer.optimizer.state_dict() for p in self.players},
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        weights = {p.name: p.module.state_dict() for p in self.players}
        weights["average"] = self.average.module.state_dict()
        write_state(folder, weights, state, {"step": self.step, "processes": self.accelerator.num_processes})

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint: weights, averages, optimisers and step.

        Raises:
            UserError: it is damaged, or of a run with another number of samples in a step.
        """
        weights, state, numbers = read_state(folder, [*(p.name for p in self.players), "average"])
        if numbers["processes"] != self.accelerator.num_processes:
            raise UserError(
                f"{folder} was trained by {numbers['processes']} processes and now there are "
                f"{self.accelerator.num_processes}: the samples of a step would differ"
            )
        try:
            for player in self.players:
                player.module.load_state_dict(weights[player.name])
                player.optimizer.optimizer.load_state_dict(state["optimizers"][player.name])
            self.average.module.load_state_dict(weights["average"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{folder / 'training'} does not fit the run's configuration: {error}") from error
        self.average.n_averaged.fill_(max(1, int(numbers["step"])))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = int(numbers["step"])


class _Meter:
    """Sums of what is logged, kept on the device until somebody reads them; and how many steps they span."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self.steps = 0

    def add(self, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in parts.items():
            fresh = torch.stack([total.detach().float(), count.float()])
            self._parts.setdefault(name, []).append(fresh)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over everything added since the last reading, over all processes."""
        names = sorted(self._parts)
        sums = torch.stack([torch.stack(self._parts[name]).sum(0) for name in names])
        reduced: Any = accelerator.reduce(sums, "sum")
        self._parts, self.steps = {}, 0
        return {n: float(total / count) for n, (total, count) in zip(names, reduced.tolist(), strict=True) if count > 0}


def _place(module: Any, device: torch.device, settings: TrainSettings) -> None:
    # Any: torch's stubs lack this keyword of Module.to.
    module.to(device, memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)


def seed_weights(seed: int) -> None:
    """First weights as a function of the run's seed; the only global generator that is ever set."""
    torch.manual_seed(mix(seed, 2))
