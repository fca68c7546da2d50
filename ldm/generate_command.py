"""What ``ldm generate`` does, once its flags are read: requests to jobs, jobs to pictures, pictures to files."""

from __future__ import annotations

import functools
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.diffusion.samplers import Step
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.images import check_writable, save_image
from ldm.knowledge.file import KNOWS
from ldm.knowledge.mending import Unknown, told
from ldm.metadata.plain import printable
from ldm.metadata.record import Record
from ldm.plans.axes import parse_axis
from ldm.plans.job import Job, Loras, Plan, Request, groups, numbered, seeded
from ldm.plans.lines import read_requests
from ldm.plans.matrix import matrix
from ldm.plans.table import table
from ldm.recorded import load
from ldm.sheet import labelled_sheet
from ldm.studio import Studio
from ldm.telling import Bar, check_series, in_words
from ldm.weights.lora_syntax import split_tags
from ldm.workpieces import PictureFiles

Drawn = tuple[Image.Image, Record]


@dataclass(frozen=True)
class Asked:
    """What is to be drawn.

    Attributes:
        prompts: which may name LoRAs, as ``<lora:file:weight>``.
        from_file: a file of prompts in their place, or ``-``; see ``ldm.plans.lines``.
        matrix: draw all combinations of each prompt, as one labelled sheet.
        x, y: draw a table of settings for each prompt, as one labelled sheet; see ``ldm.plans.axes``.
        output: of the only picture or sheet; several get numbers.
        preview: rewritten at each step with a quick look at what is being drawn.
        model: where it is; None is the one in the package.
        count: pictures per prompt.
        seed: of the first picture, the k-th has this + k; None is random.
        as_written: draw words that the model says that it does not know, too, in place of the nearest that it knows.
    """

    prompts: tuple[str, ...]
    from_file: str | None
    matrix: bool
    x: str | None
    y: str | None
    output: Path
    preview: Path | None
    model: str | None
    count: int
    seed: int | None
    as_written: bool = False


def generate_pictures(
    asked: Asked, loading: dict[str, Any], options: dict[str, Any], pictures: dict[str, Any]
) -> list[Path]:
    """Draw and write what is asked for; every picture holds its record.

    Args:
        asked: what.
        loading: what ``ldm.load`` takes beside the model.
        options: fields of ``Drawing``.
        pictures: fields of ``PictureFiles``.

    Raises:
        UserError: anything the user can mend; found before the drawing where it can be.
    """
    how, files = Drawing.checked(options), PictureFiles.checked(pictures)
    first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    check_series(first, asked.count)
    plans = [_without_tags(plan, loading.get("loras", ())) for plan in _plans(asked, first)]
    paths = _outputs(plans, asked.output)
    _check_places(files, paths, asked.preview)
    together = Plan(tuple(job for plan in plans for job in plan.jobs), plans[0].labels)
    began = time.perf_counter()
    studio = load(asked.model, **{**loading, **_loras(together)})
    together, said_as = _in_known_words(studio, together, asked)
    sheets = together.labels is not None

    def keep(place: int, image: Image.Image, record: Record) -> None:
        if not sheets:  # as soon as it is drawn: what comes after may fail
            save_image(image, paths[place], record)

    drawn = _draw(studio, together, how, files, asked.preview, keep, said_as)
    if sheets:
        _write_sheets(plans, drawn, paths)
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
    image, record = drawn[0]
    settings = in_words({**record.drawing, "width": image.width, "height": image.height})
    what = f"{len(drawn)} pictures, the first {settings}" if sheets else settings
    print(f"{shown}: {what}, seed {record.seed}, {time.perf_counter() - began:.1f} s")
    return paths


def _check_places(files: PictureFiles, paths: list[Path], preview: Path | None) -> None:
    """Refuse to write over what is drawn from, or a preview over a picture."""
    given = [files.init, files.mask, *(control.hint for control in files.controls)]
    read = {path.resolve() for path in given if isinstance(path, Path)}
    for path in (*paths, *([preview] if preview else ())):
        if path.resolve() in read:
            raise UserError(f"{path} is what is drawn from, and would be overwritten: name another output")
    if preview is not None:
        check_writable(preview)
        if preview.resolve() in {path.resolve() for path in paths}:
            raise UserError(f"{preview} is the preview and a picture: name another")


def _plans(asked: Asked, first: int) -> list[Plan]:
    if asked.matrix and (asked.x or asked.y):
        raise UserError("a sheet is a matrix of prompts (--matrix) or a table of settings (--x, --y), not both")
    if asked.from_file is not None and any(asked.prompts):
        raise UserError("prompts come from --from-file or from the command line, not from both")
    requests = [Request(prompt) for prompt in asked.prompts]
    if asked.from_file is not None:
        requests = read_requests(asked.from_file)
    jobs = seeded(requests, first, asked.count)
    if asked.matrix:
        return [matrix(job) for job in jobs]
    if asked.x or asked.y:
        x, y = (parse_axis(text, flag) if text else None for text, flag in ((asked.x, "--x"), (asked.y, "--y")))
        return [table(job, x, y) for job in jobs]
    return [Plan(tuple(jobs))]


