"""What a process takes from the system beyond what its tensors hold: the holes between them, and what is no tensor.

In training on a CPU, glibc's malloc keeps what is freed (``ldm.accel.tune_allocator``), so what a process holds is how
far its heap has ever reached. Were every hole filled by whatever comes next, that would be the most that tensors held
at once. Small objects that outlive a tensor, such as nodes of the graph, cut into the hole that it leaves, and
``posix_memalign`` looks for more bytes than it takes, so that its equal may fit no more. Were nothing but a tensor of
the same size ever to come into a hole, and always one, the heap would reach as far as

    the most that tensors of a size held at once, in sum over all sizes.

A real heap lies somewhere between, or above where not even its equal fits. How far is fitted, and follows from nothing:
a share of the difference, and a constant for small objects, code that is read in and workspaces of libraries. They are
the least squares of relative errors over eleven runs of other kinds and sizes than those that the model is tested on;
``benchmarks/cost_model.py`` has both. Errors were up to a quarter in the runs that were fitted, and within a fifth in
the five others. To replay the tensors in a heap that does as glibc's did worse: small objects decide, and are not
counted.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

SHARE = 0.53
CONSTANT = 52 * 2**20


class Event(NamedTuple):
    """A tensor, known by its number, is made; or without a size, it is freed."""

    tensor: int
    size: int = 0


def keeps_what_is_freed() -> bool:
    """Whether training has the allocator of this system keep everything: see ``ldm.accel.tune_allocator``."""
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def holes_of(trace: Iterable[Event]) -> int:
    """Bytes beyond the most that these tensors held at once, as fitted."""
    return round(SHARE * apart(trace)) + CONSTANT


def apart(trace: Iterable[Event]) -> int:
    """Bytes by which tensors of each size apart hold more, at their most, than all together do."""
    sizes: dict[int, int] = {}
    now: Counter[int] = Counter()  # tensors that are there, by size
    most: Counter[int] = Counter()
    held = peak = 0
    for event in trace:
        if event.size:
            size = sizes[event.tensor] = event.size
            now[size] += 1
            most[size] = max(most[size], now[size])
            held += size
            peak = max(peak, held)
        else:
            size = sizes.pop(event.tensor)
            now[size] -= 1
            held -= size
    return sum(size * count for size, count in most.items()) - peak
