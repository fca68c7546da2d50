"""Samplers: how to walk from noise to a sample, given an estimate of (x0, eps) at each noise level.

Each rule is a short generator over ``(denoise, x, grid, noise)`` that yields a ``Step`` per move, so that
progress bars and previews belong to the caller. With the estimate at hand one move is a transfer

    x_next = alpha_next x0 + sigma_next eps

which is DDIM with eta = 0 (Song et al. 2020, https://arxiv.org/abs/2010.02502, equation 12) and, in the
variable x / alpha over sigma / alpha, Euler's method (Karras et al. 2022). Everything else here either adds
noise on the way or uses estimates of earlier steps. Familiar names are rows of ``SAMPLERS``: Euler is DDIM
with eta = 0 on other times, Euler a is DDIM with eta = 1.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.consistency import boundary
from ldm.diffusion.denoiser import Estimator
from ldm.diffusion.grid import SPACINGS, Grid, time_grid
from ldm.diffusion.prediction import Estimate
from ldm.diffusion.process import Point, Process, posterior, transition
from ldm.errors import IdleError, UserError, choose

Noise = Callable[[Tensor], Tensor]  # x -> fresh Gaussian noise of its shape, dtype and device


class Step(NamedTuple):
    """What a sampler yields after each move: the sample, and the clean sample it was steering to."""

    x: Tensor
    x0: Tensor


Rule = Callable[[Estimator, Tensor, Grid, Noise], Iterator[Step]]


def transfer(estimate: Estimate, to: Point) -> Tensor:
    """alpha x0 + sigma eps at the noise level ``to``."""
    return to.alpha * estimate.x0 + to.sigma * estimate.eps


def ddpm(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise, variance: str = "fixed_small") -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), at every time or on a strided grid.

    ``variance``: ``fixed_small`` is that of the posterior q(x_s | x_t, x_0), ``fixed_large`` that of
    q(x_t | x_s), beta_t; section 3.2 calls them the two extreme choices.
    """
    choose(variance, ("fixed_small", "fixed_large"), "variance")
    for now, to in itertools.pairwise(grid):
        estimate = denoise(x, now)
        x, small = posterior(x, estimate.x0, now, to)
        if to.sigma > 0:
            spread = math.sqrt(small) if variance == "fixed_small" else transition(to, now)[1]
            x = x + spread * noise(x)
        yield Step(x, estimate.x0)


