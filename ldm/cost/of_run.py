"""A run configuration as steps on paper.

How large its pictures are is what ``frame`` says, of several sides the largest, or ``data.size``, or else the size that
its network is meant for: no picture is opened, and no weight is read but where a finished model is asked for its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ldm.cost.architecture import Architecture, of_model, of_run
from ldm.cost.diffusion_step import DiffusionStep
from ldm.cost.other_steps import ClipStep, GanStep, VAEStep
from ldm.cost.step import Step
from ldm.data.idx_pictures import IdxConfig
from ldm.data.sources import MixConfig, SplitConfig
from ldm.errors import UserError
from ldm.training.clip_settings import ClipRun
from ldm.training.kinds import Run
from ldm.training.lcm_settings import LEARNED, TOLD, LcmRun
from ldm.training.settings import DiffusionRun, ModelRun, RunSettings, VAERun
from ldm.training.start import FROZEN
from ldm.training.tune_settings import InversionTune, LoraTune

HALF = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def steps_of(run: Run) -> list[tuple[int, Step]]:
    """The kinds of steps of a run: how many there are of each, and their passes.

    Raises:
        UserError: a model that the run begins with is not to be had.
    """
    steps = run.train.steps
    if isinstance(run, DiffusionRun):
        return [(steps, _diffusion(run, of_run(run)))]
    if isinstance(run, LcmRun):
        return [(steps, _distillation(run))]
    half = HALF[run.train.mixed_precision]
    if isinstance(run, VAERun):
        side = _side(run, run.vae.sample_size)
        start = run.loss.adversarial_start if run.loss.adversarial > 0 else steps
        counts = ((min(start, steps), False), (max(0, steps - start), True))
        return [(count, VAEStep(run, side, half, adversarial)) for count, adversarial in counts if count]
    if isinstance(run, ClipRun):
        side = _side(run, None)
        if side % run.image.patch_size:
            raise UserError(f"pictures of {side} x {side} must be a multiple of image.patch_size")
        channels = 1 if all(_is_grey(data) for data in _sources(run.data)) else 3
        return [(steps, ClipStep(run, side, channels, half))]
    return [(steps, GanStep(run, half))]


def _shared(run: ModelRun, shape: Architecture) -> dict[str, Any]:
    """What the steps of diffusion and of distillation have in common."""
    return {
        "shape": shape,
        "batch": run.train.batch_size,
        "side": _fitting(_side(run, shape.side), shape),
        "half": HALF[run.train.mixed_precision],
        "frozen": FROZEN[run.frozen_dtype],
        "checkpointing": run.train.gradient_checkpointing,
        "encodes": run.cache is None,
    }


def _diffusion(run: DiffusionRun, shape: Architecture) -> DiffusionStep:
    tune = run.tune
    trains_text = isinstance(tune, InversionTune) or tune.text_encoder
    return DiffusionStep(
        **_shared(run, shape),
        reads=_reads(run) or trains_text,
        tune=tune,
    )


def _distillation(run: LcmRun) -> DiffusionStep:
    shape = of_model(run.teacher, run.loading)
    usual = LEARNED if isinstance(run.tune, LoraTune) else TOLD
    guidance = 1.0 if not (shape.towers or shape.labels) else usual if run.guidance is None else run.guidance
    return DiffusionStep(
        **_shared(run, shape),
        reads=_reads(run),
        tune=run.tune,
        waves=run.guidance_waves if isinstance(guidance, tuple) else None,
        asked=1 if guidance == 1 else 2,
    )


def _reads(run: ModelRun) -> bool:
    return run.cache is None or not run.cache.texts


def _side(run: RunSettings, usual: int | None) -> int:
    """Height and width of a training picture."""
    if run.frame is not None:
        return max(run.frame.sides)
    side = max((data.size for data in _sources(run.data) if hasattr(data, "size")), default=usual)
    if side is None:
        raise UserError("how large the pictures are is not in the configuration: frame.resolution says it")
    return side


def _sources(data: Any) -> Iterator[Any]:
    """The settings of the sources themselves, of which others are parts or mixtures."""
    if isinstance(data, SplitConfig):
        yield from _sources(data.of)
    elif isinstance(data, MixConfig):
        for each in data.sources:
            yield from _sources(each.data)
    else:
        yield data


def _is_grey(data: Any) -> bool:
    return isinstance(data, IdxConfig) or getattr(data, "colours", None) == "grey"


def _fitting(side: int, shape: Architecture) -> int:
    if side % shape.factor:
        raise UserError(f"pictures of {side} x {side} pixels are no multiple of {shape.factor}, the VAE's factor")
    return side
