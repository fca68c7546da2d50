"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ldm.errors import need
from ldm.training.train_settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of step number ``step`` (from 0): linear warm-up, then constant, or linear or cosine to 0."""
    if step < settings.lr_warmup_steps:
        return settings.learning_rate * (step + 1) / settings.lr_warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    rest = max(1, settings.steps - settings.lr_warmup_steps)
    done = (step - settings.lr_warmup_steps) / rest
    if settings.lr_schedule == "linear":
        return settings.learning_rate * (1 - done)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(groups: Sequence[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), in one kernel or with 8-bit memory.

    Raises:
        UserError: bitsandbytes is asked for and not installed.
    """
    how = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        return need("bitsandbytes.optim", "bitsandbytes").AdamW8bit([*groups], **how)
    return torch.optim.AdamW([*groups], **how, fused=True)


def skips_bad_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it reads ``found_inf`` on the device and then changes nothing, without a sync."""
    return bool(optimizer.defaults.get("fused"))


def begin_memory(optimizer: torch.optim.Optimizer) -> None:
    """What fused AdamW remembers before its first step, so that it can be read into in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