def _without_tags(plan: Plan, common: Loras) -> Plan:
    """A plan whose jobs have the LoRAs that all share, and those that their prompts named as ``<lora:...>``."""

    def plain(job: Job) -> Job:
        text, named = split_tags(job.prompt) if isinstance(job.prompt, str) else (job.prompt, [])
        files = [name if name.endswith(".safetensors") else f"{name}.safetensors" for name, _ in named]
        own = tuple((Path(file), weight) for file, (_, weight) in zip(files, named, strict=True))
        return replace(job, prompt=text, loras=(*common, *own))

    return replace(plan, jobs=tuple(map(plain, plan.jobs)))


def _loras(plan: Plan) -> dict[str, Any]:
    """How to load the LoRAs of a plan: merged if all its jobs have the same, which is faster, or else live."""
    sets = {job.loras for job in plan.jobs}
    if len(sets) > 1:
        return {"live": True}
    return {"loras": loras} if (loras := sets.pop()) else {}


def _in_known_words(studio: Studio, plan: Plan, asked: Asked) -> tuple[Plan, dict[int, str]]:
    """The plan with the nearest known words in place of unknown ones, and the prompts that are changed, as given.

    One note for all prompts says which words they are. Prompts with LoRAs stay: these may have taught other words.

    Raises:
        UserError: nothing would be changed anyway, because the model does not say what it knows.
    """
    if asked.as_written:
        if studio.knowledge is None:
            raise UserError(f"as_written would do nothing: the model has no {KNOWS}, and its prompts are not looked at")
        return plan, {}
    jobs, said_as, unknown = list(plan.jobs), dict[int, str](), list[Unknown]()
    for place, job in enumerate(plan.jobs):
        if isinstance(job.prompt, str) and not job.loras:
            mended = studio.mended(job.prompt)
            unknown += mended.unknown
            if mended.prompt != job.prompt:
                jobs[place] = replace(job, prompt=mended.prompt)
                said_as[place] = job.prompt
    if unknown:
        _note(unknown, asked.model)
    return replace(plan, jobs=tuple(jobs)), said_as


def _note(unknown: list[Unknown], model: str | None) -> None:
    """Say which words are unknown, and what can be done about it."""
    changed = any(each.nearest is not None for each in unknown)
    hints = [f"`ldm prompts{f' {model}' if model else ''}` shows what it knows"]
    hints += ["--as-written draws all words as they are"] if changed else []
    print(printable(f"note: {told(unknown)} ({'; '.join(hints)})"), file=sys.stderr)


def _outputs(plans: list[Plan], output: Path) -> list[Path]:
    """A file for every sheet, or, where there are none, for every picture.

    Raises:
        UserError: one could not be written, or two are the same.
    """
    sheets = plans[0].labels is not None
    named = [plan.jobs[0].output for plan in plans] if sheets else [job.output for job in plans[0].jobs]
    series = iter(numbered(output, named.count(None)) if None in named else [])
    paths = [Path(name) if name is not None else next(series) for name in named]
    for path in paths:
        check_writable(path)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"two pictures would be written to {twice}: name another output")
    return paths


def _draw(
    studio: Studio,
    plan: Plan,
    how: Drawing,
    files: PictureFiles,
    preview: Path | None,
    keep: Callable[[int, Image.Image, Record], None],
    said_as: Mapping[int, str],
) -> list[Drawn]:
    """Pictures in the order of the jobs, each told to ``keep``; those of the same settings are drawn together.

    ``said_as`` has the prompts as they were given, by the place of the job, where they are drawn in other words.
    """
    drawn: dict[int, Drawn] = {}
    settle: Any = functools.cache(lambda asked: studio.settled(asked, files))  # the files are opened for it
    together = groups(plan, how, settle)
    live = len({group.loras for group in together}) > 1
    for group in together if live else ():
        studio.set_loras(group.loras)  # what is wrong with one is known before the first picture
    with Bar(look=preview and functools.partial(_look, studio, preview)) as bar:
        for settled, loras, places in together:
            if live:
                studio.set_loras(loras)
            jobs = [plan.jobs[place] for place in places]
            finished = functools.partial(_finished, keep, places)
            given = {k: said_as[place] for k, place in enumerate(places) if place in said_as}
            prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
            found = studio.draw(prompts, seeds, settled, files, bar.begin, finished, given)
            drawn |= dict(zip(places, found, strict=True))
    return [drawn[place] for place in range(len(plan.jobs))]


def _finished(
    keep: Callable[[int, Image.Image, Record], None], places: list[int], k: int, image: Image.Image, record: Record
) -> None:
    keep(places[k], image, record)


def _look(studio: Studio, path: Path, step: Step) -> None:
    """Write what is being drawn, as a sheet where that is several pictures."""
    images = studio.preview.pictures(step.x0)
    save_image(images[0] if len(images) == 1 else labelled_sheet(images, math.ceil(len(images) ** 0.5), (), ()), path)


def _write_sheets(plans: list[Plan], drawn: list[Drawn], paths: list[Path]) -> None:
    done = 0
    for plan, path in zip(plans, paths, strict=True):
        images, first = [image for image, _ in drawn[done : done + len(plan.jobs)]], drawn[done][1]
        done += len(images)
        assert plan.labels is not None
        columns, rows, title = plan.labels.columns, plan.labels.rows, plan.labels.title
        save_image(labelled_sheet(images, len(columns), columns, rows, title), path, like=first)
