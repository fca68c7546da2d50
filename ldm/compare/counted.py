"""What the rows of a comparison take on paper, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.codec import PixelCodec
from ldm.compare.rows import Row
from ldm.compare.settings import DrawingConfig
from ldm.compare.stages import Found
from ldm.conditioner import NoConditioner
from ldm.cost.diffusion_step import DiffusionStep
from ldm.cost.drawing import count_drawing
from ldm.cost.inventory import networks_of
from ldm.cost.of_run import HALF, steps_of
from ldm.cost.step import Counted, count_step
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.settings import ProcessConfig
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.pipeline import Pipeline
from ldm.weights.model import Model

_ENCODER = "VAE encoder"


def count_all(rows: Sequence[Row]) -> list[Found]:
    """Count every row; see :func:`count_row`."""
    told = rows[0].told
    asks = asks_of(told.draw, told.process, told.prediction)
    return [count_row(row, asks) for row in rows]


def count_row(row: Row, asks: int) -> Found:
    """Count a row.

    Args:
        row: which.
        asks: how often its network is asked for a picture, apart from guidance.

    Returns:
        ``factor``; ``numbers`` that are diffused for a picture; ``parameters`` by part; operations for a picture:
        ``training``, forward and backward, by part, ``encoding``, and ``drawing`` by part; ``vae_training``, all
        operations of training a VAE; ``activations``, bytes kept for the backward pass of a ``batch``, by dtype.
    """
    told, shape, side = row.told, row.shape, row.material.side
    networks = networks_of(shape, side)
    counted = _training(row)
    return {
        "factor": shape.factor,
        "numbers": counted.numbers,
        "parameters": {name: network.parameters for name, network in networks.items()},
        "training": {name: (part.forward + part.backward) / counted.batch for name, part in counted.parts.items()},
        "encoding": networks[_ENCODER].flops if _ENCODER in networks else 0,
        "drawing": count_drawing(shape, side, 1, asks, told.draw.guidance != 1),
        "vae_training": _vae_training(row),
        "activations": counted.activations,
        "batch": counted.batch,
    }


def _training(row: Row) -> Counted:
    """A micro-batch of the U-Net, with latents and states of texts from a cache."""
    train = row.told.train
    step = DiffusionStep(
        row.shape,
        train.batch_size,
        row.material.side,
        half=HALF[train.mixed_precision],
        checkpointing=train.gradient_checkpointing,
        encodes=False,
        reads=False,
    )
    return count_step(step, gpu=torch.cuda.is_available())


def _vae_training(row: Row) -> int:
    if row.new_vae is None or row.told.vae is None:
        return 0
    run = row.vae_run(Path("."))
    return run.train.gradient_accumulation * sum(steps * count_step(step).flops for steps, step in steps_of(run))


def asks_of(draw: DrawingConfig, process: ProcessConfig, prediction: Prediction) -> int:
    """How often a network is asked for one picture, found out with the smallest there is."""
    asked = 0

    def count(*_: Any) -> None:
        nonlocal asked
        asked += 1

    net = ToyUNet(ToyUNetConfig()).eval()
    net.register_forward_hook(count)
    model = Model(net, process, prediction, PixelCodec(1), NoConditioner(), (8, 8))
    pipeline = Pipeline(model, torch.device("cpu"), torch.float32)
    pipeline.generate([None], [0], sampler=draw.sampler, steps=draw.steps)
    return asked
