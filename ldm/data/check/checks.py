"""The checks that judge one example at a time: whether it can be used, and its captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ldm.data.check.facts import Facts
from ldm.data.check.kinds import Problem


class Faults:
    """What cannot be used.

    Attributes:
        usable: examples that can.
    """

    def __init__(self) -> None:
        self.usable = 0

    def see(self, number: int, facts: Facts) -> Iterator[Problem]:
        """The problems of an example that was looked at."""
        self.usable += not facts.faults
        for fault in facts.faults:
            yield Problem(fault.kind, number, facts.part, facts.key, fault.message)


class Captions:
    """Whether there are captions where there should be, and how long they are.

    Args:
        captioned: of each part, whether its examples have captions.
        window: tokens of a window of the text encoder, without start and end.

    Attributes:
        lengths: how many captions have so many tokens.
    """

    def __init__(self, captioned: list[bool], window: int) -> None:
        self._captioned, self.window = captioned, window
        self.lengths: Counter[int] = Counter()

    def see(self, number: int, facts: Facts) -> Iterator[Problem]:
        """The problems of an example's captions."""
        if facts.faults:
            return
        self.lengths.update(facts.tokens)
        if not facts.tokens and self._captioned[facts.part]:
            yield Problem("uncaptioned", number, facts.part, facts.key, f"{facts.key} has no caption")
        longest = max(facts.tokens, default=0)
        if longest > self.window:
            told = f"the caption of {facts.key} has {longest} tokens, and a window holds {self.window}"
            yield Problem("long", number, facts.part, facts.key, told)
