"""A training run from its configuration: folders, provenance, resuming, and the loop."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

import ldm
from ldm.accel import tune_allocator
from ldm.config import dump_config, load_config, parse_yaml
from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.training.checkpoint import newest_good, set_aside, sweep
from ldm.training.clip_settings import ClipRun
from ldm.training.journal import Journal
from ldm.training.parallel import Team, meeting_place
from ldm.training.settings import DiffusionRun, RunSettings, VAERun
from ldm.training.signals import Stopped
from ldm.training.trackers import begin_trackers, check_trackers, logging_folder
from ldm.training.trainer import Trainer, seed_weights
from ldm.weights.embedded import is_embedded
from ldm.weights.hub import looks_like_name
from ldm.weights.model import latest_checkpoint

_CONFIG = "config.yaml"
# What may change between a run and its resumption without changing what is learned at a step.
# The number of steps is one of them where the learning rate does not depend on it; of the two sizes their product,
# times the number of processes, must stay, which is checked against the checkpoint.
_FREE = (
    "batch_size",
    "gradient_accumulation",
    "workers",
    "prefetch",
    "ema_device",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
    "compile",
)
_FREE_PARTS = (  # what the names of others begin with
    "sample.",
    "output",
    "memorised",
    "data.skip_bad",
    "validation.every",
    "validation.prompts",
    "validation.pictures",
)


class Resume(Enum):
    """What to do about a run that is there already."""

    NO = "no"
    YES = "yes"
    IF_ANY = "if any"


def train(run: RunSettings, *, resume: bool | Resume = False) -> Path:
    """Train, and return the last checkpoint.

    Args:
        run: from :func:`ldm.config.load_config`.
        resume: continue the run in ``run.output`` from its newest checkpoint that is whole; ``Resume.IF_ANY`` starts
            one where there is none.

    Raises:
        UserError: the run exists and ``resume`` is false, or the other way round; or anything on the way.
        Stopped: a signal asked to stop, and what there was is saved (see ``ldm.training.signals``).
    """
    how = resume if isinstance(resume, Resume) else Resume.YES if resume else Resume.NO
    with processes(run) as (accelerator, team):
        resumes = _check_folder(run, how)
        seed_weights(run.seed)
        task = build_task(run, accelerator.device)
        trainer = Trainer(run, task, accelerator, team, provenance(run))
        faults = _go_on(run, trainer, team) if resumes else {}
        # Every process has read by now, so the main one may write; a mistake found so far has left no trace.
        with team.together():
            journal = _open_run(run, trainer, faults) if team.is_main else None
        if journal is not None and resumes:
            print(f"continuing {run.output} at step {trainer.step}")
        try:
            trainer.fit(journal)
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
    if trainer.stopped is not None:
        if journal is not None:
            told = f"stopped by {trainer.stopped} after step {trainer.step}, which is saved; --resume goes on"
            print(told, file=sys.stderr)
        raise Stopped(trainer.stopped)
    last = latest_checkpoint(run.output)
    assert last is not None
    return last


@contextlib.contextmanager
def processes(run: RunSettings) -> Iterator[tuple[Accelerator, Team]]:
    """Accelerate, set up as a run wants it, and the processes that there are."""
    settings = run.train
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.mixed_precision fp16 needs a CUDA device; a CPU computes in bf16 or no")
    check_trackers(settings.trackers)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError(
            "Accelerate's configuration should say MULTI_GPU and not FSDP: train.parallel=fsdp does the rest"
        )
    # Accelerate keeps its settings for the life of the process, and refuses a second run that has others.
    AcceleratorState._reset_state()
    # Told nothing, it takes each of several processes without a GPU for a run of its own.
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=not torch.accelerator.is_available(),
        log_with=[*settings.trackers] or None,
        project_config=ProjectConfiguration(logging_dir=str(logging_folder(run.output))),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    _check_processes(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        tune_allocator()
    with meeting_place(settings.parallel == "fsdp"):
        team = Team(accelerator.process_index, accelerator.num_processes)
        yield accelerator, team
        team.part()


def _go_on(run: RunSettings, trainer: Trainer, team: Team) -> dict[Path, str]:
    """Resume from the newest checkpoint that is whole, if there is any; what is wrong with newer ones."""
    with team.together():
        found = newest_good(run.output) if team.is_main else (None, {})
    start, faults = team.tell(found)
    if start is not None:
        with team.together():
            trainer.resume(start)
    return faults


def _open_run(run: RunSettings, trainer: Trainer, faults: dict[Path, str]) -> Journal:
    """Make the run's folder, keep the configuration in it, and open its log: in the main process."""
    accelerator = trainer.accelerator
    with disk_trouble(str(run.output)):
        run.output.mkdir(parents=True, exist_ok=True)
        sweep(run.output)
        asides = {set_aside(folder): fault for folder, fault in faults.items()}
        write_whole(run.output / _CONFIG, lambda path: path.write_text(dump_config(run), encoding="utf-8"))
    if run.train.trackers:
        begin_trackers(accelerator, run.output, trainer.step, trainer.provenance["config"])
    journal = Journal(run.output, trainer.step, accelerator.log if run.train.trackers else None)
    for aside, fault in asides.items():
        print(f"{fault}; going on from step {trainer.step}, and {aside} is out of the way", file=sys.stderr)
        journal.write({"step": trainer.step, "event": "damaged", "message": fault})
    return journal


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
    from ldm.training.gan_settings import GanRun
    from ldm.training.gan_task import GanTask
    from ldm.training.lcm_settings import LcmRun
    from ldm.training.lcm_task import LcmTask
    from ldm.training.vae_task import VAETask

    if isinstance(run, DiffusionRun):
        return DiffusionTask(run, device)
    if isinstance(run, LcmRun):
        return LcmTask(run, device)
    if isinstance(run, VAERun):
        return VAETask(run, device)
    if isinstance(run, GanRun):
        return GanTask(run, device)
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
    return {key: _without_paths(value) for key, value in tree.items() if not _is_place(key, value)}


