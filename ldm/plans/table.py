"""A prompt drawn with two settings against each other: the values of one from left to right, of the other downwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldm.errors import UserError
from ldm.plans.axes import Axis
from ldm.plans.job import MOST_PICTURES, Job, Labels, Plan

_ALONE: tuple[Any, ...] = (None,)


def table(job: Job, x: Axis | None, y: Axis | None) -> Plan:
    """A job for every pair of values, row by row. All have the seed of ``job``, where no axis is of seeds.

    Args:
        job: what the axes change. Its own settings hold where they do not.
        x: from left to right; None for a single column.
        y: downwards; None for a single row.

    Raises:
        UserError: there is no axis, both are of one setting, there are more than 1000 pictures, or the text that an
            axis replaces is not in the prompt.
    """
    if x is None and y is None:
        raise UserError("a table needs an axis: --x, --y or both")
    if x is not None and y is not None and x.key == y.key != "prompt":
        raise UserError(f"both axes are of {x.key}: one would undo the other")
    across, down = _ALONE if x is None else x.values, _ALONE if y is None else y.values
    if len(across) * len(down) > MOST_PICTURES:
        raise UserError(f"{len(across)} x {len(down)} pictures are more than {MOST_PICTURES:,}")
    job = replace(job, output=None)
    jobs = tuple(_with(_with(job, x, right), y, below) for below in down for right in across)
    title = "" if job.prompt is None else str(job.prompt)
    return Plan(jobs, Labels(("",) if x is None else x.labels, ("",) if y is None else y.labels, title))


def _with(job: Job, axis: Axis | None, value: Any) -> Job:
    if axis is None:
        return job
    if axis.key == "seed":
        return replace(job, seed=value)
    if axis.key != "prompt":
        return replace(job, drawing={**job.drawing, axis.key: value})
    sought = axis.values[0]
    if not isinstance(job.prompt, str) or not sought or sought not in job.prompt:
        raise UserError(f"the axis of prompts replaces {sought!r}, its first value, which is not in {job.prompt!r}")
    return replace(job, prompt=job.prompt.replace(sought, value))
