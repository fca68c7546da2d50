"""The times at which a sampler asks the network, and where it ends.

A grid is N + 1 points: the N noise levels at which the network is asked, from noisy to clean, and the
level at which the sample is handed over. That last one is explicit because it differs in practice: most
samplers end at alpha = 1, Stable Diffusion's DDIM (``set_alpha_to_one=False``) at alpha_bar_0.

Spacings of N times out of T: ``leading`` (0 included, T-1 not), ``linspace`` (both), ``trailing`` (T-1
included; Lin et al. 2023, table 2), and ``karras``: sigma/alpha spaced so that its 1/rho-th power is linear
(Karras et al. 2022, equation 5, rho = 7, https://arxiv.org/abs/2206.00364); and ``lcm``, the times that a
latent consistency model was distilled at.
"""

from __future__ import annotations

import math

from ldm.diffusion.process import CLEAN, Point, Process
from ldm.errors import UserError, choose

SPACINGS = ("leading", "linspace", "trailing", "karras", "lcm")
Grid = tuple[Point, ...]


def time_grid(
    process: Process,
    steps: int,
    spacing: str = "leading",
    *,
    offset: int = 0,
    whole: bool = True,
    skip_last: bool = False,
    end: str = "clean",
) -> Grid:
    """N + 1 points for ``steps`` = N.

    Args:
        process: the noising process that the network was trained on.
        steps: how often the network is asked at least; 1 or more.
        spacing: one of ``SPACINGS``.
        offset: added to the times of ``leading`` (1 in Stable Diffusion).
        whole: round the times of ``linspace`` and ``karras`` to whole ones, as DDIM and DPM-Solver do and Euler
            does not.
        skip_last: lay N + 1 times of ``leading`` and ``linspace`` and leave out the last, as DPM-Solver does.
        end: ``clean`` (alpha 1, sigma 0) or ``first`` (the noise level of the process' first time).

    Raises:
        UserError: ``steps`` or a name is out of range.
    """
    choose(spacing, process.spacings, "spacing")
    choose(end, ("clean", "first"), "end of the grid")
    if steps < 1:
        raise UserError(f"steps must be 1 or more, got {steps}")
    last = CLEAN if end == "clean" else process.point(process.first)
    if spacing == "karras":
        points = karras(process, steps)
        return (*(p._replace(t=float(round(p.t))) if whole else p for p in points), last)
    room = steps < process.num_train_timesteps  # else every time is used, and none is left out
    asked = steps + 1 if skip_last and room and spacing in ("leading", "linspace") else steps
    times = process.times(asked, spacing, offset=offset, whole=whole)[:steps]
    return (*(process.point(t) for t in times), last)


def karras(process: Process, steps: int, rho: float = 7.0) -> Grid:
    """``steps`` points between the process' noisiest and cleanest finite sigma / alpha."""
    low, high = process.point(process.first).ratio, process.point(process.last).ratio
    if math.isinf(high):
        raise UserError("karras spacing needs a finite sigma / alpha at the start: use trailing with zero terminal SNR")
    start, stop = high ** (1 / rho), low ** (1 / rho)
    ramp = [i / (steps - 1) if steps > 1 else 0.0 for i in range(steps)]
    return tuple(process.point_at_ratio((start + u * (stop - start)) ** rho) for u in ramp)