def _is_place(key: str, value: Any) -> bool:
    """Whether a setting says where something lies; the name of a model tells nothing of a disk."""
    if key in ("model", "teacher"):
        return not (looks_like_name(value or "") or is_embedded(value or ""))
    return key in ("output", "loading", "prior") or key.endswith("path")


def _check_folder(run: RunSettings, resume: Resume) -> bool:
    """Whether there is a run to resume; refuse to start where there is one, or to resume where there is none."""
    folder, stored = run.output, run.output / _CONFIG
    there = stored.exists() or (folder / "checkpoints").exists()
    if resume is Resume.NO and there:
        raise UserError(f"{folder} already holds a run: --resume continues it; or choose another `output`")
    if resume is Resume.NO or (resume is Resume.IF_ANY and not there):
        return False
    if not stored.is_file():
        raise UserError(f"{folder} holds no run to resume ({_CONFIG} is missing); leave out --resume to start one")
    _check_same(run, parse_yaml(stored.read_text(encoding="utf-8"), str(stored)), stored)
    return True


def _check_same(run: RunSettings, stored: Any, path: Path) -> None:
    free = (*_FREE, "steps") if run.train.lr_schedule == "constant" else _FREE
    changed = _differences(run.model_dump(mode="json"), stored, "")
    changed = [c for c in changed if c[0].removeprefix("train.") not in free and not c[0].startswith(_FREE_PARTS)]
    if changed:
        lines = "\n".join(f"  {key}: was {old!r}, now {new!r}" for key, new, old in changed)
        raise UserError(f"{path} is of another run, so it cannot be resumed with this configuration:\n{lines}")


def _differences(new: Any, old: Any, at: str) -> list[tuple[str, Any, Any]]:
    if isinstance(new, dict) and isinstance(old, dict):
        keys = dict.fromkeys([*new, *old])
        return [d for k in keys for d in _differences(new.get(k), old.get(k), f"{at}.{k}" if at else str(k))]
    return [] if new == old else [(at, new, old)]


def train_file(config: Path, overrides: list[str], *, resume: bool | Resume = False) -> Path:
    """``ldm train``: read the configuration, train, return the last checkpoint."""
    return train(load_config(config, overrides), resume=resume)
