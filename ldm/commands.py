"""What the commands and scripts that draw or describe do, once their flags are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.batch import moves
from ldm.codec import PixelCodec
from ldm.conditioner import Condition, LabelConditioner
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.images import check_folder, check_writable, save_grid, save_image, to_pil
from ldm.metadata.read import read_record
from ldm.pipeline import NOTHING, Pipeline
from ldm.recorded import draw_again, load
from ldm.telling import Bar, check_series, in_words
from ldm.text_conditioner import TextConditioner


def replay_picture(path: Path, output: Path | None, model: str | None, verify: bool) -> None:
    """Draw a picture again from its record.

    Args:
        path: the picture.
        output: where to write the new one.
        model: in place of where the record says that the model was.
        verify: refuse if a pixel differs.

    Raises:
        UserError: there is no record, the model or an input is not to be had, or with ``verify`` a pixel differs.
    """
    record = read_record(path)
    if record is None:
        raise UserError(f"{path} holds no record of ldm, so it cannot be drawn again; `ldm show` tells what it holds")
    if output is not None:
        check_writable(output)
    with Bar() as bar:
        image, fresh = draw_again(record, model, bar.begin)
    same = fresh.pixels == record.pixels
    if output is not None:
        save_image(image, output, fresh)
    changed = [
        f"{k} {v} (now {fresh.versions.get(k)})" for k, v in record.versions.items() if fresh.versions.get(k) != v
    ]
    told = f"; drawn then with {', '.join(changed)}" if changed else ""
    if verify and not same:
        raise UserError(f"{path}: drawn again, some pixels differ{told}")
    print(f"{path}: {'identical' if same else 'drawn again, not identical'} (pixels {fresh.pixels[:10]}){told}")


def draw_series(
    pipeline: Pipeline,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    how: Drawing,
    folder: Path,
    columns: int,
    write_samples: bool,
    write_grid: bool,
) -> list[Path]:
    """Draw into ``folder``: samples/00000.png, ... and grid-0000.png, numbered on from those that are there.

    Raises:
        UserError: anything the user can mend; found before the drawing where it can be.
    """
    sample, sheet = folder / "samples" / "00000.png", folder / "grid-0000.png"
    check_folder(sample.parent)
    how = pipeline.settle(how)
    images = draw_with_bar(pipeline, conditions, seeds, how)
    written = []
    if write_samples:
        first = _next_number(sample.parent, "")
        written = [sample.with_name(f"{first + k:05d}.png") for k in range(len(images))]
        for image, path in zip(to_pil(images), written, strict=True):
            save_image(image, path)
    if write_grid:
        written.append(sheet.with_name(f"grid-{_next_number(folder, 'grid-'):04d}.png"))
        save_grid(images, written[-1], columns)
    print(f"{folder}: {len(images)} pictures, {in_words(how.model_dump())}, first seed {seeds[0]}")
    return written


def _next_number(folder: Path, prefix: str) -> int:
    stems = [path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png")]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


def draw_sheet(
    model: Path, labels: list[int] | None, count: int, seed: int, output: Path, options: dict[str, Any]
) -> Path:
    """Draw digits with a pixel model onto one sheet: a row of ``count`` for each label.

    Args:
        model: model folder or run.
        labels: None for all of the model's, and for a model without labels.
        count: pictures per label; of a model without labels, pictures in all, ten in a row.
        seed: of the first picture.
        output: the sheet.
        options: fields of ``Drawing``.

    Raises:
        UserError: anything the user can mend.
    """
    drawing = Drawing.checked({"batch_size": 100, **options})
    check_series(seed, count)
    check_writable(output)
    pipeline = load(model)
    conditioner = pipeline.model.conditioner
    if not isinstance(pipeline.model.codec, PixelCodec) or isinstance(conditioner, TextConditioner):
        raise UserError(f"{model} is no pixel model of digits; `ldm generate` draws with any model")
    if labels is None and isinstance(conditioner, LabelConditioner):
        labels = list(range(conditioner.classes))
    wanted: list[Condition] = [label for label in labels or [None] for _ in range(count)]
    how = pipeline.settle(drawing)
    images = draw_with_bar(pipeline, wanted, [seed + k for k in range(len(wanted))], how)
    save_grid(images, output, columns=count if labels else min(count, 10), scale=2)
    print(f"{output}: {len(images)} pictures, {in_words(how.model_dump())}, first seed {seed}")
    return output


def draw_with_bar(pipeline: Pipeline, conditions: Sequence[Condition], seeds: Sequence[int], how: Drawing) -> Tensor:
    """``Pipeline.generate``, settled, behind a progress bar that counts moves of the sampler."""
    total = len(pipeline.batches(conditions, how)) * moves(how, NOTHING, pipeline.model)
    with Bar() as bar:
        return pipeline.generate(conditions, seeds, progress=bar.begin(total), **how.model_dump())
