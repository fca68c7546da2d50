"""Which example training sample n shows, and at what shape: a pure function of the seed, the size of a step, and n.

A step is of one bucket, so that its pictures can be stacked and any split over processes sees the same ones; buckets
take turns in proportion to their pictures, in an order that is shuffled over stretches of steps. Within a bucket,
sources that are mixed share the samples in proportion to their weights. Within a source and bucket, every picture comes
once before any comes again.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.data.example import Source
from ldm.data.framing import Buckets
from ldm.data.mixture import Mixture
from ldm.data.order import mix, permutation, share, shuffled
from ldm.data.streaming import no_stream
from ldm.errors import UserError

_STRETCH = 1024  # steps over which the turns of buckets are shuffled


class Ticket(NamedTuple):
    """What a training sample shows.

    Attributes:
        part: which of the mixed sources; 0 where there is one.
        index: of the example in that source.
        bucket: its position in ``Plan.shapes``.
        turn: of a stream, how many that cannot be used it stands in for.
    """

    part: int
    index: int
    bucket: int
    turn: int = 0


class Plan:
    """The order of a run's samples.

    Args:
        source: one, or a mixture.
        seed: of the run.
        per_step: samples of a step, over all processes.
        buckets: the shapes to come to; None where all pictures have one size and keep it.

    Attributes:
        shapes: (height, width) of each bucket.
        parts: the sources.

    Raises:
        UserError: sizes that are not known, or not one, where they must be; no pictures at all.
    """

    def __init__(self, source: Source, seed: int, per_step: int, buckets: Buckets | None = None) -> None:
        self.parts, weights = parts_of(source)
        self.seed, self.per_step = seed, per_step
        for part in self.parts:
            if not len(part):
                raise UserError(f"{part.name} has no pictures")
        self.shapes = buckets.shapes if buckets else (common_size(source),)
        self._members = [_by_bucket(part, buckets) for part in self.parts]  # part -> bucket -> indices; None: all
        # [bucket][part]: how often, exactly
        rates = [
            [weight * Fraction(self._count(p, b), len(part)) for p, (part, weight) in enumerate(self._weighed(weights))]
            for b in range(len(self.shapes))
        ]
        self._shares = [_whole(row) for row in rates]
        self._turns = _whole([sum(row, Fraction()) for row in rates])
        self._stretch: tuple[int, list[tuple[int, int]]] = -1, []  # the one that was asked for last

    def _weighed(self, weights: tuple[Fraction, ...]) -> zip[tuple[Source, Fraction]]:
        return zip(self.parts, weights, strict=True)

    def _count(self, part: int, bucket: int) -> int:
        members = self._members[part][bucket]
        return len(self.parts[part]) if members is None else len(members)

    def at(self, n: int) -> Ticket:
        """What global sample ``n`` shows."""
        step, slot = divmod(n, self.per_step)
        bucket, turn = self._turn(step) if len(self.shapes) > 1 else (0, step)
        part, k = share(turn * self.per_step + slot, self._shares[bucket])
        return Ticket(part, self._index(part, bucket, k), bucket)

    def _turn(self, step: int) -> tuple[int, int]:
        """Which bucket a step is of, and how many of that bucket came before."""
        stretch, at = divmod(step, _STRETCH)
        if self._stretch[0] != stretch:
            turns = [share(stretch * _STRETCH + i, self._turns) for i in range(_STRETCH)]
            # The turns are shuffled, and then each bucket's are numbered in the order that they come in.
            order = permutation(mix(self.seed, 6), stretch, _STRETCH).tolist()
            numbers = {bucket: iter([k for b, k in turns if b == bucket]) for bucket in {b for b, _ in turns}}
            self._stretch = stretch, [(turns[i][0], next(numbers[turns[i][0]])) for i in order]
        return self._stretch[1][at]

    def _index(self, part: int, bucket: int, k: int) -> int:
        if self.parts[part].stream:
            return k
        # the first group of a plain source has the seed itself
        seed = self.seed if part == bucket == 0 else mix(self.seed, 7, part, bucket)
        members, size = self._members[part][bucket], self._count(part, bucket)
        position = shuffled(seed, k, size)
        return position if members is None else int(members[position])

    def instead(self, ticket: Ticket) -> Ticket:
        """The next example of the same source and bucket: shown where one cannot be read."""
        if self.parts[ticket.part].stream:
            return ticket._replace(turn=ticket.turn + 1)
        members, size = self._members[ticket.part][ticket.bucket], self._count(ticket.part, ticket.bucket)
        if members is None:
            return ticket._replace(index=(ticket.index + 1) % size)
        position = int(torch.searchsorted(members, ticket.index))
        return ticket._replace(index=int(members[(position + 1) % size]))


def parts_of(source: Source) -> tuple[tuple[Source, ...], tuple[Fraction, ...]]:
    """The sources of a mixture and their weights; a source alone is its own only part."""
    if isinstance(source, Mixture):
        return source.parts, source.weights
    return (source,), (Fraction(1),)


def common_size(source: Source) -> tuple[int, int]:
    """(height, width) of all pictures of a source.

    Raises:
        UserError: they differ, or are not known.
    """
    parts, _ = parts_of(source)
    found: dict[tuple[int, int], str] = {}
    for part in parts:
        if part.sizes is None:
            raise UserError(f"{part.name} is a stream, whose pictures may be of any size: set frame.resolution")
        for height, width in torch.unique(part.sizes, dim=0)[:2].tolist():
            found.setdefault((height, width), part.name)
    if len(found) != 1:
        told = " and ".join(f"{width} x {height} in {name}" for (height, width), name in list(found.items())[:2])
        raise UserError(f"pictures have several sizes ({told or 'none'}): set frame.resolution to bring them to one")
    return next(iter(found))


def _by_bucket(part: Source, buckets: Buckets | None) -> list[Tensor | None]:
    """For every bucket the indices of its pictures, rising; None stands for all of them."""
    if buckets is None or len(buckets.shapes) == 1:
        return [None]
    if part.sizes is None:
        raise no_stream("frame.buckets sorts pictures by their sizes", part, "set frame.buckets to false")
    found = buckets.assign(part.sizes)
    order = found.argsort(stable=True)
    counts = torch.bincount(found, minlength=len(buckets.shapes)).tolist()
    return list(order.split(counts))


def _whole(shares: list[Fraction]) -> list[int]:
    """Whole numbers in the same proportion."""
    common = math.lcm(*(value.denominator for value in shares))
    return [int(value * common) for value in shares]
