"""What a network that knows classes says of pictures: is each of the class that was asked for, and is none missing?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 0.1  # of its share in the reference, from which on a class counts as drawn


@dataclass(frozen=True)
class Judged:
    """What was recognised.

    Attributes:
        accuracy: the share of the pictures that were asked for with a class and are recognised as it; None where none
            was asked for.
        by_class: the same for each class; None for one that was not asked for.
        shares: of the drawn pictures recognised as each class.
        reference_shares: the same of the reference's.
        coverage: the share of the reference's classes that are drawn: at least a tenth as often as they are there.
        difference: half the sum of |shares - reference_shares|: 0 is equal, 1 has nothing in common (total variation).
    """

    accuracy: float | None
    by_class: tuple[float | None, ...]
    shares: tuple[float, ...]
    reference_shares: tuple[float, ...]
    coverage: float
    difference: float


def judge_classes(found: Tensor, wanted: Sequence[int | None], reference: Tensor, classes: int) -> Judged:
    """Count classes.

    Args:
        found: (N,) the recognised class of each drawn picture.
        wanted: N classes that were asked for; None where none was.
        reference: (M,) the recognised class of each picture of the reference: what is misread there as here does not
            count against the drawn.
        classes: how many there are.
    """
    asked = torch.tensor([-1 if label is None else label for label in wanted])
    right = found == asked
    by_class = [right[asked == k].double().mean().item() if (asked == k).any() else None for k in range(classes)]
    shares, usual = (torch.bincount(x, minlength=classes).double() / len(x) for x in (found, reference))
    there = usual > 0
    return Judged(
        accuracy=right[asked >= 0].double().mean().item() if (asked >= 0).any() else None,
        by_class=tuple(by_class),
        shares=tuple(shares.tolist()),
        reference_shares=tuple(usual.tolist()),
        coverage=(shares >= _LEAST * usual)[there].double().mean().item(),
        difference=(shares - usual).abs().sum().item() / 2,
    )
