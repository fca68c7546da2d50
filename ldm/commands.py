"""What the commands and scripts that draw or describe do, once their flags are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.codec import PixelCodec
from ldm.conditioner import Condition, LabelConditioner
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.images import check_folder, check_writable, from_pil, save_grid, save_image
from ldm.metadata.plain import printable
from ldm.metadata.read import read_record
from ldm.metadata.record import Record, hash_pixels
from ldm.open_picture import opened, picture_trouble
from ldm.recorded import draw_again, load
from ldm.studio import Studio
from ldm.telling import Bar, check_series, in_words
from ldm.text_conditioner import TextConditioner
from ldm.workpieces import PictureFiles

Drawn = tuple[Image.Image, Record]
_MASK = "_mask.png"


def replay_picture(
    path: Path, output: Path | None, model: str | None, verify: bool, allow_pickle: bool = False
) -> None:
    """Draw a picture again from its record.

    Args:
        path: the picture.
        output: where to write the new one.
        model: in place of where the record says that the model was.
        verify: refuse if a pixel differs, in the file or drawn again. JPEG does not keep every pixel, so there only
            what was drawn then is compared with what is drawn now.
        allow_pickle: as in ``draw_again``.

    Raises:
        UserError: there is no record, the model or an input is not to be had, or with ``verify`` a pixel differs.
    """
    record = read_record(path)
    if record is None:
        raise UserError(f"{path} holds no record of ldm, so it cannot be drawn again; `ldm show` tells what it holds")
    if verify:
        _check_untouched(path, record)
    if output is not None:
        check_writable(output)
    with Bar() as bar:
        image, fresh = draw_again(record, model, bar.begin, allow_pickle)
    same = fresh.pixels == record.pixels
    if output is not None:
        save_image(image, output, fresh)
    changed = [
        f"{k} {v} (now {fresh.versions.get(k)})" for k, v in record.versions.items() if fresh.versions.get(k) != v
    ]
    told = printable(f"; drawn then with {', '.join(changed)}") if changed else ""
    if verify and not same:
        raise UserError(f"{path}: drawn again, some pixels differ{told}")
    print(f"{path}: {'identical' if same else 'drawn again, not identical'} (pixels {fresh.pixels[:10]}){told}")


def _check_untouched(path: Path, record: Record) -> None:
    with opened(path) as image:
        if image.format == "JPEG":
            return
        with picture_trouble(path):
            found = hash_pixels(image)
    if found != record.pixels:
        raise UserError(f"{path}: its pixels are not those that were drawn: it was changed afterwards")


def draw_series(
    studio: Studio,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    how: Drawing,
    files: PictureFiles,
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
    drawn = draw_with_bar(studio, conditions, seeds, how, files)
    written = []
    if write_samples:
        first = _next_number(sample.parent, "")
        written = [sample.with_name(f"{first + k:05d}.png") for k in range(len(drawn))]
        for (image, record), path in zip(drawn, written, strict=True):
            save_image(image, path, record)
    if write_grid:
        written.append(sheet.with_name(f"grid-{_next_number(folder, 'grid-'):04d}.png"))
        save_grid(_stacked(drawn), written[-1], columns)
    print(f"{folder}: {len(drawn)} pictures, {in_words(drawn[0][1].drawing)}, first seed {seeds[0]}")
    return written


def _next_number(folder: Path, prefix: str) -> int:
    stems = [path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.png")]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1) + 1


def draw_sheet(
    model: str | Path, labels: list[int] | None, count: int, seed: int, output: Path, options: dict[str, Any]
) -> Path:
    """Draw digits with a pixel model onto one sheet: a row of ``count`` for each label.

    Args:
        model: as ``ldm.load`` takes it.
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
    studio = load(model)
    conditioner = studio.model.conditioner
    if not isinstance(studio.model.codec, PixelCodec) or isinstance(conditioner, TextConditioner):
        raise UserError(f"{model} is no pixel model of digits; `ldm generate` draws with any model")
    if labels is None and isinstance(conditioner, LabelConditioner):
        labels = list(range(conditioner.classes))
    wanted: list[Condition] = [label for label in labels or [None] for _ in range(count)]
    drawn = draw_with_bar(studio, wanted, [seed + k for k in range(len(wanted))], drawing)
    save_grid(_stacked(drawn), output, columns=count if labels else min(count, 10), scale=2)
    print(f"{output}: {len(drawn)} pictures, {in_words(drawn[0][1].drawing)}, first seed {seed}")
    return output


def find_pairs(folder: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pairs of NAME.png and NAME_mask.png in ``folder``, by name; pictures without a mask are passed over.

    Raises:
        UserError: there are none, a picture is missing, or ``target`` cannot take the results.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: it should hold pairs of NAME.png and NAME_mask.png")
    if target.resolve() == folder.resolve():
        raise UserError(f"{target} is where the pictures come from: the results would replace them")
    masks = sorted(folder.glob(f"*{_MASK}"))
    if not masks:
        raise UserError(f"{folder} holds no mask: pairs are called NAME.png and NAME_mask.png")
    pairs = [(mask.with_name(f"{mask.name.removesuffix(_MASK)}.png"), mask) for mask in masks]
    for picture, mask in pairs:
        if not picture.is_file():
            raise UserError(f"{mask} has no picture beside it: there is no {picture.name}")
    check_folder(target)
    return pairs


def fill_pairs(
    studio: Studio, pairs: Sequence[tuple[Path, Path]], prompt: Condition, seed: int, how: Drawing, folder: Path
) -> list[Path]:
    """Draw each picture of ``pairs`` anew where its mask is white, into ``folder`` under the picture's name.

    Raises:
        UserError: anything the user can mend; found before the drawing where it can be.
    """
    works = [PictureFiles(init=picture, mask=mask) for picture, mask in pairs]
    for files in works:
        studio.settled(how, files)
    written = []
    for (picture, _), files in zip(pairs, works, strict=True):
        ((image, record),) = draw_with_bar(studio, [prompt], [seed], how, files)
        written.append(folder / picture.name)
        save_image(image, written[-1], record)
        print(f"{written[-1]}: {in_words(record.drawing)}, seed {seed}")
    return written


def draw_with_bar(
    studio: Studio,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    how: Drawing,
    files: PictureFiles = PictureFiles(),  # noqa: B008  frozen, so it can be shared
) -> list[Drawn]:
    """``Studio.draw`` behind a progress bar that counts moves of the sampler."""
    with Bar() as bar:
        return studio.draw(conditions, seeds, how, files, bar.begin)


def _stacked(drawn: Sequence[Drawn]) -> Tensor:
    """Pictures of one size as (N, C, H, W) in -1..1."""
    return torch.stack([from_pil(image) for image, _ in drawn])
