"""What is to be drawn, picture by picture: requests become jobs, and jobs a plan.

prompts of the command line, or a file of them  -> requests   ldm.plans.lines
requests, the first seed, pictures per prompt    -> jobs       ``seeded``
one job -> all combinations, or a table of two settings        ldm.plans.matrix, ldm.plans.table
a plan  -> jobs of the same settings, drawn together           ``groups``
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ldm.conditioner import Condition
from ldm.drawing import Drawing
from ldm.errors import IdleError, UserError

LARGEST_SEED = 2**64 - 1
MOST_PICTURES = 1000  # of one matrix or table: more were most likely asked for by mistake
NOTHING = "–"  # labels a choice of no text

Loras = tuple[tuple[Path, float], ...]


@dataclass(frozen=True)
class Request:
    """A prompt with what was said for it alone.

    Attributes:
        prompt: text, a label, or None for anything.
        seed: of its first picture; None for the next of the series.
        drawing: fields of ``Drawing`` that differ from those of all.
        output: the file to write; None for the next name of the series.
        place: where it was asked for, for messages; empty for the command line.
    """

    prompt: Condition
    seed: int | None = None
    drawing: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    place: str = ""


@dataclass(frozen=True)
class Job:
    """One picture to draw; the attributes are those of ``Request``, and its seed is known.

    Attributes:
        loras: files and weights, for this picture.
    """

    prompt: Condition
    seed: int
    drawing: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    place: str = ""
    loras: Loras = ()


@dataclass(frozen=True)
class Labels:
    """What stands around a sheet of pictures.

    Attributes:
        columns, rows: one label each; their numbers are those of the sheet.
        title: above all.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    title: str


@dataclass(frozen=True)
class Plan:
    """Pictures in the order in which they are written.

    Attributes:
        jobs: row by row, where they fill a sheet.
        labels: of the sheet; None where there is none.
    """

    jobs: tuple[Job, ...]
    labels: Labels | None = None


class Group(NamedTuple):
    """Jobs that are drawn with the same settings.

    Attributes:
        how: settled.
        loras: of all of them.
        places: the jobs, as indices into the plan's, rising.
    """

    how: Drawing
    loras: Loras
    places: list[int]


def seeded(requests: Sequence[Request], first: int, count: int = 1) -> list[Job]:
    """``count`` jobs of every request, in order.

    Picture k of all has seed ``first`` + k. Where the request has a seed, its picture j has that seed + j instead.
    Where it has an output and ``count`` is above 1, the files get numbers.

    Raises:
        UserError: a seed leaves 0 .. 2**64 - 1, or two pictures would go to one file.
    """
    jobs = []
    for at, request in enumerate(requests):
        names = [None] * count
        if request.output is not None:
            names = [str(name) for name in numbered(Path(request.output), count)]
        for j in range(count):
            seed = first + at * count + j if request.seed is None else request.seed + j
            if not 0 <= seed <= LARGEST_SEED:
                raise UserError(f"{_where(request)}seed {seed} is not between 0 and 2**64 - 1")
            jobs.append(Job(request.prompt, seed, request.drawing, names[j], request.place))
    _check_outputs(jobs)
    return jobs


def numbered(output: Path, count: int) -> list[Path]:
    """Names for ``count`` pictures: ``output`` itself for one, ``out_0001.png`` and so on for several."""
    if count == 1:
        return [output]
    digits = max(4, len(str(count)))
    return [output.with_name(f"{output.stem}_{k:0{digits}d}{output.suffix}") for k in range(1, count + 1)]


def groups(plan: Plan, base: Drawing, settle: Callable[[Drawing], Drawing]) -> list[Group]:
    """Gather the jobs whose settled settings and LoRAs are the same, in the order of their first ones.

    Args:
        plan: what is to be drawn.
        base: the settings of all, not settled.
        settle: fills in the defaults of the model and checks what depends on it: ``Pipeline.settle``.

    A setting that does nothing is refused; on a sheet, where a table may begin at "off", only if it does nothing in
    any picture.

    Raises:
        UserError: settings are wrong; all are looked at, so this is known before anything is drawn.
    """
    found: dict[tuple[Drawing, Loras], list[int]] = {}
    common, idle = base.model_dump(), list[IdleError]()
    for place, job in enumerate(plan.jobs):
        try:
            how = Drawing.checked({**common, **job.drawing})
            how = settle(how) if plan.labels is None else _settled(how, settle, idle)
        except UserError as error:
            if not job.drawing:  # then it is what was said for all
                raise
            raise UserError(f"{_where(job)}{error}") from error
        found.setdefault((how, job.loras), []).append(place)
    for error in idle:
        if sum(other.setting == error.setting for other in idle) == len(plan.jobs):
            raise error
    return [Group(how, loras, places) for (how, loras), places in found.items()]


def _settled(how: Drawing, settle: Callable[[Drawing], Drawing], idle: list[IdleError]) -> Drawing:
    """Settle without what does nothing, which is noted in ``idle``."""
    while True:
        try:
            return settle(how)
        except IdleError as error:
            idle.append(error)
            how = how.model_copy(update={error.setting: Drawing.model_fields[error.setting].default})


def shortened(text: str, most: int = 80) -> str:
    """Text for a message that is to stay a line."""
    return text if len(text) <= most else text[: most - 3] + "..."


def _where(asked: Request | Job) -> str:
    return f"{asked.place}: " if asked.place else ""


def _check_outputs(jobs: Sequence[Job]) -> None:
    names = Counter(os.path.normpath(job.output) for job in jobs if job.output is not None)
    for job in jobs:
        if job.output is not None and names[os.path.normpath(job.output)] > 1:
            raise UserError(f"{_where(job)}output {job.output!r} is given twice: one picture would replace the other")
