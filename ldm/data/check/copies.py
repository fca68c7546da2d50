"""Pictures that come again: the problem of each that is a copy of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ldm.data.check.duplicates import Prints
from ldm.data.check.facts import Facts
from ldm.data.check.kinds import Problem
from ldm.data.check.names import Names


class Copies:
    """Groups of pictures that are the same, or look it.

    Args:
        most: bits of 64 in which the hashes of pictures that look the same may differ.

    Attributes:
        same, near: after ``end``, the groups by number, rising.
    """

    def __init__(self, most: int) -> None:
        self._most, self._prints = most, Prints()
        self.same: list[list[int]] = []
        self.near: list[list[int]] = []

    def see(self, number: int, facts: Facts) -> Iterator[Problem]:
        """The problem of a picture that shows nothing."""
        if facts.look is None:
            return
        self._prints.add(number, facts.look)
        if facts.look.blank:
            yield Problem("blank", number, facts.part, facts.key, f"{facts.key} shows one colour only")

    def end(self, names: Names) -> Iterator[Problem]:
        """The problems of all pictures that are copies, once all were seen."""
        self.same, self.near = self._prints.groups(self._most)
        yield from self._told("same", self.same, names, "has the pixels of")
        yield from self._told("near", self.near, names, "looks nearly like")

    @staticmethod
    def _told(kind: str, groups: Sequence[Sequence[int]], names: Names, how: str) -> Iterator[Problem]:
        for first, *others in groups:
            for number in others:
                part, key = names[number]
                yield Problem(kind, number, part, key, f"{key} {how} {names[first][1]}")
