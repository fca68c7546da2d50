"""What the rows of a comparison take on this machine, each time in a process of its own.

All functions here are called in such a process, whose peak of memory is then that of the work.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

import torch

from ldm.accel import peak_memory, pick_device, pick_dtype, prepare_model
from ldm.codec import VAECodec
from ldm.compare.settings import DrawingConfig
from ldm.compare.stages import Found
from ldm.conditioner import Condition, LabelConditioner
from ldm.cost.measuring import peak_beyond
from ldm.errors import UserError
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner
from ldm.training.rehearsal import rehearse
from ldm.training.run_source import source_of
from ldm.training.settings import DiffusionRun
from ldm.training.start import start_of

SHORTEST = 0.5  # seconds that are timed at least, as a clock and a scheduler are coarse


class Timing(NamedTuple):
    """How much is timed.

    Attributes:
        steps: of training.
        batch_size, batches: of drawing.
        draw: how.
        draw_steps: steps of it that are timed; None times all.
    """

    steps: int
    batch_size: int
    batches: int
    draw: DrawingConfig
    draw_steps: int | None = None


def time_training(run: DiffusionRun, timing: Timing) -> Found:
    """A few steps of a run that leave nothing behind.

    Returns:
        ``seconds`` of a step, those of waiting for data in it (``waited``), its pictures (``samples``) and operations
        (``flops``). In MiB, the most that was held: ``memory`` (resident, or allocated on a GPU), ``beyond`` what the
        process held before, ``reserved`` on a GPU.
    """
    with peak_beyond() as beyond:
        found, _ = rehearse(run, steps=timing.steps)
        memory = {"memory": found.memory, "beyond": beyond() / 2**20, "reserved": found.reserved}
    kept = ("seconds", "waited", "samples", "flops")
    return {**{name: asdict(found)[name] for name in kept}, **memory}


def time_drawing(run: DiffusionRun, timing: Timing) -> Found:
    """Draw with the network of a run, in the dtype that drawing takes; its weights are those that it begins with.

    Returns:
        ``seconds`` and ``decoding`` (seconds within) of a picture, drawn in batches of ``batch``; memory as of
        :func:`time_training`.
    """
    device = pick_device()
    with peak_beyond() as beyond:
        pipeline = _pipeline(run, device)
        batch, steps = timing.batch_size, timing.draw_steps or timing.draw.steps
        how = {**timing.draw.model_dump(), "batch_size": batch, "steps": steps}
        conditions, seeds = [_some_condition(pipeline)] * batch, list(range(batch))
        pipeline.generate(conditions, seeds, **{**how, "steps": 1})  # the first batch of a size takes longer
        whole, decoding = [], []
        while len(whole) < timing.batches or sum(whole) * batch < SHORTEST:
            began = time.perf_counter()
            pipeline.generate(conditions, seeds, **how)
            whole.append((time.perf_counter() - began) / batch)
            decoding.append(_decoding(pipeline, batch, device))
        sampling = (median(whole) - median(decoding)) / steps * timing.draw.steps
        memory = {"memory": peak_memory(device), "beyond": beyond() / 2**20, "reserved": None}
    if device.type == "cuda":
        memory["reserved"] = torch.cuda.max_memory_reserved(device) / 2**20
    return {"seconds": sampling + median(decoding), "decoding": median(decoding), "batch": batch, **memory}


def _pipeline(run: DiffusionRun, device: torch.device) -> Pipeline:
    source = source_of(run)
    model = start_of(run, source).model
    assert source.sizes is not None
    height, width = source.sizes[0].tolist()
    side = run.frame.sides[0] if run.frame is not None else None
    model.size = (side or height, side or width)
    dtype = pick_dtype(None, device)
    return Pipeline(prepare_model(model, device, dtype), device, dtype)


def _some_condition(pipeline: Pipeline) -> Condition:
    conditioner = pipeline.model.conditioner
    if isinstance(conditioner, LabelConditioner):
        return 0
    return "a picture" if isinstance(conditioner, TextConditioner) else None


@torch.inference_mode()
def _decoding(pipeline: Pipeline, batch: int, device: torch.device) -> float:
    """Seconds in which the latents of a picture are decoded, on the device and back on the CPU."""
    model = pipeline.model
    if not isinstance(model.codec, VAECodec):
        return 0.0
    height, width = (side // model.codec.factor for side in model.size)
    latents = torch.randn(batch, model.codec.channels, height, width, device=device)
    began = time.perf_counter()
    model.codec.decode(latents).cpu()
    return (time.perf_counter() - began) / batch


def build_cache(run: DiffusionRun) -> Found:
    """Make the cache of a run; how many pictures a second that took is in what is returned."""
    from ldm.training.caching import open_cache

    source = source_of(run)
    cache = open_cache(run, source, start_of(run, source), pick_device())
    if cache is None:
        raise UserError("the run has no cache")
    made: Any = cache.made
    return {"pictures": made.pictures, "seconds": made.seconds, "bytes": cache.bytes}
