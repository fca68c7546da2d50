"""What is called in a process of its own, which imports this module and little else."""

from __future__ import annotations

import os

from ldm.errors import UserError


def hold(mebibytes: int) -> int:
    """Hold some memory for a moment; the most that the process held, in MiB."""
    held = b"x" * (mebibytes * 2**20)
    del held
    import torch

    from ldm.accel import peak_memory

    peak = peak_memory(torch.device("cpu"))
    assert peak is not None
    return round(peak)


def fail() -> None:
    """A user's mistake."""
    raise UserError("this cannot be")


def die() -> None:
    """As where the system kills a process."""
    os._exit(9)
