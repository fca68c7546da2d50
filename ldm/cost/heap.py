"""What an allocator takes from the system beyond what tensors hold: the holes between them.

In training on a CPU, glibc's malloc keeps what is freed (``ldm.accel.tune_allocator``), so what a process holds is how
far its heap has ever reached. That is found out by playing: what a counted step makes and frees is asked of a heap that
does as glibc's does (``malloc/malloc.c`` of version 2.36), for a few steps one after another, as the moments of the
optimiser settle in the holes of the first:

    best fit       the smallest hole that is large enough is taken, at its lower end, and else the heap grows
    coalescing     what is freed becomes one with the holes beside it
    alignment      ``posix_memalign``, by which torch asks, looks for 96 bytes more than it needs, and gives back what
                   is left over: a hole that a tensor leaves is too small for its equal
    small objects  each tensor comes with objects of Python and C++, such as nodes of the graph, that lie between holes
                   and keep them from becoming one; of each size, seven that were freed are kept for the next to ask

Nothing of it is fitted to what runs were seen to hold, but for the small objects: their sizes are the commonest that
malloc was asked for in a training step, one of each for a tensor, where in truth there are fewer of some and more of
others. Real heaps differ from this one by a tenth, and by a fifth where a run is small (``benchmarks/cost_model.py``).
"""

from __future__ import annotations

import platform
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_HEADER, _UNIT, _ALIGNMENT, _LEAST = 8, 16, 64, 32  # bytes of a chunk: before it, its multiple, torch's, the smallest
_SMALL = (32, 64, 112, 192, 272, 480)
_CACHED = 7
_STEPS = 3


class Made(NamedTuple):
    """A tensor, known by its number, takes bytes."""

    tensor: int
    size: int


class Freed(NamedTuple):
    """It does so no more."""

    tensor: int


class Learned(NamedTuple):
    """An optimiser changes parameters of so many numbers each, for the first time."""

    sizes: tuple[int, ...]


Trace = Sequence[Made | Freed | Learned]


def keeps_what_is_freed() -> bool:
    """Whether training has the heap of this system keep everything: see ``ldm.accel.tune_allocator``."""
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def holes_of(trace: Trace, moment: int = 4) -> int:
    """Bytes by which a heap outgrows the most that tensors hold at once.

    Args:
        trace: a step.
        moment: bytes of each of the two moments of a number.
    """
    heap = Heap()
    for step in range(_STEPS):
        held = []
        for event in trace:
            if isinstance(event, Made):
                held.append((step, event.tensor))
                heap.make(held[-1], event.size)
            elif isinstance(event, Freed):
                heap.free((step, event.tensor))
            elif not step:
                _settle(heap, event.sizes, moment)
        for tensor in held:
            heap.free(tensor)
    return heap.reached - heap.most


def _settle(heap: Heap, sizes: Iterable[int], moment: int) -> None:
    """Make the moments of parameters, which stay."""
    for number, size in enumerate(sizes):
        for which in range(2):
            heap.make(("moment", len(heap), number, which), moment * size)


class Heap:
    """Addresses from 0 on, as malloc would give them to tensors and to what comes with each.

    Attributes:
        reached: the highest address that was ever taken.
        most: bytes that tensors held at most.
    """

    def __init__(self) -> None:
        self.reached = self.most = self._held = self._top = 0
        self._holes: list[tuple[int, int]] = []  # sizes and addresses, in order
        self._begins: dict[int, int] = {}  # holes: where one that begins here ends
        self._ends: dict[int, int] = {}  # where one that ends here begins
        self._tensors: dict[object, tuple[int, int, int, list[int]]] = {}
        self._cached: list[list[int]] = [[] for _ in _SMALL]

    def __len__(self) -> int:
        return len(self._tensors)

    def make(self, tensor: object, size: int) -> None:
        """Take bytes for a tensor, aligned, and for what comes with it."""
        chunk = -(-(size + _HEADER) // _UNIT) * _UNIT
        address, found = self._take(chunk + _ALIGNMENT + _LEAST)
        before = -(address + 2 * _HEADER) % _ALIGNMENT
        before += _ALIGNMENT if 0 < before < _LEAST else 0
        after = found - before - chunk
        if before:
            self._give(address, before)
        if after >= _LEAST:
            self._give(address + before + chunk, after)
        else:
            chunk += after
        small = [kept.pop() if kept else self._plain(z) for kept, z in zip(self._cached, _SMALL, strict=True)]
        self._tensors[tensor] = (address + before, chunk, size, small)
        self._held += size
        self.most = max(self.most, self._held)

    def free(self, tensor: object) -> None:
        """Give back what a tensor took; nothing where it is gone already."""
        if tensor not in self._tensors:
            return
        address, chunk, size, small = self._tensors.pop(tensor)
        self._held -= size
        self._give(address, chunk)
        for kept, which, length in zip(self._cached, small, _SMALL, strict=True):
            if len(kept) < _CACHED:
                kept.append(which)
            else:
                self._give(which, length)

    def span(self, tensor: object) -> tuple[int, int]:
        """Where the bytes of a tensor begin and end."""
        address, _, size, _ = self._tensors[tensor]
        return address + 2 * _HEADER, address + 2 * _HEADER + size

    def _plain(self, size: int) -> int:
        address, found = self._take(size)
        if found > size:
            self._give(address + size, found - size)
        return address

    def _take(self, size: int) -> tuple[int, int]:
        """The best hole, whole, or bytes beyond the top: address and size."""
        best = bisect_left(self._holes, (size, -1))
        if best < len(self._holes):
            found, address = self._holes.pop(best)
            del self._begins[address], self._ends[address + found]
            return address, found
        address, self._top = self._top, self._top + size
        self.reached = max(self.reached, self._top)
        return address, size

    def _give(self, begin: int, size: int) -> None:
        """Make a hole, or lower the top."""
        end = begin + size
        if begin in self._ends:
            begin = self._close(self._ends[begin], begin)[0]
        if end in self._begins:
            end = self._close(end, self._begins[end])[1]
        if end == self._top:
            self._top = begin
            return
        insort(self._holes, (end - begin, begin))
        self._begins[begin], self._ends[end] = end, begin

    def _close(self, begin: int, end: int) -> tuple[int, int]:
        del self._holes[bisect_left(self._holes, (end - begin, begin))], self._begins[begin], self._ends[end]
        return begin, end
