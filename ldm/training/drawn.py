"""Pictures that a run draws on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioner import Condition
from ldm.data.example import BadExample
from ldm.data.samples import TrainingSamples
from ldm.drawing import Inputs
from ldm.images import to_pil, to_signed
from ldm.pipeline import NOTHING, Pipeline
from ldm.training.masks import draw_masks
from ldm.training.tune_settings import MaskConfig
from ldm.weights.model import Model

_READABLE = 96  # pixels: pictures are enlarged on sheets until they are about as high


def enlarged(picture: Tensor) -> Image.Image:
    """A picture (C, H, W) in -1..1 for a sheet with labels; a small one enlarged by a whole number, unsmoothed."""
    (image,) = to_pil(picture[None])
    times = max(1, _READABLE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def share_of(count: int, rank: int, processes: int) -> list[int]:
    """The pictures that fall to a process: number rank, rank + processes, ..."""
    return list(range(rank, count, processes))


def draw_pictures(
    model: Model,
    device: torch.device,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    inputs: Inputs = NOTHING,
    half: torch.dtype | None = None,
) -> list[Tensor]:
    """A picture (C, H, W) in -1..1 for each condition and seed, on the CPU.

    Args:
        model: on ``device``.
        device: to draw on.
        conditions: one for each picture.
        seeds: one for each picture.
        inputs: for inpainting networks, pictures and masks.
        half: compute in it, where some weights are in half precision.
    """
    if not conditions:
        return []
    with torch.autocast(device.type, half) if half is not None else contextlib.nullcontext():
        pictures = Pipeline(model, device, torch.float32).generate(conditions, seeds, inputs=inputs)
    return list(pictures)


def to_fill(samples: TrainingSamples, numbers: Sequence[int], seed: int, config: MaskConfig | None) -> Inputs:
    """What an inpainting network is asked to fill on sheets: the first pictures of the data, each with a mask."""
    examples: list[Any] = samples.first(max(numbers, default=0) + 1)
    images = to_signed(torch.stack([examples[k % len(examples)].image for k in numbers]))
    index = torch.tensor(list(numbers))
    return Inputs(images, draw_masks(index, seed, (images.shape[2], images.shape[3]), config or MaskConfig()))


def captions_of(samples: TrainingSamples, count: int) -> list[Condition]:
    """The conditions of the first pictures of the data, each once, at most ``count``; none of a stream."""
    part = samples.plan.parts[0]
    if part.stream or samples.condition == "none":
        return []
    found: dict[Condition, None] = {}
    for index in range(min(len(part), 4 * count)):
        with contextlib.suppress(BadExample):  # told where it comes up in training
            words = part.words(index)
            captions = [samples.captions.prefix + caption for caption in words.captions[:1]]
            found |= dict.fromkeys([words.label] if samples.condition == "label" else captions)
    return list(found)[:count]
