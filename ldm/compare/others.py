"""Whether other programs were at work while time was taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle, and waiting for a disk, among the numbers of a line of it


@contextmanager
def others_at_work() -> Iterator[Callable[[], float | None]]:
    """Gives a function that says which share of all processors other programs have used since.

    This process and those that it has waited for are not others. None where the system does not tell (it is not Linux).
    """
    before = _busy()
    own = sum(os.times()[:4])

    def share() -> float | None:
        now = _busy()
        if before is None or now is None:
            return None
        others = (now[0] - before[0]) - (sum(os.times()[:4]) - own)
        return max(0.0, others / max(1e-9, now[1] - before[1]))

    yield share


def _busy() -> tuple[float, float] | None:
    """Seconds in which the processors worked, and all that they had."""
    if not _STAT.is_file():
        return None
    ticks = [int(part) for part in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    whole = sum(ticks) / os.sysconf("SC_CLK_TCK")
    return whole - sum(ticks[k] for k in _IDLE) / os.sysconf("SC_CLK_TCK"), whole
