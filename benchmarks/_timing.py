"""What the benchmarks share: cheap random weights, timing in turn, counting of operations, reports."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


def random_weights(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model without its own initialisation, and fill it with one draw for each tensor.

    Matrices and kernels are uniform with variance 1 / (3 fan in), as torch's own initialisation has it, so that
    activations stay finite; norms are the identity and biases are zero. The model must have no buffers.
    """
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                bound = parameter[0].numel() ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.weight.fill_(1)
    return model.eval()


def twin(build: Callable[[], nn.Module], model: nn.Module) -> nn.Module:
    """Build another model on the weights of ``model``, which they then share."""
    with torch.device("meta"):
        other = build()
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time each call ``repeats`` times, A B A B, so that a slow minute of the machine strikes all alike.

    Returns:
        Seconds of every repeat, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def working_memory(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """``{"working_mib": ...}``: the most that a call holds on a CUDA device beyond what lies there; else nothing.

    What lies there, the weights of every contestant among it, is left out.
    """
    if device.type != "cuda":
        return {}
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    _wait(device)
    return {"working_mib": (torch.cuda.max_memory_allocated(device) - before) / 2**20}


def summary(
    seconds: Mapping[str, list[float]], rivals: Mapping[str, str], reference: str, flops: int
) -> dict[str, dict[str, float]]:
    """What the times of each contestant say.

    Args:
        seconds: from ``in_turn``.
        rivals: by contestant, the one it is measured against.
        reference: the one that all are measured against.
        flops: of one call.

    Returns:
        By contestant, median, fastest and slowest; ``of_rival``, its median over its rival's (below 1 it is faster);
        ``speedup``, the reference's median over its own; the TFLOP/s that it reaches.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "median_s": medians[name],
            "min_s": min(times),
            "max_s": max(times),
            "of_rival": medians[name] / medians[rivals[name]],
            "speedup": medians[reference] / medians[name],
            "tflop_per_s": flops / medians[name] / 1e12,
        }
        for name, times in seconds.items()
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the times were taken on."""
    facts = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        return {**facts, "name": torch.cuda.get_device_name(device)}
    return {
        **facts,
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print facts and a Markdown table of rows; write both as JSON if there is a path."""
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    shown = [[_short(value) for value in row.values()] for row in rows]
    for cells in ([*rows[0]], ["---"] * len(rows[0]), *shown):
        print(f"| {' | '.join(cells)} |")
    if path is not None:
        path.write_text(json.dumps({"facts": dict(facts), "rows": [dict(row) for row in rows]}, indent=2) + "\n")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
