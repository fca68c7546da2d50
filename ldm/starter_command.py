"""``ldm data prepare starter``: the pictures of the starter model, fetched, rendered and described."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import choose
from ldm.starter.card import write_papers
from ldm.starter.packages import PACKAGES
from ldm.starter.prepared import Prepared
from ldm.starter.preparing import Found, prepare

DATA_SETS = ("starter",)


def prepare_data(name: str, out: Path, downloads: Path | None, side: int, avatars: int, workers: int | None) -> None:
    """Prepare a data set that is known by name, and say what is in it.

    Args:
        name: one of ``DATA_SETS``.
        out: the folder to write; what is there of an earlier call is kept where it is right.
        downloads: where the packages are or come to be; default: ``downloads`` in ``out``.
        side: of the rendered pictures, in pixels.
        avatars: of each style of avatars.
        workers: processes that render; default: one for each processor.

    Raises:
        UserError: the name is unknown, a package cannot be had or is damaged, the disk is full.
    """
    choose(name, DATA_SETS, "data set")
    found = prepare(out, downloads or out / "downloads", side, workers, avatars)
    write_papers(out, PACKAGES, found)
    print(in_words(out, found))


def in_words(out: Path, found: Found) -> str:
    """What is in a prepared folder."""
    prepared = Prepared(out)
    size = sum(path.stat().st_size for path in (out / "pictures").iterdir())
    subjects = len({picture.subject for picture in prepared.pictures})
    sets = ", ".join(f"{name} {count:,}" for name, count in found.pictures.items())
    lines = [
        f"{out}: {len(prepared.pictures):,} pictures of {subjects:,} subjects, {prepared.side} x {prepared.side}, "
        f"{size / 1e9:.1f} GB",
        f"  {sets}",
    ]
    if found.blank:
        lines.append(f"  left out, as they cannot be rendered: {', '.join(found.blank[:10])}")
    return "\n".join([*lines, f"  look at {out / 'card.md'}; train with data: {{source: starter, path: {out}}}"])
