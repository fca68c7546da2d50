"""A number about pictures, with all that it needs to be understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Metric:
    """A measured value.

    Attributes:
        name: what is measured, such as ``Fréchet distance``.
        value: the number.
        better: whether a lower or a higher one is better.
        features: the name of the network in whose features, or by which, it was measured; empty for none.
        count: how many pictures were measured.
        reference_count: with how many others they were compared; 0 for none.
        spread: the standard deviation over parts of the pictures, where there are parts.
        note: how it was measured, where that can differ.
    """

    name: str
    value: float
    better: Literal["lower", "higher"]
    features: str
    count: int
    reference_count: int = 0
    spread: float | None = None
    note: str = ""

    @property
    def label(self) -> str:
        """The name with the features and the numbers of pictures: what a report calls it."""
        against = f" against {self.reference_count:,}" if self.reference_count else ""
        where = f"{self.features}, " if self.features else ""
        return f"{self.name} ({where}n = {self.count:,}{against}{f', {self.note}' if self.note else ''})"

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2g}"
        return f"{self.label}: {self.value:.4g}{spread}"
