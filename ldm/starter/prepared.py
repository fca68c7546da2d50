"""The folder that ``ldm data prepare starter`` writes: pixels, names, and what is held out.

contents.json    subjects, pictures and styles; a hash of all
pictures/*.npy   pixels, mapped into memory as they are
held_out.json    what is never trained on
ATTRIBUTION.md   whom to name
card.md, *.png   what is in it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.starter.rendering import open_shard
from ldm.starter.subjects import Subject

CONTENTS, PICTURES = "contents.json", "pictures"
_FORMAT = 1
_REMEDY = "`ldm data prepare starter --out FOLDER` makes it"


@dataclass(frozen=True)
class Picture:
    """One rendered picture.

    Attributes:
        style: its style's name.
        slug: its name in its set.
        subject: what it shows, as an index.
        shard, row: where its pixels are.
        box, mean, hue: as in ``Look``.
    """

    style: str
    slug: str
    subject: int
    shard: int
    row: int
    box: tuple[int, int, int, int]
    mean: tuple[int, int, int]
    hue: tuple[int, int, int] | None


class Prepared:
    """The folder, open for reading. Pixels are mapped, not read: processes share them.

    Args:
        folder: as ``write_contents`` left it.

    Attributes:
        side: of every picture, in pixels.
        subjects, pictures: all of them.
        fingerprint: changes when anything in the folder does.

    Raises:
        UserError: there is no such folder, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        held = _read(folder / CONTENTS)
        self.side: int = held["side"]
        self.fingerprint: str = held["fingerprint"]
        self._shards: list[str] = held["shards"]
        self.subjects = tuple(Subject.from_row(row) for row in held["subjects"])
        self.pictures = tuple(_picture(row) for row in held["pictures"])
        self._maps: dict[int, np.ndarray] = {}
        missing = [name for name in self._shards if not (folder / PICTURES / name).is_file()]
        if missing:
            raise UserError(f"{folder / PICTURES / missing[0]} is missing: {_REMEDY} again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps for itself

    def pixels(self, picture: Picture) -> np.ndarray:
        """(side, side, 4) uint8 with colours multiplied by alpha; for glyphs (side, side), alpha alone."""
        shard = self._maps.get(picture.shard)
        if shard is None:
            shard = self._maps[picture.shard] = open_shard(self.folder / PICTURES / self._shards[picture.shard])
        return shard[picture.row]


def write_contents(
    folder: Path, side: int, shards: Sequence[str], subjects: Sequence[Subject], pictures: Sequence[Picture]
) -> None:
    """Write what ``Prepared`` reads; the shards must be in their places."""
    held = {
        "format": _FORMAT,
        "side": side,
        "shards": list(shards),
        "subjects": [subject.as_row() for subject in subjects],
        "pictures": [list(vars(picture).values()) for picture in pictures],
    }
    text = json.dumps(held, ensure_ascii=False, separators=(",", ":"))
    held["fingerprint"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    text = json.dumps(held, ensure_ascii=False, separators=(",", ":"))
    with disk_trouble(f"{folder / CONTENTS}"):
        write_whole(folder / CONTENTS, lambda path: path.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no prepared folder, it has no {path.name}: {_REMEDY}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_REMEDY} again") from error
    if not isinstance(held, dict) or held.get("format") != _FORMAT:
        raise UserError(f"{path} is not of the version that this ldm reads: {_REMEDY} again")
    return held


def _picture(row: list[Any]) -> Picture:
    style, slug, subject, shard, place, box, mean, hue = row
    return Picture(style, slug, subject, shard, place, tuple(box), tuple(mean), None if hue is None else tuple(hue))
