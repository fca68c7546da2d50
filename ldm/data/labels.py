"""Classes as they are written in data, by name or by number, to numbers from 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.data.pictures import shown

_BEYOND = 10**9  # no number of a class


@dataclass(frozen=True)
class Labels:
    """The classes of examples.

    Attributes:
        numbers: one for each example, 0 .. count - 1; None where it has none that can be used.
        names: of the classes, by number; None where they are numbers in the data.
        count: of classes.
        given: what the data says, one for each example.
    """

    numbers: list[int | None]
    names: tuple[str, ...] | None
    count: int
    given: Sequence[object]

    def fault(self, index: int) -> str:
        """What is wrong with the class of an example whose number is None."""
        given = self.given[index]
        if given is None:
            return "is missing"
        expected = f"one of {', '.join(self.names[:10])}" if self.names else "a number from 0"
        return f"is {shown(given)}, and should be {expected}"


def number_labels(given: Sequence[object], classes: tuple[str, ...] | None) -> Labels:
    """Number the classes of examples.

    Names are numbered in the order of ``classes``, or sorted. Where all are numbers, also written as text, and no
    ``classes`` are given, they stay.
    """
    values = [_plain(value) for value in given]
    if classes is None and all(isinstance(value, int) for value in values if value is not None):
        numbers = [value if isinstance(value, int) and value >= 0 else None for value in values]
        return Labels(numbers, None, max((number for number in numbers if number is not None), default=-1) + 1, given)
    names = classes or tuple(sorted({str(value) for value in values if value is not None}))
    place = {name: number for number, name in enumerate(names)}
    found = [value if _within(value, classes) else place.get(str(value)) for value in values]
    return Labels([number if isinstance(number, int) else None for number in found], names, len(names), given)


def _within(value: object, classes: tuple[str, ...] | None) -> bool:
    """Whether a number is one of given classes by its place, and not by its name."""
    return classes is not None and isinstance(value, int) and str(value) not in classes and 0 <= value < len(classes)


def _plain(value: object) -> int | str | None:
    """A class as a number where it is one, else as text; None for what is neither, or empty."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch("0|[1-9][0-9]{0,8}", value) else value or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _BEYOND:
        return None
    return int(value) if value == int(value) else None
