"""What ``ldm data check`` does, once its flags are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ldm.config import load_config
from ldm.data.caption_forms import CaptionConfig
from ldm.data.check.duplicates import MOST_BITS
from ldm.data.check.lists import as_data, quarantine
from ldm.data.check.looking import Examples, usual_workers
from ldm.data.check.page import page
from ldm.data.check.report import Report, Wishes, check_parts
from ldm.data.check.telling import told
from ldm.data.check.tokens import Tokens, tokenizer_at
from ldm.data.framing import FrameConfig
from ldm.data.guess import guess
from ldm.data.plan import parts_of
from ldm.data.sources import MixConfig, SplitConfig, open_source
from ldm.errors import UserError
from ldm.images import check_folder
from ldm.publishing import disk_trouble, write_whole
from ldm.training.kinds import Run
from ldm.training.lcm_settings import LcmRun
from ldm.training.settings import DiffusionRun, TextConditionConfig
from ldm.weights.opening import Loading

_CONFIGS = (".yaml", ".yml")


class Asked(NamedTuple):
    """The flags of ``ldm data check``.

    Attributes:
        source: a place that ``ldm.data.guess`` reads, or a run's configuration.
        resolution: sides of squares to train at; empty: those of the configuration, if it is one.
        batch_size: pictures of a batch; None: that of the configuration.
        model: whose tokenizer counts; None: that of the configuration, or else CLIP's.
        near: bits in which the hashes of near copies may differ.
        workers: processes; None: as many as there are processors.
        quarantine, html, json: files to write.
        overrides: of a configuration.
    """

    source: str
    resolution: tuple[int, ...] = ()
    batch_size: int | None = None
    model: str | None = None
    near: int = 4
    workers: int | None = None
    quarantine: Path | None = None
    html: Path | None = None
    json: Path | None = None
    overrides: tuple[str, ...] = ()


class _Subject(NamedTuple):
    """What is checked, and against what."""

    data: Any  # one of ``SourceConfig``
    frame: FrameConfig | None
    captions: CaptionConfig
    batch: int | None
    model: str | None
    loading: Loading = Loading()


def check_source(asked: Asked) -> bool:
    """Check a source, print what was found, and write the files that were asked for.

    Returns:
        Whether something is wrong; warnings do not count.

    Raises:
        UserError: there is no such source, or a flag is mistaken.
    """
    _check_flags(asked)
    subject = _subject(asked)
    tokens = Tokens(tokenizer_at(subject.model, subject.loading), subject.captions.prefix)
    parts, _ = parts_of(open_source(subject.data))
    workers = usual_workers() if asked.workers is None else asked.workers
    wishes = Wishes(tokens, tokens.window, subject.frame, subject.batch, asked.near, workers)
    report = check_parts(parts, wishes)
    print(told(report))
    if asked.quarantine is not None:
        _write_quarantine(asked.quarantine, report, _skips(subject.data))
    if asked.json is not None:
        _write(asked.json, json.dumps(as_data(report), indent=1))
        print(f"{asked.json}: all that was found")
    if asked.html is not None:
        _write(asked.html, page(report, Examples(parts)))
        print(f"{asked.html}: the same as a page, with pictures")
    return report.errors > 0


def _check_flags(asked: Asked) -> None:
    if not 0 <= asked.near <= MOST_BITS:
        raise UserError(f"--near should be 0 to {MOST_BITS} bits, got {asked.near}")
    if asked.batch_size is not None and asked.batch_size < 1:
        raise UserError(f"--batch-size should be 1 or more, got {asked.batch_size}")
    if asked.workers is not None and asked.workers < 0:
        raise UserError(f"--workers should be 0 (this process alone) or more, got {asked.workers}")
    for path in (asked.quarantine, asked.html, asked.json):
        if path is not None:
            if path.is_dir():
                raise UserError(f"{path} cannot be written: it is a folder")
            check_folder(path.parent)


def _subject(asked: Asked) -> _Subject:
    frame = _frame(asked.resolution) if asked.resolution else None
    if Path(asked.source).suffix.lower() not in _CONFIGS:
        if asked.overrides:
            raise UserError(f"{asked.overrides[0]!r} changes a configuration, and {asked.source} is none")
        return _Subject(guess(asked.source), frame, CaptionConfig(), asked.batch_size, asked.model)
    run = load_config(Path(asked.source), asked.overrides)
    batch = asked.batch_size or run.train.batch_size * run.train.gradient_accumulation
    model, loading = (asked.model, Loading()) if asked.model is not None else reader_of(run)
    return _Subject(run.data, frame or run.frame, run.captions, batch, model, loading)


def reader_of(run: Run) -> tuple[str | None, Loading]:
    """The model whose tokenizer reads the captions of a run; None where it is not made yet, or there is none."""
    if isinstance(run, LcmRun):
        return run.teacher, run.loading
    if not isinstance(run, DiffusionRun):
        return None, Loading()
    if run.model is not None:
        return run.model, run.loading
    return str(run.condition.path) if isinstance(run.condition, TextConditionConfig) else None, Loading()


def _frame(sides: tuple[int, ...]) -> FrameConfig:
    """Squares of these sides and shapes of their areas, in the usual steps, or, for small sides, in smaller ones."""
    step = math.gcd(FrameConfig.model_fields["step"].default, *sides)
    return FrameConfig.checked({"resolution": sides, "step": step})


def _skips(data: Any) -> list[Path | None]:
    """The list that each part of a source already leaves out."""
    if isinstance(data, MixConfig):
        return [skip for each in data.sources for skip in _skips(each.data)]
    if isinstance(data, SplitConfig):
        return _skips(data.of)
    return [getattr(data, "skip", None)]


def _write_quarantine(path: Path, report: Report, skips: list[Path | None]) -> None:
    """One list; of mixed sources one for each, as their keys may be the same.

    What a source leaves out already was not looked at. So when its list is the one to write, it keeps its lines.
    """
    several = len(report.parts) > 1
    for part, (name, skip) in enumerate(zip(report.parts, skips, strict=True)):
        lines = quarantine(report, part)
        own = path.with_name(f"{path.stem}_{part + 1}{path.suffix}") if several else path
        before = _lines_of(own) if skip is not None and skip.resolve() == own.resolve() else []
        _write(own, "".join(f"{line}\n" for line in (*before, *lines)))
        told = f" beside the {len(before):,} lines of before" if before else ""
        print(f"{own}: {len(lines) // 2:,} to leave out{told}" + (f", of {name}" if several else ""))


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()


def _write(path: Path, content: str) -> None:
    with disk_trouble(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda place: place.write_text(content, encoding="utf-8", errors="backslashreplace"))
