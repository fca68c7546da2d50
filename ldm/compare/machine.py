"""The machine that a comparison is made on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.accel import pick_device, pick_dtype


def machine() -> dict[str, Any]:
    """What the stages are done by, as plain data."""
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    dtype = str(pick_dtype(None, device)).removeprefix("torch.")
    versions = {"ldm": ldm.__version__, "torch": str(torch.__version__)}
    return {"device": name, "threads": torch.get_num_threads(), "drawn in": dtype, **versions}


def _processor() -> str:
    listed = Path("/proc/cpuinfo")  # where there is one, it says more than platform does
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
