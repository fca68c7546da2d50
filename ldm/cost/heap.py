"""What an allocator takes from the system beyond what tensors hold: the holes between them.

In training on a CPU, glibc's malloc keeps what is freed (``ldm.accel.tune_allocator``), so what a process holds is how
far its heap has ever reached. How far that is lies between two bounds:

    the most that tensors held at once      if every hole were filled by whatever comes next
    the same of each size apart, in sum     if tensors of one size only came into holes that tensors of that size left

Small things that outlive a tensor, such as the nodes of the graph, cut into the hole that it leaves, so that its equals
fit no more, and keep holes from becoming one. The middle of the two bounds is what is reckoned with: it was chosen by
eye from the runs of ``benchmarks/cost_model.py``, and follows from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Event(NamedTuple):
    """A tensor, known by its number, is made; or without a size, it is freed."""

    tensor: int
    size: int = 0


def holes_of(trace: Iterable[Event]) -> int:
    """Bytes of the holes at the end of a computation that makes and frees these tensors."""
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
    return (sum(size * count for size, count in most.items()) - peak) // 2
