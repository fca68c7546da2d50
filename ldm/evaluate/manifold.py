"""How good the drawn pictures are, apart from how many kinds of them there are.

Around every picture of a set lies the ball that reaches to its k-th nearest neighbour in the set; together they stand
for the manifold of the set. With N drawn pictures g and M of the reference r:

    precision  the share of g within a ball of the reference         (Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1)
    recall     the share of r within a ball of the drawn
    density    the balls of the reference that each g is in, over k  (Naeem et al. 2020, arXiv:2002.09797, eq. 3)
    coverage   the share of the reference's balls with a g in them   (eq. 4)

Precision and density are low where pictures are bad, recall and coverage where kinds of pictures are missing. An
outlier in the reference has a large ball, which raises precision; density forgives it. Coverage, unlike recall, does
not grow as the drawn pictures scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ldm.evaluate.distance import check_sets

NEIGHBOURS = 5
_ROWS = 1024  # of a block of distances


class Manifold(NamedTuple):
    """See the module; for a perfect model all are near 1 (recall and precision below, as balls leave gaps)."""

    precision: float
    recall: float
    density: float
    coverage: float


def compare_manifolds(
    drawn: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, reach: Tensor | None = None
) -> Manifold:
    """Compare two sets of features, in float64.

    Args:
        drawn: (N, D).
        reference: (M, D).
        neighbours: k; N and M are larger.
        reach: ``radii(reference, neighbours)``, where it is known already.

    Raises:
        ValueError: the sets have other shapes, or not more than k members.
    """
    check_sets(drawn, reference)
    least = min(len(drawn), len(reference))
    if not 1 <= neighbours < least:
        raise ValueError(f"{neighbours} neighbours in a set of {least}: it takes 1 to {least - 1}")
    drawn, reference = drawn.double().cpu(), reference.double().cpu()
    reach = radii(reference, neighbours) if reach is None else reach
    own_reach = radii(drawn, neighbours)
    in_drawn, covered = torch.zeros(len(reference), dtype=torch.bool), torch.zeros(len(reference), dtype=torch.bool)
    balls = torch.zeros(len(drawn), dtype=torch.int64)
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = torch.cdist(reference[rows], drawn)
        within = distances <= reach[rows, None]
        balls += within.sum(0)
        covered[rows] = within.any(1)
        in_drawn[rows] = (distances <= own_reach).any(1)
    return Manifold(
        precision=(balls > 0).double().mean().item(),
        recall=in_drawn.double().mean().item(),
        density=balls.double().mean().item() / neighbours,
        coverage=covered.double().mean().item(),
    )


def radii(points: Tensor, neighbours: int) -> Tensor:
    """The distance (N,), in float64, of each point (N, D) to its k-th nearest neighbour, itself not counted."""
    points, found = points.double().cpu(), []
    for start in range(0, len(points), _ROWS):
        distances = torch.cdist(points[start : start + _ROWS], points)
        rows = torch.arange(len(distances))
        distances[rows, rows + start] = torch.inf
        found.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(found)
