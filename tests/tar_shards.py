"""Tar shards as img2dataset writes them, made in no time: small pictures, or one picture many times."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour that tells sample ``number`` from all others."""
    return number % 251, number // 251 % 251, number // 251**2 % 251


def picture(number: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of (width, height) in one colour, by the number of its sample."""
    return _encoded(colour_of(number), size)


@functools.lru_cache(maxsize=4096)
def _encoded(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG", compress_level=1)
    return file.getvalue()


def members_of(number: int, image: bytes | None = None) -> dict[str, bytes]:
    """The files of a sample, by extension, as img2dataset has them."""
    words = {"key": f"{number:09}", "caption": f"caption {number}", "width": 8, "height": 8, "label": number % 7}
    return {
        "json": json.dumps(words).encode(),
        "png": picture(number) if image is None else image,
        "txt": f"caption {number}".encode(),
    }


def write_tar(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A tar of samples, each a name and its files by extension."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, files in samples:
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(
    folder: Path, counts: Sequence[int], *, statistics: bool = True, image: bytes | None = None
) -> list[Path]:
    """Tars of so many samples each, numbered through: ``00000.tar``, and ``00000_stats.json`` where asked for.

    Args:
        folder: is made where there is none.
        counts: samples of each tar.
        statistics: leave img2dataset's numbers beside each.
        image: is the picture of all samples; without it, each has a colour of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        samples = [(f"{n:09}", members_of(n, image)) for n in range(number, number + count)]
        paths.append(write_tar(folder / f"{shard:05}.tar", samples))
        if statistics:
            (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": count + 2, "successes": count}))
        number += count
    return paths