def ddim(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """DDIM (Song et al. 2020, equations 12 and 16); eta = 0 is deterministic, eta = 1 ancestral."""
    for now, to in itertools.pairwise(grid):
        estimate = denoise(x, now)
        fresh = eta * to.sigma * transition(to, now)[1] / now.sigma
        kept = math.sqrt(max(to.sigma**2 - fresh**2, 0.0))
        x = to.alpha * estimate.x0 + kept * estimate.eps
        if fresh > 0:
            x = x + fresh * noise(x)
        yield Step(x, estimate.x0)


def heun(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Heun's second-order method (Karras et al. 2022, algorithm 1), two network calls a step.

    Euler's method at both ends: to sigma = 0, where nothing is left to ask, and from alpha = 0, where
    sigma / alpha is not finite.
    """
    for now, to in itertools.pairwise(grid):
        estimate = denoise(x, now)
        moved = transfer(estimate, to)
        if to.sigma > 0 and now.alpha > 0:
            eps = (estimate.eps + denoise(moved, to).eps) / 2
            moved = transfer(_with_eps(x, now, eps), to)
        x = moved
        yield Step(x, estimate.x0)


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Pseudo linear multistep (Liu et al. 2022, https://arxiv.org/abs/2202.09778), as Stable Diffusion has it.

    Adams-Bashforth on eps up to order 4; the first step averages eps at both its ends, so a run of N steps
    asks the network N + 1 times.
    """
    past: list[Tensor] = []
    for now, to in itertools.pairwise(grid):
        estimate = denoise(x, now)
        past = [estimate.eps, *past[:3]]
        if now.alpha == 0:
            x = transfer(estimate, to)
            past = []  # eps at pure noise says nothing of the curve that follows
        else:
            if len(past) == 1 and to.sigma > 0:
                eps = (estimate.eps + denoise(transfer(estimate, to), to).eps) / 2
            else:
                weights = ADAMS_BASHFORTH[len(past) - 1]
                eps = sum((w * e for w, e in zip(weights[1:], past[1:], strict=True)), weights[0] * past[0])
            x = transfer(_with_eps(x, now, eps), to)
        yield Step(x, estimate.x0)


def _with_eps(x: Tensor, at: Point, eps: Tensor) -> Estimate:
    return Estimate((x - at.sigma * eps) / at.alpha, eps)


def dpmpp_2m(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise, stochastic: bool = False) -> Iterator[Step]:
    """DPM-Solver++ of order 2, multistep, midpoint (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2).

    With lambda = log(alpha / sigma) and h = lambda_next - lambda, written in e^-h, which stays finite (0) at
    alpha = 0 and at sigma = 0. ``stochastic`` is the SDE form (its appendix; e^-2h in place of e^-h, and the
    variance that is lost is added as noise). Order 1 at the first step, at the last one when it ends at
    sigma = 0, and at the last one of a short run (fewer than 15 steps).
    """
    previous: tuple[Tensor, float] | None = None  # x0 and log-SNR step of the step before
    count = len(grid) - 1
    for index, (now, to) in enumerate(itertools.pairwise(grid)):
        x0 = denoise(x, now).x0
        shrink = to.sigma * now.alpha / (to.alpha * now.sigma)  # e^-h
        h = -math.log(shrink) if shrink > 0 else math.inf
        first_order = previous is None or to.sigma == 0 or (index == count - 1 and count < 15)
        towards = x0
        if not first_order and previous is not None:
            towards = x0 + (x0 - previous[0]) * (h / (2 * previous[1]))
        if stochastic:
            x = (to.sigma / now.sigma * shrink) * x + to.alpha * (1 - shrink**2) * towards
            if to.sigma > 0:
                x = x + to.sigma * math.sqrt(1 - shrink**2) * noise(x)
        else:
            x = (to.sigma / now.sigma) * x + to.alpha * (1 - shrink) * towards
        previous = (x0, h)
        yield Step(x, x0)


def lcm(denoise: Estimator, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3).

    A step lands where the consistency function says (see ``ldm.diffusion.consistency``), and is made noisy again.
    """
    for now, to in itertools.pairwise(grid):
        estimate = denoise(x, now)
        c_skip, c_out = (float(c) for c in boundary(torch.tensor(now.t)))
        x0 = c_skip * x + c_out * estimate.x0
        # the walk ends at the consistency function's value, whatever noise level the grid names last
        x = x0 if to is grid[-1] else to.alpha * x0 + to.sigma * noise(x)
        yield Step(x, x0)


@dataclass(frozen=True)
class Sampler:
    """A row of the table: a rule with its options, and the times it is used on.

    Attributes:
        rule: one of the generators above, options bound.
        spacing: default spacing of times on a discrete process.
        stochastic: draws noise on the way, which must be Gaussian.
        whole: times of ``linspace`` and of the spacings by noise level are told to the network rounded.
        skip_last: lays one more time and leaves out the last (DPM-Solver).
        model_end: ends where the model's scheduler says (``set_alpha_to_one``), not always at clean.
        steps: default number of steps.
        aliases: other names that users type.
        spacing_named: the spacing was asked for by name; a process that lacks it is an error, not a reason
            to take its default.
    """

    rule: Rule
    spacing: str = "leading"
    stochastic: bool = False
    whole: bool = True
    skip_last: bool = False
    model_end: bool = False
    steps: int = 50
    aliases: tuple[str, ...] = field(default=())
    spacing_named: bool = False

    def usual_spacing(self, process: Process) -> str:
        """That of its times where nothing is said."""
        usable = self.spacing_named or self.spacing in process.spacings
        return self.spacing if usable else process.spacings[0]

    def grid(
        self,
        process: Process,
        steps: int | None = None,
        spacing: str | None = None,
        offset: int = 0,
        end: str = "clean",
    ) -> Grid:
        """The times of this sampler on ``process``; ``offset`` and ``end`` are the model's scheduler's."""
        return time_grid(
            process,
            self.steps if steps is None else steps,
            spacing or self.usual_spacing(process),
            offset=offset,
            whole=self.whole,
            skip_last=self.skip_last,
            end=end if self.model_end else "clean",
        )


_ancestral = partial(ddim, eta=1.0)
SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": Sampler(ddpm, stochastic=True, steps=1000),
    "ddpm_large": Sampler(partial(ddpm, variance="fixed_large"), stochastic=True, steps=1000),
    "ddim": Sampler(ddim, model_end=True),
    "plms": Sampler(plms, model_end=True, aliases=("pndm",)),
    "euler": Sampler(ddim, "linspace", whole=False, steps=30, aliases=("k_euler",)),
    "euler_a": Sampler(
        _ancestral,
        "linspace",
        stochastic=True,
        whole=False,
        steps=30,
        aliases=("euler_ancestral", "k_euler_a"),
    ),
    "heun": Sampler(heun, "linspace", whole=False, steps=20, aliases=("k_heun",)),
    "dpm++_2m": Sampler(dpmpp_2m, "linspace", skip_last=True, steps=20, aliases=("dpm_solver++", "k_dpmpp_2m")),
    "dpm++_2m_sde": Sampler(
        partial(dpmpp_2m, stochastic=True),
        "linspace",
        True,
        skip_last=True,
        steps=25,
        aliases=("k_dpmpp_2m_sde",),
    ),
    "lcm": Sampler(lcm, "lcm", stochastic=True, steps=4),
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


_NAMES = {_plain(n): key for key, row in SAMPLERS.items() for n in (key, *row.aliases)}
_ENDINGS = {"": None, **{_plain(name): name for name in SPACINGS}, "alignyoursteps": "ays"}


def find_sampler(name: str) -> Sampler:
    """The row for a name as users type it: ``ddim``, ``Euler a``, ``DPM++ 2M Karras``, ``k_euler_a``.

    A name that ends in a spacing (karras, exponential, ays, beta, trailing, ...) is the sampler on those times.

    Raises:
        UserError: no such sampler; the message lists them.
    """
    plain = _plain(name)
    for ending, spacing in _ENDINGS.items():
        if plain.endswith(ending) and plain.removesuffix(ending) in _NAMES:
            row = SAMPLERS[_NAMES[plain.removesuffix(ending)]]
            return replace(row, spacing=spacing, spacing_named=True) if spacing else row
    choose(name, SAMPLERS, "sampler")
    raise AssertionError("unreachable: a name in the table is found above")


def with_eta(sampler: Sampler, eta: float) -> Sampler:
    """DDIM with this share of fresh noise, 0 (deterministic) to 1 (ancestral), on the times of ``sampler``.

    Raises:
        UserError: ``sampler`` is another row than ddim.
    """
    plain = SAMPLERS["ddim"]
    if replace(sampler, spacing=plain.spacing, spacing_named=False) != plain:
        raise IdleError("eta", "eta is for the sampler ddim, and this one has none: leave eta out, or choose ddim")
    return replace(sampler, rule=partial(ddim, eta=eta), stochastic=eta > 0)


def sample(
    sampler: Sampler, denoise: Estimator, x: Tensor, grid: Grid, noise: Noise, process: Process
) -> Iterator[Step]:
    """Walk ``grid`` from ``x`` (the start noise, or a noised picture) with the rule of ``sampler``."""
    if sampler.stochastic and process.noise_kind != "gaussian":
        raise UserError(
            f"this sampler adds Gaussian noise, and the process was trained with {process.noise_kind} noise: "
            "use ddim, euler, heun or dpm++_2m"
        )
    return sampler.rule(denoise, x, grid, noise)
