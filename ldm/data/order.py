"""Which example comes when, and every random draw about it, as functions of (seed, global sample index).

Training sample n of a run is the example that ``ldm.data.plan`` gives it, with the draws of ``draws(seed, n)``,
whatever the number of workers or processes, and whether or not the run was interrupted before n. So resuming
needs one integer, the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


# Two epochs of a few dozen groups; int32 where it will do, as a group may hold a hundred million.
@lru_cache(maxsize=64)
def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order of ``size`` examples in one epoch, (size,) int32 or int64."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(mix(seed, 0, epoch)))
    return order.to(torch.int32) if size < 2**31 else order


def shuffled(seed: int, n: int, size: int) -> int:
    """Item ``n`` of an endless series of orders of 0 .. size - 1, one after the other."""
    return int(permutation(seed, n // size, size)[n % size])


def draws(seed: int, n: int) -> torch.Generator:
    """The CPU generator of global sample ``n``; draws are taken from it in a fixed order."""
    return torch.Generator().manual_seed(mix(seed, 1, n))


def share(n: int, weights: Sequence[int]) -> tuple[int, int]:
    """Whose turn item ``n`` of an endless series is, and its how-manieth, where each has turns by its weight.

    The weights are halved again and again; of the items that come to two halves with weights a and b, the left one has
    had floor(n a / (a + b)) before item n. So nobody is ever further than one item at each halving from an exact share,
    everybody's items are numbered without a gap, and no item needs those before it.

    Args:
        n: 0, 1, 2, ...
        weights: at least one, none negative, not all 0.

    Returns:
        (position in ``weights``, k): the item is number k of that one's own series.
    """
    first, last = 0, len(weights)
    while last - first > 1:
        middle = (first + last) // 2
        left, whole = sum(weights[first:middle]), sum(weights[first:last])
        before = n * left // whole
        if (n + 1) * left // whole > before:
            n, last = before, middle
        else:
            n, first = n - before, middle
    return first, n


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
