"""A training run from its configuration: folders, provenance, resuming, and the loop."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.config import dump_config, load_config, parse_yaml
from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.training.settings import ClipRun, DiffusionRun, RunSettings, VAERun
from ldm.weights.model import latest_checkpoint

_CONFIG = "config.yaml"
# What may change between a run and its resumption without changing what is learned at a step.
# The number of steps is one of them where the learning rate does not depend on it.
_FREE = (
    "workers",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "compile",
)


def train(run: RunSettings, *, resume: bool = False) -> Path:
    """Train, and return the last checkpoint.

    Args:
        run: from :func:`ldm.config.load_config`.
        resume: continue the run in ``run.output`` from its newest checkpoint.

    Raises:
        UserError: the run exists and ``resume`` is false, or the other way round; or anything on the way.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from ldm.training.journal import Journal
    from ldm.training.trainer import Trainer, seed_weights

    wants_fp16 = run.train.mixed_precision == "fp16"
    if wants_fp16 and not torch.cuda.is_available():
        raise UserError("train.mixed_precision fp16 needs a CUDA device; a CPU computes in bf16 or no")
    # Accelerate keeps its settings for the life of the process, and refuses a second run that has others.
    AcceleratorState._reset_state()
    # Told nothing, it takes each of several processes without a GPU for a run of its own.
    accelerator = Accelerator(mixed_precision=run.train.mixed_precision, cpu=not torch.accelerator.is_available())
    _check_processes(accelerator.num_processes)
    _check_folder(run, resume)
    seed_weights(run.seed)
    task = build_task(run, accelerator.device)
    trainer = Trainer(run, task, accelerator, provenance(run))
    start = latest_checkpoint(run.output) if resume else None
    if start is not None:
        trainer.resume(start)
    # Every process has read by now, so the main one may write; a mistake found so far has left no trace.
    accelerator.wait_for_everyone()
    with contextlib.ExitStack() as stack:
        journal = None
        if accelerator.is_main_process:
            _open_folder(run)
            journal = stack.enter_context(contextlib.closing(Journal(run.output, trainer.step, run.train.tensorboard)))
            if resume:
                print(f"continuing {run.output} at step {trainer.step}")
        trainer.fit(journal)
    accelerator.end_training()
    last = latest_checkpoint(run.output)
    assert last is not None
    return last


def _check_processes(found: int) -> None:
    """Refuse to train alone where several processes were asked for.

    Without GPUs and mpirun, ``accelerate launch --num_processes 2`` starts one process; that it was to be more shows
    in the address of their meeting point alone.
    """
    if found == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys():
        raise UserError(
            "accelerate launch was asked for several processes but starts one where it uses no GPU and no mpirun; "
            "`torchrun --standalone --nproc-per-node 2 -m ldm train CONFIG` starts two"
        )


def build_task(run: RunSettings, device: torch.device) -> Any:
    """The task that a run's settings describe."""
    from ldm.training.clip_task import ClipTask
    from ldm.training.diffusion_task import DiffusionTask
    from ldm.training.vae_task import VAETask

    if isinstance(run, DiffusionRun):
        return DiffusionTask(run, device)
    if isinstance(run, VAERun):
        return VAETask(run, device)
    assert isinstance(run, ClipRun)
    return ClipTask(run, device)


def provenance(run: RunSettings) -> dict[str, Any]:
    """What ``ldm info`` tells of a trained model's origin."""
    return {
        "ldm": ldm.__version__,
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        # Without folders: a model that is passed on should not tell how its maker's disk is laid out.
        "config": _without_paths(run.model_dump(mode="json")),
    }


def _without_paths(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {k: _without_paths(v) for k, v in tree.items() if k != "output" and not k.endswith("path")}


def _check_folder(run: RunSettings, resume: bool) -> None:
    """Refuse to start where there is a run, or to resume where there is none or another."""
    folder, stored = run.output, run.output / _CONFIG
    if resume:
        if not stored.is_file():
            raise UserError(f"{folder} holds no run to resume ({_CONFIG} is missing); leave out --resume to start one")
        _check_same(run, parse_yaml(stored.read_text(encoding="utf-8"), str(stored)), stored)
    elif stored.exists() or (folder / "checkpoints").exists():
        raise UserError(f"{folder} already holds a run: --resume continues it; or choose another `output`")


def _open_folder(run: RunSettings) -> None:
    """Make the run's folder and keep the configuration in it; clear away what a killed run left unfinished."""
    from ldm.training.checkpoint import sweep

    with disk_trouble(str(run.output)):
        run.output.mkdir(parents=True, exist_ok=True)
        sweep(run.output)
        write_whole(run.output / _CONFIG, lambda path: path.write_text(dump_config(run), encoding="utf-8"))


def _check_same(run: RunSettings, stored: Any, path: Path) -> None:
    free = (*_FREE, "steps") if run.train.lr_schedule == "constant" else _FREE
    changed = _differences(run.model_dump(mode="json"), stored, "")
    changed = [
        c for c in changed if c[0].removeprefix("train.") not in free and not c[0].startswith(("sample.", "output"))
    ]
    if changed:
        lines = "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, new, old in changed)
        raise UserError(f"{path} is of another run, so it cannot be resumed with this configuration:\n{lines}")


def _differences(new: Any, old: Any, at: str) -> list[tuple[str, Any, Any]]:
    if isinstance(new, dict) and isinstance(old, dict):
        keys = dict.fromkeys([*new, *old])
        return [d for k in keys for d in _differences(new.get(k), old.get(k), f"{at}.{k}" if at else str(k))]
    return [] if new == old else [(at, new, old)]


def train_file(config: Path, overrides: list[str], *, resume: bool = False) -> Path:
    """``ldm train``: read the configuration, train, return the last checkpoint."""
    return train(load_config(config, overrides), resume=resume)
