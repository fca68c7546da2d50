"""What the benchmarks share: cheap random weights, timing in turn, work counted in FLOPs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def random_weights(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model on ``meta`` and fill it, in seconds rather than in the time its own initialisation takes.

    Matrices and kernels are drawn with variance 1 / (3 fan in), as torch's own initialisation has it, so that
    activations stay finite; norms are the identity and biases are zero.
    """
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (3 * parameter[0].numel()) ** -0.5, generator=generator)
            else:
                parameter.fill_(0)
        for module in model.modules():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.weight.fill_(1)
    return model.eval()


def twin(build: Callable[[], nn.Module], model: nn.Module) -> nn.Module:
    """Build another model on the same weights, without a copy of them."""
    with torch.device("meta"):
        other = build()
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


def count_flops(build: Callable[[], nn.Module], call: Callable[[nn.Module], Any]) -> int:
    """Count the floating-point operations of a call, on ``meta`` and so without doing them.

    The counter sees no attention in the CPU's fused kernels; the ``math`` kernel is made of products it sees.
    """
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(build())
    return counter.get_total_flops()


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Time each call ``repeats`` times, A B A B, so that a slow minute of the machine strikes all alike.

    Returns:
        Seconds of every repeat, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warm_up, repeats):
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the times were taken on."""
    facts = {"torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        return {**facts, "name": torch.cuda.get_device_name(device)}
    capability = "AMX" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability()
    return {**facts, "name": _cpu_name(), "capability": capability, "cores": os.cpu_count()}
