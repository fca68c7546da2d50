"""``ldm train CONFIG --dry-run``: what a run will take, before it takes it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.check_command import reader_of
from ldm.config import load_config
from ldm.cost.money import check_price, money_in_words
from ldm.data.check.looking import usual_workers
from ldm.data.check.report import Report, Wishes, check_parts
from ldm.data.check.telling import told
from ldm.data.check.tokens import Tokens, tokenizer_at
from ldm.data.example import Source
from ldm.data.plan import parts_of
from ldm.data.split import thin_out
from ldm.training.kinds import Run
from ldm.training.rehearsal import Rehearsed, rehearse
from ldm.training.run_source import source_of
from ldm.training.settings import DiffusionRun, ModelRun

_LOOKED_AT = 1000  # pictures of a large source
_KEPT = 64  # pictures that are cached to see how much they take


@dataclass(frozen=True)
class Preflight:
    """What a dry run found.

    Attributes:
        pictures: of the whole source.
        data: what is wrong with the pictures that were looked at, in words.
        errors: of the data.
        rehearsed: the steps that were taken.
        steps: of the whole run.
        drawing: seconds in which all its sheets are drawn.
        cache: bytes that the cache of the whole run will take; None where the run has none.
    """

    pictures: int
    data: str
    errors: int
    rehearsed: Rehearsed
    steps: int
    drawing: float
    cache: int | None

    @property
    def hours(self) -> float:
        """Of all steps and sheets; checkpoints, held-out losses and the search for copies come on top."""
        return (self.steps * self.rehearsed.seconds + self.drawing) / 3600


def preflight(run: Run) -> Preflight | None:
    """Check the data of a run, and take a few of its steps in a folder that is deleted again.

    Of a source at random access ``_LOOKED_AT`` pictures are looked at; what a run makes before it begins, its cache and
    its pictures of a class, is made of a few.

    Args:
        run: its settings.

    Returns:
        None in all processes but the main one.

    Raises:
        UserError: what the run itself would raise.
    """
    source, main = source_of(run), os.environ.get("RANK", "0") == "0"
    report = _look(run, source) if main and not source.stream else None
    # beside the run's own folder, where all processes of all machines see it
    folder = run.output.parent / f"{run.output.name}.dry-run"  # `output` may be ".", which has no name
    if main:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        rehearsed, kept = rehearse(_small(run, folder, stream=source.stream), lambda task: len(task.samples.source))
        cache = _bytes(folder / "cache") * len(source) // kept if isinstance(run, ModelRun) and run.cache else None
    finally:
        if main:
            shutil.rmtree(folder, ignore_errors=True)
    if not main:
        return None
    data = "a stream, which `ldm data check` reads through" if report is None else told(report)
    drawing = _sheets(run) * rehearsed.sheet
    return Preflight(len(source), data, report.errors if report else 0, rehearsed, run.train.steps, drawing, cache)


def in_words(found: Preflight, price: float | None) -> str:
    """A preflight, to print.

    Args:
        found: what it found.
        price: of one device for an hour.
    """
    of = found.rehearsed
    rate, waiting = of.samples / of.seconds, of.waited / of.seconds
    lines = [
        found.data,
        "",
        f"network: {of.parameters / 1e6:,.1f}M numbers, {of.trained / 1e6:,.1f}M of them trained",
        f"device: {of.devices} x {of.device}",
        f"step: {of.seconds:.3g} s for {of.samples} pictures, {rate:,.1f} pictures/s, {waiting:.1%} waiting for data",
        f"operations: {of.flops / 1e12:,.4g} TFLOP a step and device, {of.flops / of.seconds / 1e12:,.3g} TFLOP/s",
    ]
    if of.memory is not None:
        reserved = "" if of.reserved is None else f", {of.reserved:,.0f} MiB reserved"
        lines.append(f"memory: {of.memory:,.0f} MiB at most{reserved}")
    if found.cache is not None:
        lines.append(f"cache: {found.cache / 1e6:,.1f} MB for {found.pictures:,} pictures")
    lines += [f"skipped: {message}" for message in of.skipped]
    steps, drawing = (_time(seconds / 3600) for seconds in (found.steps * of.seconds, found.drawing))
    lines.append(f"whole run: {_time(found.hours)}: {found.steps:,} steps in {steps}, and drawing sheets in {drawing}")
    lines.append("not in it: checkpoints, held-out losses, the search for copies")
    money = money_in_words(found.hours * of.devices, price)
    return "\n".join(lines if money is None else [*lines, money])


def preflight_file(config: Path, overrides: list[str], price: float | None) -> bool:
    """``ldm train --dry-run``: print what a run will take; whether its data are in order.

    Raises:
        UserError: as :func:`preflight`, or the price is none.
    """
    check_price(price)
    run = load_config(config, overrides)
    found = preflight(run)
    if found is None:
        return True
    print(in_words(found, price))
    return found.errors <= run.skip_bad


def _look(run: Run, source: Source) -> Report:
    parts, _ = parts_of(thin_out(source, _LOOKED_AT))
    tokens = Tokens(tokenizer_at(*reader_of(run)), run.captions.prefix)
    batch = run.train.batch_size * run.train.gradient_accumulation
    # a part of the pictures tells neither which buckets are small nor, but for the exact ones, of copies
    whole = len(source) <= _LOOKED_AT
    return check_parts(parts, Wishes(tokens, tokens.window, run.frame, batch if whole else None, 0, usual_workers()))


def _small(run: Run, folder: Path, stream: bool) -> Run:
    """The run with little to make before it begins, in another folder, and nothing to do but its steps."""
    changes: dict[str, Any] = {"output": folder}
    if isinstance(run, DiffusionRun):
        changes["validation"] = None
        if run.prior is not None and run.prior.generate is not None:
            few = run.prior.generate.model_copy(update={"count": run.prior.generate.batch_size})
            changes["prior"] = run.prior.model_copy(update={"generate": few})
    if isinstance(run, ModelRun) and run.cache is not None:
        changes["cache"] = run.cache.model_copy(update={"path": None})
        if not stream:
            changes["limit"] = min(run.limit or _KEPT, _KEPT)
    return run.model_copy(update=changes)


def _sheets(run: Run) -> float:
    """How many sheets of samples a run draws, those of validation prompts counted by their pictures."""
    steps = run.train.steps
    found = -(-steps // run.train.sample_every)  # and one at the end
    if not isinstance(run, DiffusionRun) or run.validation is None:
        return found
    pictures = len(run.validation.prompts) * run.validation.pictures
    return found + -(-steps // run.validation.every) * pictures / run.sample.count


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _time(hours: float) -> str:
    minutes = hours * 60
    return f"{minutes:,.1f} minutes" if minutes < 90 else f"{hours:,.1f} hours"
