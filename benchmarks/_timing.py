"""What the benchmarks share: cheap random weights, timing in turn, counting of operations, reports."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def random_weights(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model without its own initialisation, and fill it with one draw for each tensor.

    Matrices and kernels are uniform with variance 1 / (3 fan in), as torch's own initialisation has it, so that
    activations stay finite; norms are the identity and biases are zero.
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


def count_flops(build: Callable[[], nn.Module], call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> int:
    """Count the floating-point operations of ``call(model, *inputs)``, on ``meta`` and so without doing them.

    The counter sees nothing of the CPU's fused attention; the ``math`` kernel is made of products that it sees.
    """
    with torch.device("meta"):
        model = build().eval()
    meta = [x.to("meta") for x in inputs]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, *meta)
    return counter.get_total_flops()


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time each call ``repeats`` times, A B A B, so that a slow minute of the machine strikes all alike.

    Returns:
        Seconds of every repeat, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def summary(seconds: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, Any]]:
    """Median, fastest and slowest of each contestant, and how many times as long as ours it takes."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "median_s": medians[name],
            "min_s": min(times),
            "max_s": max(times),
            "times_ours": medians[name] / medians[ours],
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
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print facts and a table of rows; write both as JSON if there is a path."""
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    shown = [{key: _short(value) for key, value in row.items()} for row in rows]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in shown[0]}
    print("  ".join(f"{key:<{width}}" for key, width in widths.items()))
    for row in shown:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()))
    if path is not None:
        path.write_text(json.dumps({"facts": dict(facts), "rows": [dict(row) for row in rows]}, indent=2) + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
