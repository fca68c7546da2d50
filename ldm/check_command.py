"""What ``ldm data check`` does, once its flags are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
from ldm.data.sources import SourceConfig, open_source
from ldm.errors import UserError
from ldm.images import check_folder
from ldm.publishing import disk_trouble, write_whole
from ldm.training.settings import ClipRun, DiffusionRun, VAERun

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


class _Subject(NamedTuple):
    """What is checked, and against what."""

    data: SourceConfig
    frame: FrameConfig | None
    captions: CaptionConfig
    batch: int | None
    model: str | None


def check_source(asked: Asked) -> bool:
    """Check a source, print what was found, and write the files that were asked for.

    Returns:
        Whether something is wrong; warnings do not count.

    Raises:
        UserError: there is no such source, or a flag is mistaken.
    """
    _check_flags(asked)
    subject = _subject(asked)
    tokens = Tokens(tokenizer_at(subject.model), subject.captions.prefix)
    parts, _ = parts_of(open_source(subject.data))
    workers = usual_workers() if asked.workers is None else asked.workers
    wishes = Wishes(tokens, tokens.window, subject.frame, subject.batch, asked.near, workers)
    report = check_parts(parts, wishes)
    print(told(report))
    if asked.quarantine is not None:
        _write_quarantine(asked.quarantine, report)
    if asked.json is not None:
        _write(asked.json, lambda: json.dumps(as_data(report), indent=1))
    if asked.html is not None:
        _write(asked.html, lambda: page(report, Examples(parts)))
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
    frame = FrameConfig.checked({"resolution": asked.resolution}) if asked.resolution else None
    if Path(asked.source).suffix.lower() not in _CONFIGS:
        return _Subject(guess(asked.source), frame, CaptionConfig(), asked.batch_size, asked.model)
    run = load_config(Path(asked.source))
    batch = asked.batch_size or run.train.batch_size * run.train.gradient_accumulation
    return _Subject(run.data, frame or run.frame, run.captions, batch, asked.model or _reader(run))


def _reader(run: DiffusionRun | VAERun | ClipRun) -> str | None:
    """The model whose tokenizer reads the captions of a run; None where it is not made yet, or there is none."""
    if not isinstance(run, DiffusionRun):
        return None
    if run.model is not None:
        return str(run.model)
    return str(run.condition.path) if run.condition is not None and run.condition.kind == "text" else None


def _write_quarantine(path: Path, report: Report) -> None:
    """One list; of mixed sources one for each, as their keys may be the same."""
    several = len(report.parts) > 1
    for part, name in enumerate(report.parts):
        lines = quarantine(report, part)
        own = path.with_name(f"{path.stem}_{part + 1}{path.suffix}") if several else path
        _write(own, lambda lines=lines: "".join(f"{line}\n" for line in lines))
        count = len(lines) // 2
        print(f"{own}: {count:,} to leave out" + (f" of {name}" if several else "") + ", with data.skip")


def _write(path: Path, make: Callable[[], str]) -> None:
    content = make()
    with disk_trouble(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda place: place.write_text(content, encoding="utf-8", errors="backslashreplace"))
