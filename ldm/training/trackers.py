"""Where the log goes beside ``log.jsonl``: TensorBoard, Weights & Biases, Trackio, through Accelerate.

TensorBoard's files are below ``RUN/tensorboard``. The other two call a run by a name that must be the same when it is
resumed, which is kept in ``RUN/tracker_id``. What they are told of the configuration has no path of the machine.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ldm.errors import UserError, need
from ldm.publishing import disk_trouble, write_whole

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed; Accelerate would leave them out without a word.

    Raises:
        UserError: with the command that installs one.
    """
    for name in names:
        need(_MODULES[name], name)


def logging_folder(run: Path) -> Path:
    """Where trackers that write files write them."""
    return run / "tensorboard"


def begin_trackers(accelerator: Accelerator, run: Path, step: int, config: dict[str, Any]) -> None:
    """Start the trackers that ``accelerator`` was made with: called in the main process once ``run`` is there.

    Args:
        accelerator: its ``logging_dir`` is :func:`logging_folder`.
        run: the run's folder.
        step: steps done; what TensorBoard has of later ones is done again.
        config: to be shown beside the curves.

    Raises:
        UserError: a tracker refuses, as when nobody is logged in.
    """
    names = [str(name) for name in accelerator.log_with]
    settings: dict[str, Any] = {"tensorboard": {"purge_step": step + 1}}
    if {"wandb", "trackio"} & {*names}:
        label = f"{run.resolve().name}-{_identity(run)}"
        flat = _flat(config)
        settings["wandb"] = {"id": label, "name": label, "resume": "allow", "dir": str(run), "config": flat}
        settings["trackio"] = {"name": label, "resume": "allow", "config": flat}
    try:
        with disk_trouble(str(logging_folder(run)), "; the last checkpoint is intact"):
            accelerator.init_trackers("ldm", init_kwargs=settings)
    except UserError:
        raise
    except Exception as error:  # each has errors of its own, and all of them are the user's to mend
        raise UserError(f"train.trackers {', '.join(names)}: {type(error).__name__}: {error}") from error


def _identity(run: Path) -> str:
    path = run / "tracker_id"
    if not path.is_file():
        write_whole(path, lambda file: file.write_text(uuid.uuid4().hex[:8], encoding="utf-8"))
    return path.read_text(encoding="utf-8")


def _flat(tree: Any, at: str = "") -> dict[str, Any]:
    """Values by dotted key; lists as text."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{at}.{key}" if at else key).items()}
    return {at: tree if isinstance(tree, bool | int | float | str | None) else str(tree)}
