"""The loss on pictures that are held out of training: the same pictures, noise and times at every measurement.

Times are stratified, u = (k + 1/2) / N for k = 0 .. N - 1, each once: so little of what is measured is chance, and two
moments of a run, or two runs, can be compared by the third digit.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.data.order import mix
from ldm.data.samples import Batch, TrainingSamples, collate
from ldm.errors import UserError
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.drawn import share_of
from ldm.training.skipped import WAY_OUT

_TIMES = 13  # purpose of the seed of their order


class HeldOut:
    """Pictures to measure the loss on.

    Args:
        samples: of the held-out source, without flips and dropped conditions.
        times: noise levels for each picture.
        batch_size: measured at once.
        seed: of the order of the times.
        skip_bad: how many of them may be impossible to use; others stand in their place.
    """

    def __init__(self, samples: TrainingSamples, times: int, batch_size: int, seed: int, skip_bad: int = 0) -> None:
        self.samples, self.batch_size, self._skip_bad = samples, batch_size, skip_bad
        self._skipped: set[str] = set()
        self.count = len(samples.source) * times
        # a batch is of one bucket, as a step of training is
        samples.begin(batch_size)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(mix(seed, _TIMES)))
        self._uniform = (order + 0.5) / self.count

    def batch(self, number: int) -> Batch:
        """Batch number 0, 1, ..."""
        first = number * self.batch_size
        numbers = list(range(first, min(first + self.batch_size, self.count)))
        return replace(collate(self.samples.__getitems__(numbers)), uniform=self._uniform[numbers].float())

    def measure(
        self, player: DiffusionPlayer, device: torch.device, rank: int, processes: int, half: torch.dtype | None
    ) -> dict[str, tuple[float, float]]:
        """(sum, count) of the losses over this process's share.

        Args:
            player: in evaluation mode.
            device: that it is on.
            rank, processes: which share.
            half: compute in it, as training does; None for float32.

        Raises:
            UserError: more of the pictures than are allowed cannot be used.
        """
        total: Tensor = torch.zeros((), device=device)
        count = 0
        computing: Any = torch.autocast(device.type, half) if half is not None else contextlib.nullcontext()
        with torch.no_grad():
            for number in share_of(-(-self.count // self.batch_size), rank, processes):
                batch = self.batch(number)  # which autocast, on a CPU, cannot stack in half precision
                self._note(batch)
                with computing:
                    losses, _ = player.losses(batch.to(device))
                total, count = total + losses.sum(), count + len(losses)
        return {"loss": (float(total), float(count))}

    def _note(self, batch: Batch) -> None:
        """Name pictures that cannot be used; training, which counts its own, never comes by these."""
        for skipped in batch.skipped:
            if skipped.key not in self._skipped:
                self._skipped.add(skipped.key)
                print(f"skipped in validation: {skipped.message}", file=sys.stderr)
            if len(self._skipped) > self._skip_bad:
                told = f"{len(self._skipped)} held-out examples cannot be used"
                such = f"data.skip_bad allows {self._skip_bad}; such as: {skipped.message}"
                raise UserError(f"{told}, and {such}; {WAY_OUT}")
