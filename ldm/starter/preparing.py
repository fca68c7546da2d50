"""From tarballs to the prepared folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.errors import UserError, need
from ldm.publishing import disk_trouble
from ldm.starter.emoji import EmojiNames
from ldm.starter.icon_sets import Drawing, emoji_drawings, glyph_drawings
from ldm.starter.packages import PACKAGES, Package, fetch
from ldm.starter.prepared import PICTURES, Picture, write_contents
from ldm.starter.rendering import Shard, clear_leftovers, render_all, shards_of
from ldm.starter.styles import STYLES
from ldm.starter.subjects import Subject, emoji_subject, glyph_subject

_NAMES = "emojibase"


@dataclass
class Found:
    """What preparing found, to be told.

    Attributes:
        pictures: of each style, how many are in the folder.
        unmatched: of each style, names that fit no emoji.
        blank: pictures that cannot be rendered, or show nothing, as ``style/slug``.
    """

    pictures: dict[str, int] = field(default_factory=dict)
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)


def prepare(
    out: Path,
    downloads: Path,
    side: int = 256,
    workers: int | None = None,
    avatars: int = 400,
    packages: dict[str, Package] = PACKAGES,
) -> Found:
    """Fetch, verify, match and render all pictures into a folder; goes on where it was stopped.

    Args:
        out: the folder.
        downloads: where the tarballs are, or come to be.
        side: of the pictures, in pixels.
        workers: processes that render; default: one for each processor.
        avatars: of each of their styles; 0: none, and DiceBear is not needed.
        packages: the names' package and some styles'.

    Raises:
        UserError: a package cannot be had or is damaged, resvg-py is missing, the disk is full.
    """
    need("resvg_py", "starter")
    with disk_trouble(f"the folder {out}"):
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        tarballs = fetch(downloads, list(packages.values()))
    found = Found()
    drawings, shown = _matched(packages, tarballs, found)
    if avatars:
        from ldm.starter.avatars import avatar_drawings

        of_avatars, told = avatar_drawings(avatars)
        drawings |= of_avatars
        shown |= told
    shards = [
        shard
        for style, of_style in drawings.items()
        for shard in shards_of(of_style, side, STYLES[style].kind == "glyph", out / PICTURES)
    ]
    clear_leftovers(out / PICTURES, shards)
    subjects = list(dict.fromkeys(shown.values()))
    pictures = _rendered(shards, shown, subjects, workers or os.cpu_count() or 1, found)
    write_contents(out, side, [shard.path.name for shard in shards], subjects, pictures)
    return found


def _matched(
    packages: dict[str, Package], tarballs: dict[str, Path], found: Found
) -> tuple[dict[str, list[Drawing]], dict[str, Subject]]:
    """The drawings of each style, and what each shows by its key."""
    names = EmojiNames(tarballs[packages[_NAMES].name])
    emoji = {code: emoji_subject(each) for code, each in names.by_code.items()}
    koreans = {subject.noun: subject.korean for subject in emoji.values()}
    drawings, shown = {}, {}
    for style, package in packages.items():
        if style == _NAMES:
            continue
        tarball = tarballs[package.name]
        if STYLES[style].kind == "glyph":
            drawings[style] = glyph_drawings(style, tarball)
        else:
            drawings[style], found.unmatched[style] = emoji_drawings(style, tarball, names)
        for drawing in drawings[style]:
            code = drawing.emoji.code if drawing.emoji else ""
            shown[drawing.key] = emoji[code] if code else glyph_subject(drawing.slug, koreans)
    return drawings, shown


def _rendered(
    shards: Sequence[Shard], shown: dict[str, Subject], subjects: Sequence[Subject], workers: int, found: Found
) -> list[Picture]:
    numbers = {subject.name: number for number, subject in enumerate(subjects)}
    pictures = []
    for number, (shard, looks) in enumerate(zip(shards, render_all(shards, workers), strict=True)):
        for row, (drawing, look) in enumerate(zip(shard.drawings, looks, strict=True)):
            if look is None:
                found.blank.append(drawing.key)
                continue
            subject = numbers[shown[drawing.key].name]
            pictures.append(Picture(drawing.style, drawing.slug, subject, number, row, *look))
            found.pictures[drawing.style] = found.pictures.get(drawing.style, 0) + 1
    if not pictures:
        raise UserError("not one picture of the packages could be rendered")
    return pictures
