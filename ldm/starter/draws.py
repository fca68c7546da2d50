"""Random choices that are the same for the same seed in every version of Python and numpy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Choices from one seed. Only ``Random.random`` is asked, whose series Python keeps for good.

    Args:
        seed: any integer of 63 bits.
    """

    def __init__(self, seed: int) -> None:
        self._next = Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self._next() < probability

    def between(self, low: float, high: float) -> float:
        """A number, evenly."""
        return low + (high - low) * self._next()

    def one(self, items: Sequence[T]) -> T:
        """One of some items, evenly."""
        return items[int(self._next() * len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """So many different items, or all where there are fewer, in any order."""
        left = list(items)
        return [left.pop(int(self._next() * len(left))) for _ in range(min(count, len(left)))]

    def weighed(self, sums: Sequence[float]) -> int:
        """A position, by running sums of weights; a weight of 0 is never drawn."""
        return min(bisect_right(sums, self._next() * sums[-1]), len(sums) - 1)
