"""What is reached with equal means: at equal steps, operations or seconds, over several seeds.

Between two points of a training, distance is taken to be a power of what was spent (a straight line with logarithmic
axes), as learning curves mostly are over a factor of two; beyond the first and last point nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import NamedTuple

_TOUCH = 1e-9  # relative: a budget that is a point's own


class Point(NamedTuple):
    """What was spent, and the distance that it brought; both above 0."""

    spent: float
    distance: float


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; the latter is None for one."""

    mean: float
    std: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Of values of several seeds."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def distance_at(points: Sequence[Point], budget: float) -> float | None:
    """The distance for a budget, in the units of ``spent``; None before the first point and after the last.

    Args:
        points: of one training, in order.
        budget: what is spent.
    """
    if budget <= points[0].spent * (1 - _TOUCH) or budget >= points[-1].spent * (1 + _TOUCH):
        return None
    for a, b in pairwise(points):
        if budget <= b.spent * (1 + _TOUCH):
            share = math.log(max(budget, a.spent) / a.spent) / math.log(b.spent / a.spent)
            return math.exp((1 - share) * math.log(a.distance) + share * math.log(b.distance))
    return points[0].distance


def spent_for(points: Sequence[Point], distance: float) -> float | None:
    """What was spent when a distance was first reached, at most that of the first point; None where it never was."""
    if points[0].distance <= distance:
        return points[0].spent
    for a, b in pairwise(points):
        if b.distance <= distance:
            share = math.log(a.distance / distance) / math.log(a.distance / b.distance)
            return math.exp((1 - share) * math.log(a.spent) + share * math.log(b.spent))
    return None


def over_seeds(seeds: Sequence[Sequence[Point]], find: Callable[[Sequence[Point]], float | None]) -> Spread | None:
    """Something that is found of each training, over the seeds; None where it is not found of all."""
    found = [find(points) for points in seeds]
    known = [value for value in found if value is not None]
    return spread(known) if len(known) == len(found) else None


def ratios(row: Sequence[float], base: Sequence[float]) -> Spread:
    """How many times as much ``row`` took as ``base``, which had their turns together: in each turn, over the turns."""
    return spread(list(_quotients(row, base)))


def _quotients(row: Sequence[float], base: Sequence[float]) -> Iterator[float]:
    for mine, theirs in zip(row, base, strict=True):
        yield mine / theirs
