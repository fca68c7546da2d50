"""Several sources as one, each with a share of the samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor

from ldm.data.example import Example, Source, Words
from ldm.errors import UserError


class Mixture:
    """Sources that share the samples of a run by their weights.

    As a ``Source`` it is the parts one after the other, which is how it is checked and cached; training asks
    ``ldm.data.plan`` for the order.

    Args:
        parts: the sources.
        weights: their shares, in proportion to each other. A part that is a mixture itself divides its own share.

    Raises:
        UserError: the sources do not go together.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float | Fraction]) -> None:
        shares = [_shares(part, _exactly(weight)) for part, weight in zip(parts, weights, strict=True)]
        parts, exact = zip(*(pair for pairs in shares for pair in pairs), strict=True)
        self.parts: tuple[Source, ...] = parts
        self.weights: tuple[Fraction, ...] = exact
        self.name = " + ".join(part.name for part in parts)
        self.channels = _same("channels", parts)
        self.captioned = bool(_same("captioned", parts))
        classes = [part.num_classes for part in parts]
        if len({number is None for number in classes}) > 1:
            raise UserError(f"of the mixed sources {self.name}, some have classes and some have none")
        self.num_classes = max((number for number in classes if number is not None), default=None)
        self.stream = any(part.stream for part in parts)
        sizes = [part.sizes for part in parts]
        known = [size for size in sizes if size is not None]
        self.sizes: Tensor | None = torch.cat(known) if len(known) == len(sizes) else None
        self._firsts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def _find(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self._firsts, index) - 1
        return self.parts[part], index - self._firsts[part]

    def key(self, index: int) -> str:
        part, own = self._find(index)
        return f"{part.name}: {part.key(own)}"

    def stamp(self, index: int) -> str:
        part, own = self._find(index)
        return part.stamp(own)

    def words(self, index: int) -> Words:
        part, own = self._find(index)
        return part.words(own)

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        part, own = self._find(index)
        return part.read(own, least)


def _exactly(weight: float | Fraction) -> Fraction:
    """A weight as it is written: 0.1 is a tenth, and not the nearest binary number."""
    return Fraction(str(weight))


def _shares(part: Source, weight: Fraction) -> list[tuple[Source, Fraction]]:
    """A source with its weight, or those that it mixes with theirs."""
    if not isinstance(part, Mixture):
        return [(part, weight)]
    whole = sum(part.weights)
    return [(each, weight * own / whole) for each, own in zip(part.parts, part.weights, strict=True)]


def _same(name: str, parts: Sequence[Source]) -> int:
    values = {getattr(part, name): part.name for part in parts}
    if len(values) > 1:
        told = ", ".join(f"{value} in {where}" for value, where in values.items())
        raise UserError(f"mixed sources should agree in {name}: found {told}")
    return next(iter(values))
