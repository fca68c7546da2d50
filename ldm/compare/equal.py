"""What is reached with equal means: at equal steps, operations or seconds, over several seeds.

Between two points of a training, a distance is taken to be a power of what was spent (a straight line with logarithmic
axes), as learning curves mostly are over a factor of two, and a share, such as precision, to be linear in its
logarithm; beyond the first and last point nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import NamedTuple

_TOUCH = 1e-9  # relative: a budget that is a point's own


class Point(NamedTuple):
    """What was spent (above 0), and the distance, or another value, that it brought."""

    spent: float
    value: float


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds or turns; the latter is None for one."""

    mean: float
    std: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Of values of several seeds or turns."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def value_at(points: Sequence[Point], budget: float, power: bool = True) -> float | None:
    """What a budget brings, in the units of ``spent``; None before the first point and after the last.

    Args:
        points: of one training, in order.
        budget: what is spent.
        power: the value is a distance, above 0; else a share.
    """
    if budget <= points[0].spent * (1 - _TOUCH) or budget >= points[-1].spent * (1 + _TOUCH):
        return None
    for a, b in pairwise(points):
        if budget <= b.spent * (1 + _TOUCH):
            part = math.log(max(budget, a.spent) / a.spent) / math.log(b.spent / a.spent)
            if power:
                return math.exp((1 - part) * math.log(a.value) + part * math.log(b.value))
            return (1 - part) * a.value + part * b.value
    return points[0].value


def spent_for(points: Sequence[Point], distance: float) -> float | None:
    """What was spent when a distance was first reached, at most that of the first point; None where it never was."""
    if points[0].value <= distance:
        return points[0].spent
    for a, b in pairwise(points):
        if b.value <= distance:
            part = math.log(a.value / distance) / math.log(a.value / b.value)
            return math.exp((1 - part) * math.log(a.spent) + part * math.log(b.spent))
    return None


def over_seeds(seeds: Sequence[Sequence[Point]], find: Callable[[Sequence[Point]], float | None]) -> Spread | None:
    """Something that is found of each training, over the seeds; None where it is not found of all."""
    found = [find(points) for points in seeds]
    known = [value for value in found if value is not None]
    return spread(known) if len(known) == len(found) else None


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of two series that belong together (turns, seeds): the ratio of each pair, over all of them."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
