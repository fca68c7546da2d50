"""What the commands that draw share: what they check first, show meanwhile, and say at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from ldm.batch import Progress
from ldm.diffusion.samplers import Step
from ldm.errors import UserError


class Bar:
    """A progress bar that counts moves of the sampler, for ``Studio.draw``; ``look`` is shown each of them."""

    def __init__(self, look: Callable[[Step], object] | None = None) -> None:
        self._bar: Any = None
        self._look = look

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, total: int) -> Progress:
        self.__exit__()
        self._bar = tqdm(total=total, unit="step", disable=None, leave=False)

        def moved(done: int, steps: int, step: Step) -> None:
            self._bar.update()
            if self._look is not None:
                self._look(step)

        return moved


def check_series(seed: int, count: int) -> None:
    """Refuse a first seed below 0 and fewer than one picture."""
    if seed < 0:
        raise UserError(f"seed should be 0 or more, got {seed}")
    if count < 1:
        raise UserError(f"count should be 1 or more, got {count}")


def in_words(how: Mapping[str, Any]) -> str:
    """The settings that a picture depends on, as a line."""
    eta = "" if how["eta"] is None else f" eta {how['eta']:g},"
    return f"{how['width']}x{how['height']}, {how['sampler']},{eta} {how['steps']} steps, guidance {how['guidance']:g}"
