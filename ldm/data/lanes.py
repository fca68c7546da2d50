"""The order of a stream: which sample of which shard its k-th sample is, as a function of the seed and k alone.

A shard is read from its front, and nobody wants to read one twice, nor to keep more than a few samples of it. Yet the
order must not depend on who reads. So the shards of an epoch, in an order drawn for it, are laid end to end, and the
epoch is cut into *lanes*, each of which one reader goes along. With G samples in a step, sample k of the stream is in
step k // G and has the slot k % G there. Processes share the slots of a step and the workers of a process share the
steps, so the lane of k is made of both: which of ``processes`` parts the slot lies in, and the step modulo ``workers``.
Each lane is exactly as long as the number of times it is asked for in the epoch. So samples e N .. (e + 1) N - 1 of the
stream are the N samples once each, however the numbers divide. Within a lane, blocks of consecutive samples are
shuffled.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from ldm.data.order import mix, permutation


class Place(NamedTuple):
    """Where a sample of the stream is: number ``at``, as stored, in a block of a lane in an epoch."""

    epoch: int
    block: int
    lane: int
    at: int


class Span(NamedTuple):
    """Samples ``first`` .. ``last - 1`` of a shard."""

    shard: int
    first: int
    last: int


class _Epoch(NamedTuple):
    shards: list[int]  # in the order of this epoch
    ends: list[int]  # of each, in samples
    lanes: list[int]  # where each lane begins, and the end of the last


class Lanes:
    """The order of one stream.

    Args:
        counts: samples in each shard.
        seed: of the run.
        per_step: samples of a step, over all processes.
        processes, workers: how many may share the reading; of ``processes``, what it has in common with ``per_step``.
        shuffle: so many samples, over all lanes, are shuffled.

    Attributes:
        total: samples of an epoch.
        count: lanes.
        size: samples of a block.
    """

    def __init__(
        self, counts: Sequence[int], seed: int, per_step: int, *, processes: int, workers: int, shuffle: int
    ) -> None:
        self.counts, self.seed, self.per_step, self.workers = counts, seed, per_step, workers
        self.total = sum(counts)
        parts = math.gcd(per_step, processes)
        self.count = parts * workers
        self.size = max(1, shuffle // self.count)
        self._width = per_step // parts  # slots of a part
        self._epochs: dict[int, _Epoch] = {}

    def place(self, k: int) -> Place:
        """Where sample ``k`` of the stream is."""
        step, slot = divmod(k, self.per_step)
        lane = slot // self._width * self.workers + step % self.workers
        epoch = k // self.total
        turn = self._asked(lane, k) - self._asked(lane, epoch * self.total)
        block = (turn + self._shift(lane)) // self.size
        first, last = self._bounds(epoch, block, lane)
        order = permutation(mix(self.seed, 9, lane, epoch), block, last - first)
        return Place(epoch, block, lane, int(order[turn - first]))

    def blocks(self, epoch: int, lane: int) -> int:
        """How many blocks a lane has in an epoch."""
        first, last = self._epoch(epoch).lanes[lane : lane + 2]
        return -(-(last - first + self._shift(lane)) // self.size) if last > first else 0

    def spans(self, epoch: int, block: int, lane: int) -> list[Span]:
        """The samples of a block, as they are stored."""
        shards, ends, lanes = self._epoch(epoch)
        position, last = (lanes[lane] + turn for turn in self._bounds(epoch, block, lane))
        found = []
        i = bisect_right(ends, position)
        while position < last:
            begin, end = ends[i] - self.counts[shards[i]], min(ends[i], last)
            if end > position:  # else the shard is empty
                found.append(Span(shards[i], position - begin, end - begin))
            position, i = end, i + 1
        return found

    def others(self, place: Place) -> Iterator[tuple[int, int]]:
        """(block, lane) of all other blocks of the epoch, from the next one on."""
        for lane in (*range(place.lane, self.count), *range(place.lane)):
            first = place.block + 1 if lane == place.lane else 0
            yield from ((block, lane) for block in range(first, self.blocks(place.epoch, lane)))
        yield from ((block, place.lane) for block in range(place.block))

    def _bounds(self, epoch: int, block: int, lane: int) -> tuple[int, int]:
        """Where a block begins and ends in its lane."""
        first, last = self._epoch(epoch).lanes[lane : lane + 2]
        begin = block * self.size - self._shift(lane)
        return max(0, begin), min(last - first, begin + self.size)

    def _shift(self, lane: int) -> int:
        """By how much the first block of a lane is shorter: else all lanes came to the end of a block at one step."""
        return lane * self.size // self.count

    def _asked(self, lane: int, k: int) -> int:
        """How many of the samples before ``k`` are of a lane."""
        step, slot = divmod(k, self.per_step)
        part, turn = divmod(lane, self.workers)
        whole = (step - turn + self.workers - 1) // self.workers * self._width
        begun = min(max(slot - part * self._width, 0), self._width) if step % self.workers == turn else 0
        return whole + begun

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # an epoch and the next are asked for by turns where they meet
                del self._epochs[min(self._epochs)]
            shards = permutation(mix(self.seed, 10), epoch, len(self.counts)).tolist()
            ends = list(accumulate(self.counts[shard] for shard in shards))
            begin, end = epoch * self.total, (epoch + 1) * self.total
            lengths = (self._asked(lane, end) - self._asked(lane, begin) for lane in range(self.count))
            self._epochs[epoch] = _Epoch(shards, ends, [0, *accumulate(lengths)])
        return self._epochs[epoch]
