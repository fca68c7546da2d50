"""Which pictures are the same, and which are nearly the same, among a million.

*Exact* groups follow from sorting the digests. *Near* ones are pairs of hashes that differ in at most ``most`` of
their 64 bits. Comparing all with all would be n^2. But two hashes that differ in at most t bits agree wholly in one
of t + 1 bands of bits (multi-index hashing, Norouzi et al. 2012): so each band sorts them, and only neighbours that
agree in it are compared, a few hundred for each of a million.

A group is a first picture and those near to it, not a chain in which the ends have nothing in common.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from ldm.data.check.fingerprint import DIGEST, SKETCH, Look

MOST_BITS = 6  # beyond, the bands are so narrow that too many agree in one by chance
_TOLERANCE = 24  # of 255, for each colour of the sketch


class Prints:
    """The fingerprints of pictures in the order they came, 80 bytes for each."""

    def __init__(self) -> None:
        self._digests, self._sketches = bytearray(), bytearray()
        self._hashes, self._numbers, self._blank = array("Q"), array("q"), bytearray()

    def add(self, number: int, look: Look) -> None:
        """Note a picture by the number that groups are to name it with."""
        self._digests += look.digest
        self._sketches += look.sketch
        self._hashes.append(look.hash)
        self._numbers.append(number)
        self._blank.append(look.blank)

    def groups(self, most: int) -> tuple[list[list[int]], list[list[int]]]:
        """The groups of the same and of nearly the same pictures, by number, each of two or more.

        Args:
            most: bits in which the hashes of near ones differ, 0 .. ``MOST_BITS``.

        Returns:
            The exact groups; and the near ones, in which each exact group counts as its first picture, and where
            pictures that show nothing are in none.
        """
        numbers = np.frombuffer(self._numbers, np.int64)
        exact = _same(np.frombuffer(self._digests, np.uint64).reshape(-1, DIGEST // 8))
        again = [place for group in exact for place in group[1:]]
        single = np.frombuffer(self._blank, np.uint8) == 0
        single[again] = False
        kept = np.flatnonzero(single)
        sketches = np.frombuffer(self._sketches, np.uint8).reshape(-1, SKETCH)[kept]
        near = near_groups(np.frombuffer(self._hashes, np.uint64)[kept], sketches, most)
        return [numbers[group].tolist() for group in exact], [numbers[kept[group]].tolist() for group in near]


def _same(digests: np.ndarray) -> list[list[int]]:
    """Groups of equal rows of (N, 2), as their places."""
    order = np.lexsort(digests.T)
    fresh = np.ones(len(order) + 1, bool)
    fresh[1:-1] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    return _runs(order, np.flatnonzero(fresh))


def _runs(order: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    """The parts of ``order`` between ``starts`` that hold two or more, each rising, sorted by their first."""
    long = np.flatnonzero(np.diff(starts) > 1)
    return sorted(sorted(order[starts[k] : starts[k + 1]].tolist()) for k in long)


def near_groups(hashes: np.ndarray, sketches: np.ndarray, most: int) -> list[list[int]]:
    """Groups of pictures near to the first of their group, as their places, rising.

    Args:
        hashes: (N,) uint64.
        sketches: (N, SKETCH) uint8.
        most: bits that may differ.
    """
    first = np.arange(len(hashes))  # of each picture, the first of its group
    _join_equal(first, hashes, sketches)
    leaders = np.flatnonzero(first == np.arange(len(hashes)))
    found = [leaders[pairs] for pairs in _pairs(hashes[leaders], sketches[leaders], most)]
    pairs = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    joined = _joined(np.unique(pairs, axis=0))
    first = np.array([joined.get(place, place) for place in first.tolist()], np.int64)
    order = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[order], prepend=-1, append=-1))
    return _runs(order, starts)


def _join_equal(first: np.ndarray, hashes: np.ndarray, sketches: np.ndarray) -> None:
    """Join pictures of one hash, of which there may be very many: each against the first of a group, not all."""
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], hashes[order[1:]] != hashes[order[:-1]], [True]]))
    for group in _runs(order, starts) if len(hashes) else []:
        rest = np.array(group)
        while len(rest) > 1:
            alike = _alike(sketches, rest, rest[:1])
            first[rest[alike]] = rest[0]
            rest = rest[~alike]


def _pairs(hashes: np.ndarray, sketches: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All pairs (n, 2) of near ones, the second place beyond the first; some come more than once."""
    bits = np.arange(64, dtype=np.uint64)
    for band in range(most + 1):
        # every so many bits, so that each band has coarse waves and fine ones
        mask = np.bitwise_or.reduce(np.uint64(1) << bits[band :: most + 1])
        order = np.argsort(hashes & mask, kind="stable")
        values, own = (hashes & mask)[order], hashes[order]
        here = np.arange(len(order))
        step = 0
        while len(here):
            step += 1
            here = here[here + step < len(order)]
            here = here[values[here] == values[here + step]]
            near = here[np.bitwise_count(own[here] ^ own[here + step]) <= most]
            ends = np.sort(np.stack([order[near], order[near + step]], 1), 1)
            ends = ends[_alike(sketches, ends[:, 0], ends[:, 1])]
            if len(ends):
                yield ends


def _alike(sketches: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    difference = sketches[some].astype(np.int16) - sketches[others]
    return np.abs(difference).max(1, initial=0) <= _TOLERANCE


def _joined(pairs: np.ndarray) -> dict[int, int]:
    """For each picture that joins a group, the first of it: the earliest that is itself in no other's group.

    Args:
        pairs: (n, 2), the second place beyond the first, in any order.
    """
    first: dict[int, int] = {}
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for earlier, later in pairs[order].tolist():
        if later not in first and earlier not in first:
            first[later] = earlier
    return first
