"""Small folders of real pictures, one in each layout that people have them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((48, 32), (32, 48), (40, 40))  # (width, height) of the first pictures, which then repeat
NAMES = ("circle", "square", "triangle", "star")


def picture(number: int, size: tuple[int, int] | None = None) -> Image.Image:
    """A smooth RGB picture of its own, of ``size`` (width, height)."""
    small = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size or SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


def put(path: Path, number: int, size: tuple[int, int] | None = None, **options: object) -> Path:
    """Save ``picture(number)``; what is not said follows from the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, size).save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def caption(number: int) -> str:
    return f"a picture of a {NAMES[number % len(NAMES)]}, number {number}"


def metadata_folder(
    folder: Path, count: int = 4, kind: str = "jsonl", below: Sequence[str] = ("",), column: str = "text"
) -> Path:
    """``metadata.KIND`` with ``count`` pictures in each of the folders ``below``, numbered through."""
    for part, name in enumerate(below):
        rows = []
        for number in range(part * count, (part + 1) * count):
            put(folder / name / f"{number}.png", number)
            rows.append({"file_name": f"{number}.png", column: caption(number), "label": number % 2})
        write_metadata(folder / name / f"metadata.{kind}", rows)
    return folder


def write_metadata(path: Path, rows: Sequence[dict[str, object]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)


def caption_folder(folder: Path, count: int = 4, ending: str = ".txt", picture_ending: str = ".png") -> Path:
    """A caption file beside each picture."""
    for number in range(count):
        put(folder / f"{number}{picture_ending}", number)
        (folder / f"{number}{ending}").write_text(caption(number), encoding="utf-8")
    return folder


def kohya_folder(folder: Path) -> Path:
    """``3_sks dog`` with two pictures, one with a caption file; ``1_cat`` with one; ``more``, with one, captioned."""
    for name, number in (("3_sks dog", 0), ("3_sks dog", 1), ("1_cat", 2), ("more", 3)):
        put(folder / name / f"{number}.png", number)
    (folder / "3_sks dog" / "1.caption").write_text("a dog that sits", encoding="utf-8")
    (folder / "more" / "3.txt").write_text("something else", encoding="utf-8")
    return folder


def class_folder(folder: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 2) -> Path:
    """A folder for each class."""
    for place, name in enumerate(classes):
        for number in range(each):
            put(folder / name / f"{number}.png", place * each + number)
    return folder


def plain_folder(folder: Path, count: int = 4) -> Path:
    """Pictures and nothing else."""
    for number in range(count):
        put(folder / f"{number}.png", number)
    return folder


def parquet_file(path: Path, count: int = 4, raw: bool = False) -> Path:
    """Pictures as Hugging Face writes them, ``{bytes, path}``, or as plain bytes; with ``text`` and ``label``."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number in range(count):
        held = io.BytesIO()
        picture(number).save(held, "PNG")
        image = held.getvalue() if raw else {"bytes": held.getvalue(), "path": f"{number}.png"}
        rows.append({"image": image, "text": caption(number), "label": number % 2})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
