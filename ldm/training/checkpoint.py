"""Checkpoints: complete, published by renaming, and the old one deleted only afterwards.

RUN/checkpoints/step_00001000/
    model_index.json, unet/, ...   the model with averaged weights, ready to draw with
    training/                      what training goes on from: ``ldm.training.state``
    training/manifest.json         every file with its size and checksum: ``ldm.training.manifest``
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import UserError
from ldm.publishing import DOOMED, UNFINISHED, disk_trouble, replacing
from ldm.training.manifest import damage, write_manifest

DAMAGED = "damaged_"  # what the names of checkpoints begin with that were found to be so


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is published."""
    return run / "checkpoints" / f"step_{step:08d}"


def unfinished_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is written."""
    final = checkpoint_folder(run, step)
    return final.with_name(UNFINISHED + final.name)


@contextmanager
def publishing(run: Path, step: int, keep: int) -> Iterator[Path]:
    """A folder to write a checkpoint into, which is renamed into its place; then the oldest are deleted.

    Args:
        run: the run's folder.
        step: steps done.
        keep: how many of the newest stay.

    Raises:
        UserError: the disk is full or refuses; nothing half written stays, and the last checkpoint is whole.
    """
    final = checkpoint_folder(run, step)
    with disk_trouble(f"the checkpoint {final}", "; the last one is intact"):
        with replacing(final) as folder:
            yield folder
            write_manifest(folder)
        for old in sorted(final.parent.glob("step_*"))[:-keep]:
            doomed = old.with_name(DOOMED + old.name)
            os.replace(old, doomed)
            shutil.rmtree(doomed)


def newest_good(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is whole, and what is wrong with those that are newer.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    faults: dict[Path, str] = {}
    for folder in _newest_first(run):
        fault = damage(folder)
        if fault is None:
            return folder, faults
        faults[folder] = fault
    if faults:
        told = "\n".join(f"  {fault}" for fault in faults.values())
        raise UserError(f"no checkpoint of {run} can be resumed:\n{told}")
    return None, faults


def _newest_first(run: Path) -> Iterator[Path]:
    return iter(sorted((run / "checkpoints").glob("step_*"), reverse=True))


def set_aside(folder: Path) -> Path:
    """Give a damaged checkpoint a name under which nothing draws or resumes from it."""
    aside = folder.with_name(DAMAGED + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    return aside


def sweep(run: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for name in (UNFINISHED, DOOMED):
        for left in (run / "checkpoints").glob(name + "*"):
            shutil.rmtree(left)
