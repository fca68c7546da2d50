"""Checkpoints: complete, published by renaming, and the old one deleted only afterwards.

RUN/checkpoints/step_00001000/
    model_index.json, unet/, ...   the model with averaged weights, ready to draw with
    training/NAME.safetensors      the weights that are trained on
    training/state.pt              optimisers, gradient scaler
    training/state.json            step, number of averaged steps
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ldm.errors import UserError
from ldm.weights.files import fsync_tree, read_json, read_tensors, write_json, write_tensors

_UNFINISHED, _DOOMED = "writing_", "deleting_"  # a folder named step_* is always whole


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps is published."""
    return run / "checkpoints" / f"step_{step:08d}"


def publish(run: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write a checkpoint beside the others, then rename it into place, then delete the oldest.

    Args:
        run: the run's folder.
        step: steps done.
        write: writes everything into the folder it is given.
        keep: how many of the newest stay.

    Raises:
        UserError: the disk is full or refuses; nothing half written stays, and the last checkpoint is whole.
    """
    final = checkpoint_folder(run, step)
    temporary = final.with_name(_UNFINISHED + final.name)
    with disk_trouble(f"the checkpoint {final}", "; the last one is intact"):
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            fsync_tree(temporary)
            os.replace(temporary, final)
            _fsync_folder(final.parent)  # the new name is on the disk before an old one goes
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in sorted(final.parent.glob("step_*"))[:-keep]:
            doomed = old.with_name(_DOOMED + old.name)
            os.replace(old, doomed)
            shutil.rmtree(doomed)
    return final


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_trouble(what: str, consequence: str = "") -> Iterator[None]:
    """Turn a full or failing disk into a message that names ``what`` was being written.

    Raises:
        UserError: in place of the system's error, which torch and safetensors wrap in types of their own.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, SafetensorError) and "I/O" not in text:
            raise
        if isinstance(error, RuntimeError):  # torch.save's stream has lost the system's reason
            if "inline_container" not in text and "PytorchStreamWriter" not in text:
                raise
            text = "no more could be written to its file, as when a disk or quota is full"
        raise UserError(f"{what} cannot be written: {text}{consequence}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and rename it; when ``write`` fails, nothing is left."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(run: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for name in (_UNFINISHED, _DOOMED):
        for left in (run / "checkpoints").glob(name + "*"):
            shutil.rmtree(left)


def write_state(
    folder: Path, weights: dict[str, dict[str, Any]], state: dict[str, Any], numbers: dict[str, int]
) -> None:
    """Write ``training/``: tensors by player, the optimisers' state, and plain numbers."""
    training = folder / "training"
    training.mkdir()
    for name, tensors in weights.items():
        write_tensors(training / f"{name}.safetensors", tensors)
    torch.save(state, training / "state.pt")
    write_json(training / "state.json", numbers)


def read_state(folder: Path, players: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Read what :func:`write_state` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    training = folder / "training"
    weights = {name: read_tensors(training / f"{name}.safetensors") for name in players}
    path = training / "state.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error
    numbers = read_json(training / "state.json")
    if not {"step", "processes"} <= numbers.keys():
        raise UserError(f"{training / 'state.json'} is damaged: it should say `step` and `processes`")
    return weights, state, numbers
