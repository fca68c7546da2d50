"""How far a run is, for who watches: a bar on a terminal; elsewhere, as in the log of a job, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_EVERY = 30.0  # seconds between two lines, at least


class Progress:
    """The steps of a run; to be entered.

    Args:
        steps: of the whole run.
        done: of them, before this one began or went on.
        hidden: say nothing, as all processes but the main one do.
    """

    def __init__(self, steps: int, done: int, hidden: bool) -> None:
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=hidden or None)  # None: without a terminal
        self._steps, self._plain, self._said = steps, not hidden and self._bar.disable, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """A step is done."""
        self._bar.update()

    def tell(self, step: int, values: Mapping[str, str], seconds: float) -> None:
        """Show what was logged after so many steps; ``seconds``: what a step takes."""
        self._bar.set_postfix(values)
        if self._plain and time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            left = tqdm.format_interval((self._steps - step) * seconds)
            print(f"step {step:,} of {self._steps:,}: {told}, {left} left", file=sys.stderr, flush=True)
