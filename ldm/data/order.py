"""Which example comes when, and every random draw about it, as functions of (seed, global sample index).

Training sample n of a run is example ``permutation(seed, n // N)[n % N]`` with the draws of ``Draws(seed, n)``,
whatever the number of workers or processes, and whether or not the run was interrupted before n. So resuming
needs one integer, the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """A 63-bit seed from integers: splitmix64 (Steele et al. 2014) folded over them."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order of examples in one epoch, int64 (size,)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(mix(seed, 0, epoch)))


def example_index(seed: int, n: int, size: int) -> int:
    """The example that global sample ``n`` shows."""
    return int(permutation(seed, n // size, size)[n % size])


def draws(seed: int, n: int) -> torch.Generator:
    """The CPU generator of global sample ``n``; draws are taken from it in a fixed order."""
    return torch.Generator().manual_seed(mix(seed, 1, n))


class ShardedBatches(Sampler[list[int]]):
    """Global sample indices for one process, one list per micro-batch.

    A step takes ``batch_size * processes * accumulation`` consecutive samples; micro-batch a of process r
    takes its ``batch_size`` of them, so that the union over processes and micro-batches does not depend on
    how many there are of each.
    """

    def __init__(
        self,
        first_step: int,
        last_step: int,
        batch_size: int,
        *,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
    ) -> None:
        self.steps = range(first_step, last_step)
        self.batch_size, self.rank, self.processes, self.accumulation = batch_size, rank, processes, accumulation

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch_size * self.processes * self.accumulation
            for micro in range(self.accumulation):
                first = start + (micro * self.processes + self.rank) * self.batch_size
                yield list(range(first, first + self.batch_size))
