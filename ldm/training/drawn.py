"""Pictures that a run draws on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.conditioner import Condition
from ldm.data.samples import TrainingSamples
from ldm.drawing import Inputs
from ldm.images import to_signed
from ldm.pipeline import NOTHING, Pipeline
from ldm.training.masks import draw_masks
from ldm.training.tune_settings import MaskConfig
from ldm.weights.model import Model


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
