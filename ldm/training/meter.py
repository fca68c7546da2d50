"""What is measured between two lines of the log, without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.data.samples import Skipped


class Meter:
    """Sums of what is logged, on the device until somebody reads them; and the clock.

    Attributes:
        steps: that it spans.
        skipped: examples of this process that could not be used.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self._parts: dict[str, list[Tensor]] = {}
        self.steps, self.skipped = 0, list[Skipped]()
        self._waited, self._began = 0.0, time.perf_counter()

    def add(self, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add (sum, count) by name."""
        for name, (total, count) in parts.items():
            fresh = torch.stack([total.detach().float(), count.float()])
            self._parts.setdefault(name, []).append(fresh)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent within is that of waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def read(self, accelerator: Accelerator) -> tuple[dict[str, float], float, int]:
        """Everything since the last reading, over all processes, which all read at once.

        Returns:
            Means by name, among them ``data_wait``, the share of the time in which a process waited for data; the time
            in seconds; how many examples were skipped.
        """
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        names = sorted(self._parts)
        told = torch.tensor([[self._waited / elapsed, 1.0], [len(self.skipped), 1.0]], device=accelerator.device)
        sums = torch.cat([*(torch.stack(self._parts[name]).sum(0)[None] for name in names), told])
        reduced: Any = accelerator.reduce(sums, "sum")
        *rows, (wait, processes), (skipped, _) = reduced.tolist()
        means = {n: float(total / count) for n, (total, count) in zip(names, rows, strict=True) if count > 0}
        return {**means, "data_wait": round(wait / processes, 4)}, elapsed, int(skipped)
