"""The most operations a second that torch reaches on the machine at hand.

It is what a step is compared with: the largest of products of square matrices and of convolutions of 3 x 3 in
channels_last, each at several sizes, since which of them a machine likes best differs (oneDNN on a CPU, cuBLAS and
cuDNN on a GPU). Each is warmed up, and the fastest of its calls is taken: what else the machine does can only slow a
call. The threads are those that torch has, which are those that it trains with. A training step reaches less, as norms
and activations move memory and multiply nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.cost.of_run import HALF

_SECONDS = 0.4  # for each size
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}  # of matrices
_MAPS = {"cpu": ((8, 128, 32), (4, 256, 32), (4, 512, 16)), "cuda": ((64, 320, 64), (64, 640, 32), (64, 1280, 32))}
_Call = tuple[float, Callable[[], Tensor]]


def measured_peak(mixed_precision: str) -> float:
    """Operations a second at the best, in the dtype of autocast; a few seconds.

    Args:
        mixed_precision: ``no`` (float32, with TF32 where torch is allowed it), ``bf16`` or ``fp16``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        calls = _calls(device, HALF[mixed_precision] or torch.float32)
        return max(flops / _fastest(call, device) for flops, call in calls)


def _calls(device: torch.device, dtype: torch.dtype) -> Iterator[_Call]:
    """Operations of a call, and the call."""
    for side in _SIDES[device.type]:
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        yield 2 * side**3, lambda matrix=matrix: matrix @ matrix
    for batch, channels, side in _MAPS[device.type]:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
        products = 9 * batch * channels**2 * (side - 2) ** 2  # nothing is padded: zeros would be skipped, or not
        yield 2 * products, lambda x=x, weight=weight: F.conv2d(x, weight)


def _fastest(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest call, after two to warm up."""
    found, until = [], 0.0
    while len(found) < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
        if len(found) == 2:
            until = time.perf_counter() + _SECONDS
    return min(found[2:])
