"""SVG and WebP to pixels, in shards that are kept: rendering that was stopped goes on where it was.

A shard is one ``.npy`` file, (n, side, side, 4) uint8 with colours multiplied by alpha, or (n, side, side) for glyphs
of one colour, of which the alpha is all there is. Its name holds a hash of what it was made from, so a shard that is
there is right, and files are renamed into their places when they are whole. Such a file is mapped into memory as it is.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm.errors import UserError, need
from ldm.publishing import disk_trouble, write_whole
from ldm.starter.icon_sets import Drawing
from ldm.starter.looks import Look, look_at

_PER_SHARD = 128  # pictures: 33 MB at 256 x 256
_RECIPE = b"1"  # changes when the same drawing would give other pixels


@dataclass(frozen=True)
class Shard:
    """Some drawings of one style, and the file of their pixels.

    Attributes:
        path: of the file.
        drawings: in its order.
        side: height and width in pixels.
        flat: alpha alone is kept.
    """

    path: Path
    drawings: tuple[Drawing, ...]
    side: int
    flat: bool


def shards_of(drawings: Sequence[Drawing], side: int, flat: bool, folder: Path) -> list[Shard]:
    """The shards of a style's drawings, in their order."""
    found = []
    for first in range(0, len(drawings), _PER_SHARD):
        part = tuple(drawings[first : first + _PER_SHARD])
        digest = hashlib.blake2b(_RECIPE + f"{side} {flat}".encode(), digest_size=8)
        for drawing in part:
            digest.update(len(drawing.content).to_bytes(8, "little") + drawing.content)
        name = f"{part[0].style}-{first // _PER_SHARD:03d}-{digest.hexdigest()}.npy"
        found.append(Shard(folder / name, part, side, flat))
    return found


def render_all(shards: Sequence[Shard], workers: int) -> list[list[Look | None]]:
    """Render the shards that are not there yet.

    Args:
        shards: all of them; the folder of their files must be there.
        workers: processes.

    Returns:
        for every shard what its pictures look like; None for a picture with nothing in it.

    Raises:
        UserError: resvg-py is missing, or the disk is full.
    """
    need("resvg_py", "starter")
    looks: list[list[Look | None]] = [[] for _ in shards]
    count = sum(len(shard.drawings) for shard in shards)
    with tqdm(total=count, desc="rendering", unit="picture", disable=None) as bar:
        for number, found in _rendered(shards, workers):
            looks[number] = found
            bar.update(len(found))
    return looks


def _rendered(shards: Sequence[Shard], workers: int) -> Iterator[tuple[int, list[Look | None]]]:
    if workers == 1:
        yield from ((number, render(shard)) for number, shard in enumerate(shards))
        return
    # not forked: threads of libraries that are loaded here may hold locks
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(render, shard): number for number, shard in enumerate(shards)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def render(shard: Shard) -> list[Look | None]:
    """Render one shard unless it is there, and say what its pictures look like.

    Raises:
        UserError: the disk is full.
    """
    if shard.path.exists():
        return [look_at(picture) for picture in open_shard(shard.path, shard)]
    pixels = np.stack([_pixels(drawing, shard.side) for drawing in shard.drawings])
    pixels = np.ascontiguousarray(pixels[..., 3]) if shard.flat else pixels
    with disk_trouble(f"the shard {shard.path}"):
        write_whole(shard.path, lambda path: _save(path, pixels))
    return [look_at(picture) for picture in pixels]


def _save(path: Path, pixels: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add an ending to a name
        np.save(file, pixels)


def open_shard(path: Path, shard: Shard | None = None) -> np.ndarray:
    """The pixels of a shard, mapped into memory and not to be written to.

    Args:
        path: of its file.
        shard: what it should hold, where that is known.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): run `ldm data prepare starter` again") from error
    if shard is not None:
        expected = (len(shard.drawings), shard.side, shard.side, *(() if shard.flat else (4,)))
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise UserError(f"{path} holds {pixels.shape} {pixels.dtype}, expected {expected} uint8: delete it")
    return pixels


def _pixels(drawing: Drawing, side: int) -> np.ndarray:
    """(side, side, 4) uint8, colours multiplied by alpha; nothing at all where a drawing cannot be read."""
    content = drawing.content
    if not content.startswith(b"RIFF"):
        resvg = need("resvg_py", "starter")
        try:
            content = resvg.svg_to_bytes(svg_string=content.decode(), width=side, height=side, skip_system_fonts=True)
        except ValueError:  # left out, and counted, as pictures with nothing in them are
            return np.zeros((side, side, 4), np.uint8)
    with Image.open(io.BytesIO(content)) as picture:
        multiplied = picture.convert("RGBA").convert("RGBa")
    if multiplied.size != (side, side):
        multiplied = _squared(multiplied).resize((side, side), Image.Resampling.LANCZOS)
        return _within_alpha(np.asarray(multiplied))
    return np.frombuffer(multiplied.tobytes(), np.uint8).reshape(side, side, 4)


def _squared(picture: Image.Image) -> Image.Image:
    """A picture in the middle of the smallest square around it."""
    side = max(picture.size)
    if picture.size == (side, side):
        return picture
    square = Image.new(picture.mode, (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _within_alpha(pixels: np.ndarray) -> np.ndarray:
    """A resampled picture again with no colour above its alpha."""
    return np.minimum(pixels, pixels[..., 3:])


def clear_leftovers(folder: Path, shards: Iterable[Shard]) -> None:
    """Delete files of a process that was killed, and shards of another version or size."""
    wanted = {shard.path.name for shard in shards}
    for path in folder.iterdir():
        if path.name.endswith((".npy", ".npy.tmp")) and path.name not in wanted:
            path.unlink()
