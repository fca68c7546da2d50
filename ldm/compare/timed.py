"""What the rows of a comparison take on this machine.

All functions here are called in a process of their own, whose peak of memory is then that of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from ldm.accel import peak_memory, pick_device, pick_dtype, prepare_model
from ldm.codec import VAECodec
from ldm.compare.counted import asks_of
from ldm.compare.settings import DrawingConfig
from ldm.compare.stages import Found
from ldm.conditioner import Condition, LabelConditioner
from ldm.cost.measuring import peak_beyond
from ldm.cost.peak import measured_peak
from ldm.diffusion.settings import ProcessConfig
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner
from ldm.training.caching import open_cache
from ldm.training.rehearsal import rehearse
from ldm.training.run_source import source_of
from ldm.training.settings import DiffusionRun
from ldm.training.start import start_of

SHORTEST = 0.5  # seconds that are timed at least, as a clock and a scheduler are coarse


class Timing(NamedTuple):
    """How much is timed.

    Attributes:
        steps: of training, at least.
        batch_size, batches: of drawing, at least.
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
        (``flops``), and memory, in MiB: ``memory``, the most that was resident, or allocated on a GPU; ``beyond`` what
        was resident before; ``reserved`` on a GPU.
    """
    with _memory() as memory:
        found, _ = rehearse(run, steps=timing.steps, least=SHORTEST, sheet=False)
        kept = {name: getattr(found, name) for name in ("seconds", "waited", "samples", "flops")}
        return {**kept, **memory()}


def time_drawing(run: DiffusionRun, timing: Timing) -> Found:
    """Draw with the network of a run, in the dtype that drawing takes; its weights are those that it begins with.

    Where only some steps are timed, the others are taken to last as long: the difference between them and a single
    step gives the seconds of a call of the network, and what is left is of the picture as a whole.

    Returns:
        ``seconds`` and ``decoding`` (seconds within) of a picture, pictures drawn ``together``, and memory as of
        :func:`time_training`.
    """
    device, draw = pick_device(), timing.draw
    pipeline = _pipeline(run, device)
    _forget_peak(device)
    with _memory() as memory:
        together = _together(pipeline, timing)
        decodes = isinstance(pipeline.model.codec, VAECodec)
        decoding = _middle(lambda: _decode(pipeline, together, device), timing.batches) / together if decodes else 0.0
        some = timing.draw_steps or draw.steps
        seconds = _draw(pipeline, timing, some)
        if some < draw.steps:
            asks = [_asks(run, draw, steps) for steps in (1, some, draw.steps)]
            call = (seconds - _draw(pipeline, timing, 1)) / (asks[1] - asks[0]) if some > 1 else seconds - decoding
            seconds += call * (asks[2] - asks[1])
        return {"seconds": seconds, "decoding": decoding, "together": together, **memory()}


def time_peak(mixed_precision: str) -> Found:
    """Operations a second that the machine reaches at best (``flops``)."""
    return {"flops": measured_peak(mixed_precision)}


def build_cache(run: DiffusionRun) -> Found:
    """Make the cache of a run: its ``bytes``, and the ``pictures`` encoded and the ``seconds`` that took.

    The latter are None where some were there before, as after an interruption.
    """
    source = source_of(run)
    cache = open_cache(run, source, start_of(run, source), pick_device())
    if cache is None:
        raise UserError("the run has no cache")
    made: Any = cache.made
    whole = made.pictures == len(source)
    return {"bytes": cache.bytes, "pictures": len(source), "seconds": made.seconds if whole else None}


# ------------------------------------------------------------------------------- drawing


def _pipeline(run: DiffusionRun, device: torch.device) -> Pipeline:
    source = source_of(run)
    model = start_of(run, source).model
    assert source.sizes is not None
    height, width = source.sizes[0].tolist()
    side = run.frame.sides[0] if run.frame is not None else None
    model.size = (side or height, side or width)
    dtype = pick_dtype(None, device)
    return Pipeline(prepare_model(model, device, dtype), device, dtype)


def _asks(run: DiffusionRun, draw: DrawingConfig, steps: int) -> int:
    return asks_of(
        draw.model_copy(update={"steps": steps}), run.process or ProcessConfig(), run.prediction or "epsilon"
    )


def _together(pipeline: Pipeline, timing: Timing) -> int:
    """How many pictures are really drawn at once: in float32, a CPU draws them one by one."""
    how = pipeline.settle(Drawing.checked({**timing.draw.model_dump(), "batch_size": timing.batch_size}))
    return len(pipeline.batches([_some_condition(pipeline)] * timing.batch_size, how)[0])


def _draw(pipeline: Pipeline, timing: Timing, steps: int) -> float:
    """Seconds of a picture."""
    batch = timing.batch_size
    how = {**timing.draw.model_dump(), "batch_size": batch, "steps": steps}
    conditions, seeds = [_some_condition(pipeline)] * batch, list(range(batch))
    return _middle(lambda: pipeline.generate(conditions, seeds, **how), timing.batches) / batch


def _middle(work: Callable[[], Any], least: int) -> float:
    """The median of the seconds of a piece of work, after once that is not counted, as the first time takes longer."""
    work()
    found: list[float] = []
    while len(found) < least or sum(found) < SHORTEST:
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


def _some_condition(pipeline: Pipeline) -> Condition:
    conditioner = pipeline.model.conditioner
    if isinstance(conditioner, LabelConditioner):
        return 0
    return "a picture" if isinstance(conditioner, TextConditioner) else None


@torch.inference_mode()
def _decode(pipeline: Pipeline, together: int, device: torch.device) -> None:
    """Decode latents on the device, and bring the pictures back to the CPU."""
    codec = pipeline.model.codec
    height, width = (side // codec.factor for side in pipeline.model.size)
    codec.decode(torch.zeros(together, codec.channels, height, width, device=device)).cpu()


# -------------------------------------------------------------------------------- memory


@contextmanager
def _memory() -> Iterator[Callable[[], Found]]:
    """Gives a function that says what was held at most; see :func:`time_training`."""
    device = pick_device()
    with peak_beyond() as beyond:

        def told() -> Found:
            reserved = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else None
            return {"memory": peak_memory(device), "beyond": beyond() / 2**20, "reserved": reserved}

        yield told


def _forget_peak(device: torch.device) -> None:
    """Begin to look for the peak from here, where the system can: a model was built in float32 before it was cast."""
    marks = Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif marks.exists():
        marks.write_text("5", encoding="ascii")  # the high-water mark, see proc(5)
