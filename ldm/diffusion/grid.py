"""The times at which a sampler asks the network, and where it ends.

A grid is N + 1 points: the N noise levels at which the network is asked, from noisy to clean, and the
level at which the sample is handed over. That last one is explicit because it differs in practice: most
samplers end at alpha = 1, Stable Diffusion's DDIM (``set_alpha_to_one=False``) at alpha_bar_0.

Spacings by time, N times out of T: ``leading`` (0 included, T-1 not), ``linspace`` (both), ``trailing`` (T-1
included; Lin et al. 2023, table 2), and ``lcm``, the times that a latent consistency model was distilled at.

Spacings by noise level r = sigma / alpha, between the process' noisiest and cleanest:

    karras        r^(1/rho) is linear (Karras et al. 2022, equation 5, rho = 7, https://arxiv.org/abs/2206.00364)
    exponential   log r is linear (k-diffusion)
    beta          r lies at quantiles of Beta(0.6, 0.6), dense at both ends. Lee et al. 2024
                  (https://arxiv.org/abs/2407.12173) place t there; diffusers and A1111 place r, and so do we
    ays, ays_xl   Align Your Steps (Sabour et al. 2024, https://arxiv.org/abs/2404.14507): tables optimised for
                  Stable Diffusion 1.x and XL at 10 steps, log-linear between their rows at any other number
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ldm.diffusion.process import CLEAN, Point, Process
from ldm.errors import UserError, choose

Grid = tuple[Point, ...]
Ratios = Callable[[float, float, int], list[float]]  # noisiest, cleanest sigma / alpha, N -> N falling ones


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
        whole: round the times of ``linspace`` and of the spacings by noise level to whole ones, as DDIM and
            DPM-Solver do and Euler does not.
        skip_last: lay N + 1 times of ``leading`` and ``linspace`` and leave out the last, as DPM-Solver does.
        end: ``clean`` (alpha 1, sigma 0) or ``first`` (the noise level of the process' first time).

    Raises:
        UserError: ``steps`` or a name is out of range, or the process lacks the noise levels of the spacing.
    """
    choose(spacing, spacings_of(process), "spacing")
    choose(end, ("clean", "first"), "end of the grid")
    if steps < 1:
        raise UserError(f"steps must be 1 or more, got {steps}")
    last = CLEAN if end == "clean" else process.point(process.first)
    if spacing in RATIOS:
        points = [process.point_at_ratio(ratio) for ratio in _ratios(process, steps, spacing)]
        return (*(p._replace(t=float(round(p.t))) if whole else p for p in points), last)
    room = steps < process.num_train_timesteps  # else every time is used, and none is left out
    asked = steps + 1 if skip_last and room and spacing in ("leading", "linspace") else steps
    times = process.times(asked, spacing, offset=offset, whole=whole)[:steps]
    return (*(process.point(t) for t in times), last)


def spacings_of(process: Process) -> tuple[str, ...]:
    """The names that ``time_grid`` takes for this process: a flow, from infinite noise, has none by noise level."""
    more = RATIOS if "karras" in process.spacings else ()
    return tuple(dict.fromkeys((*process.spacings, *more)))


def _ratios(process: Process, steps: int, spacing: str) -> list[float]:
    """The spacing's falling sigma / alpha between those of the process."""
    low, high = process.point(process.first).ratio, process.point(process.last).ratio
    if math.isinf(high) and spacing not in AYS:
        raise UserError(
            f"{spacing} spacing needs a finite sigma / alpha at the start: use trailing with zero terminal SNR"
        )
    return RATIOS[spacing](high, low, steps)


def _ramp(steps: int) -> list[float]:
    """``steps`` even numbers from 0 to 1; a single one is 0."""
    return [i / (steps - 1) if steps > 1 else 0.0 for i in range(steps)]


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> list[float]:
    """Falling sigma / alpha whose power 1 / rho is linear."""
    start, stop = high ** (1 / rho), low ** (1 / rho)
    return [(start + u * (stop - start)) ** rho for u in _ramp(steps)]


def exponential(high: float, low: float, steps: int) -> list[float]:
    """Falling sigma / alpha, each the same multiple of the one before."""
    return [high ** (1 - u) * low**u for u in _ramp(steps)]


def beta(high: float, low: float, steps: int, shape: float = 0.6) -> list[float]:
    """Falling sigma / alpha at even quantiles of Beta(shape, shape) between ``low`` and ``high``."""
    return [low + x * (high - low) for x in beta_quantiles([1 - u for u in _ramp(steps)], shape)]


AYS: Mapping[str, tuple[float, ...]] = {  # 10 steps and where they end
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def align_your_steps(name: str, high: float, low: float, steps: int) -> list[float]:
    """The first ``steps`` of ``steps`` + 1 rows of a table of ``AYS``, log-linear between its own."""
    table = AYS[name]
    if high < 0.99 * table[0] or low > 1.01 * table[-1]:
        raise UserError(
            f"{name} spacing is a table of sigma / alpha from {table[0]} to {table[-1]}, and this process has only "
            f"{high:.4g} to {low:.4g}: use karras or exponential"
        )
    places = np.linspace(0, len(table) - 1, steps + 1)[:steps]
    return np.exp(np.interp(places, np.arange(len(table)), np.log(table))).tolist()


RATIOS: Mapping[str, Ratios] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    **{name: partial(align_your_steps, name) for name in AYS},
}
SPACINGS = ("leading", "linspace", "trailing", "lcm", *RATIOS)


def beta_quantiles(shares: list[float], shape: float) -> list[float]:
    """The x in 0..1 below which Beta(shape, shape) has each of the ``shares``.

    Bisection on the distribution function, whose series (DLMF 8.17.7 with a = b) is

        I_x(a, a) = x^a / B(a, a) * sum_n (1 - a)_n x^n / (n! (a + n))

    and gains a bit with each term where x <= 1/2; the other half follows by symmetry.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    lower = np.minimum(wanted, 1 - wanted)
    n = np.arange(60)
    coefficients = np.cumprod(np.where(n > 0, (n - shape) / np.maximum(n, 1), 1.0)) / (shape + n)
    inverse_beta = math.exp(math.lgamma(2 * shape) - 2 * math.lgamma(shape))  # 1 / B(a, a)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5**shape)  # of x^a: even where x is tiny
    for _ in range(60):
        middle = (low + high) / 2
        below = inverse_beta * middle * np.polynomial.polynomial.polyval(middle ** (1 / shape), coefficients) < lower
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    x = np.where(lower > 0, ((low + high) / 2) ** (1 / shape), 0.0)
    return np.where(wanted <= 0.5, x, 1 - x).tolist()
