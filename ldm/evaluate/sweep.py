"""Settings to draw with, and which of them are worth their price."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ldm.drawing import Drawing
from ldm.pipeline import Pipeline


def grid(
    pipeline: Pipeline, steps: Sequence[int], guidance: Sequence[float], sampler: str | None
) -> list[dict[str, Any]]:
    """Every pair of steps and guidance, as ``sampler``, ``steps`` and ``guidance`` of ``ldm.drawing.Drawing``.

    Args:
        pipeline: the model, whose own settings stand in for what is empty or None.
        steps: moves of the sampler.
        guidance: scales.
        sampler: its name.

    Raises:
        UserError: the model cannot draw with one of them.
    """
    found = []
    for moves, scale in itertools.product(steps or (None,), guidance or (None,)):
        how = pipeline.settle(Drawing.checked({"steps": moves, "guidance": scale, "sampler": sampler}))
        found.append({"sampler": how.sampler, "steps": how.steps, "guidance": how.guidance})
    return found


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto front of points (price, distance): those than which no other is as good in both and better in one.

    Returns:
        Their numbers, the cheapest first.
    """

    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    return sorted((k for k, point in enumerate(points) if not beaten(point)), key=lambda k: points[k])
