"""Checkpoints: complete, published by renaming, and the old one deleted only afterwards.

RUN/checkpoints/step_00001000/
    model_index.json, unet/, ...   the model with averaged weights, ready to draw with
    training/NAME.safetensors      the weights that are trained on
    training/state.pt              optimisers, gradient scaler
    training/state.json            step, number of averaged steps
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.publishing import DOOMED, UNFINISHED, disk_trouble, replacing
from ldm.weights.files import read_json, read_tensors, write_json, write_tensors


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
    with disk_trouble(f"the checkpoint {final}", "; the last one is intact"):
        with replacing(final) as folder:
            write(folder)
        for old in sorted(final.parent.glob("step_*"))[:-keep]:
            doomed = old.with_name(DOOMED + old.name)
            os.replace(old, doomed)
            shutil.rmtree(doomed)
    return final


def sweep(run: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for name in (UNFINISHED, DOOMED):
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
