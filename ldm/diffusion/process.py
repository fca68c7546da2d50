"""Noising processes: how a clean sample becomes noise.

Every process here has the one form

    x_t = alpha_t * x_0 + sigma_t * eps                                          q(x_t | x_0)

and differs only in the two numbers alpha_t and sigma_t, and in what eps is drawn from. With a
Gaussian eps it is also a Markov chain: for s < t,

    x_t | x_s        ~  N(alpha_ts * x_s, sigma_ts^2),   alpha_ts   = alpha_t / alpha_s
                                                         sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2
    x_s | x_t, x_0   ~  N(mean, variance)                (Bayes' rule on the two Gaussians above)

which for one step of DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239) are its equations 2, 4
and 6-7 with alpha_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t).

Time runs from 0 (nearly clean) to T = ``num_train_timesteps``. A discrete process counts t = 0 .. T-1;
a flow has any real t in (0, T]. A ``Point`` is a place on the way, as plain Python floats: samplers
compute with those, so nothing on the device waits for the host.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError, choose

NoiseKind = Literal["gaussian", "uniform"]
BetaSchedule = Literal["linear", "scaled_linear", "cosine"]


class Point(NamedTuple):
    """A noise level: the time ``t`` that the network is told, and the pair (alpha, sigma)."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of Karras et al. 2022 and k-diffusion; inf where alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


CLEAN = Point(t=0.0, alpha=1.0, sigma=0.0)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) to (B, 1, ..., 1), so that it broadcasts over ``like`` of shape (B, ...)."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Process(ABC):
    """x_t = alpha_t x_0 + sigma_t eps."""

    num_train_timesteps: int
    noise_kind: NoiseKind = "gaussian"
    first: float  # the least noisy time that the network is trained on
    last: float  # the noisiest
    spacings: tuple[str, ...]  # of time grids that this process has; the first is its default

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, float32 of shape (B,), at the times ``t`` of shape (B,) used in training."""

    @abstractmethod
    def point(self, t: float) -> Point:
        """The noise level at any real time between ``first`` and ``last``."""

    @abstractmethod
    def point_at_ratio(self, ratio: float) -> Point:
        """The noise level whose sigma / alpha is ``ratio`` (> 0); its time may be fractional."""

    @abstractmethod
    def draw_times(self, uniform: Tensor) -> Tensor:
        """Training times (B,) from numbers (B,) uniform in [0, 1)."""

    @abstractmethod
    def times(self, steps: int, spacing: str, *, offset: int, whole: bool) -> list[float]:
        """``steps`` decreasing times; see :func:`ldm.diffusion.grid.time_grid`."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draw eps on the CPU: N(0, 1), or uniform in [-1, 1] for the teaching example."""
        if self.noise_kind == "uniform":
            return torch.rand(shape, generator=generator) * 2 - 1
        return torch.randn(shape, generator=generator)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0): one draw of x_t, same shape as ``x0``; ``t`` has shape (B,)."""
        alpha, sigma = self.alpha_sigma(t)
        return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps


def transition(s: Point, t: Point) -> tuple[float, float]:
    """q(x_t | x_s) for s before t: the factor on x_s and the standard deviation of what is added.

    One step of DDPM, s = t - 1, gives sqrt(1 - beta_t) and sqrt(beta_t) (Ho et al., equation 2).
    """
    alpha_ts = t.alpha / s.alpha
    variance = max(t.sigma**2 - alpha_ts**2 * s.sigma**2, 0.0)
    return alpha_ts, math.sqrt(variance)


def posterior(x_t: Tensor, x0: Tensor, t: Point, s: Point) -> tuple[Tensor, float]:
    """q(x_s | x_t, x_0) for s before t: its mean, shape of ``x_t``, and its variance.

    Ho et al., equations 6 and 7, for any pair of times and any Gaussian process of the common form.
    """
    alpha_ts, sigma_ts = transition(s, t)
    on_x_t = alpha_ts * s.sigma**2 / t.sigma**2
    on_x0 = s.alpha * sigma_ts**2 / t.sigma**2
    return on_x_t * x_t + on_x0 * x0, (sigma_ts * s.sigma / t.sigma) ** 2


def betas_for(schedule: BetaSchedule, steps: int, start: float, end: float) -> Tensor:
    """The beta of each step, float64 of shape (T,).

    ``linear``: Ho et al. ``scaled_linear``: linear in the square root (Stable Diffusion). ``cosine``:
    Nichol and Dhariwal 2021 (https://arxiv.org/abs/2102.09672, equation 17), s = 0.008, clipped at 0.999.
    """
    choose(schedule, get_args(BetaSchedule), "beta schedule")
    match schedule:
        case "linear":
            return torch.linspace(start, end, steps, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        case "cosine":
            edges = torch.arange(steps + 1, dtype=torch.float64) / steps
            alpha_bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
            # the last beta would be 1, pure noise, of which epsilon says nothing
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Rescale betas (T,) so that x_T is pure noise (Lin et al. 2023, algorithm 1).

    The square root of alpha_bar is shifted to 0 at T-1 and scaled back to its old value at 0; the last
    beta becomes exactly 1. https://arxiv.org/abs/2305.08891
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


class DiscreteProcess(Process):
    """The variance-preserving chain of DDPM: alpha^2 + sigma^2 = 1 at t = 0 .. T-1."""

    spacings = ("leading", "linspace", "trailing", "karras", "lcm")

    def __init__(self, betas: Tensor) -> None:
        """``betas``: shape (T,), each in (0, 1]; only the last may be 1 (zero terminal SNR)."""
        inside = bool(((betas > 0) & (betas <= 1)).all()) and bool((betas[:-1] < 1).all())
        if betas.ndim != 1 or len(betas) < 1 or not inside:
            raise UserError(
                "betas must be T numbers between 0 and 1, of which only the last may be 1, "
                f"got shape {tuple(betas.shape)}, {betas}"
            )
        self.betas = betas.double()
        self.num_train_timesteps = len(betas)
        self.first, self.last = 0.0, float(len(betas) - 1)
        alpha_bar = (1 - self.betas).cumprod(0)
        self.alphas_cumprod = alpha_bar
        self._alpha = alpha_bar.sqrt().numpy()
        self._sigma = (1 - alpha_bar).sqrt().numpy()
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._tables:
            tables = (torch.from_numpy(array).to(t.device, torch.float32) for array in (self._alpha, self._sigma))
            self._tables[t.device] = (next(tables), next(tables))
        alpha, sigma = self._tables[t.device]
        index = t.long()
        return alpha[index], sigma[index]

    def point(self, t: float) -> Point:
        if not self.first <= t <= self.last:
            raise ValueError(f"t = {t} is outside {self.first} .. {self.last}")
        low = int(t)
        part = t - low
        alpha, sigma = float(self._alpha[low]), float(self._sigma[low])
        if part == 0:
            return Point(t, alpha, sigma)
        next_alpha, next_sigma = float(self._alpha[low + 1]), float(self._sigma[low + 1])
        if next_alpha == 0:  # the ratio is infinite there: interpolate alpha itself
            alpha *= 1 - part
            return Point(t, alpha, math.sqrt(1 - alpha**2))
        ratio = (1 - part) * sigma / alpha + part * next_sigma / next_alpha
        return Point(t, *_unit(ratio))

    def point_at_ratio(self, ratio: float) -> Point:
        with np.errstate(divide="ignore"):
            log_ratios = np.log(self._sigma / self._alpha)
        finite = np.isfinite(log_ratios)
        t = np.interp(math.log(ratio), log_ratios[finite], np.arange(len(log_ratios))[finite])
        return Point(float(t), *_unit(ratio))

    def draw_times(self, uniform: Tensor) -> Tensor:
        return (uniform * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def times(self, steps: int, spacing: str, *, offset: int, whole: bool) -> list[float]:
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise UserError(f"steps must be between 1 and {total} (the process has {total}), got {steps}")
        if spacing == "lcm":
            return self._lcm_times(steps)
        if spacing == "leading":
            grid = np.arange(steps)[::-1] * (total // steps)
            grid = grid + min(offset, total - 1 - grid[0])  # at N = T there is no room for an offset
        elif spacing == "linspace":
            grid = np.linspace(0, total - 1, steps)[::-1]
            grid = grid.round() if whole else grid
        else:
            # a float arange may be one too long, and its rounding errors decide ties: diffusers' are kept
            grid = np.arange(total, 0, -total / steps)[:steps].round() - 1
        return [float(t) for t in grid]

    def _lcm_times(self, steps: int, original_steps: int = 50) -> list[float]:
        """A subset of the times of distillation, k T/50 - 1 (Luo et al. 2023, section 4.3)."""
        original_steps = min(original_steps, self.num_train_timesteps)
        if steps > original_steps:
            raise UserError(f"lcm takes at most {original_steps} steps, got {steps}")
        stride = self.num_train_timesteps // original_steps
        chosen = original_steps - np.floor(np.arange(steps) * (original_steps / steps)).astype(int)
        return [float(k * stride - 1) for k in chosen]


def _unit(ratio: float) -> tuple[float, float]:
    """(alpha, sigma) on the unit circle with sigma / alpha = ratio."""
    alpha = 1 / math.sqrt(1 + ratio * ratio)
    return alpha, ratio * alpha


class FlowProcess(Process):
    """Linear interpolation between data and noise: alpha = 1 - t/T, sigma = t/T, t in (0, T].

    Rectified flow (Liu et al. 2022, https://arxiv.org/abs/2209.03003) when eps is Gaussian; the teaching
    example when it is uniform. T only sets the scale of the time that the network is told.
    """

    spacings = ("trailing", "linspace")  # karras needs a finite sigma / alpha at the start

    def __init__(self, num_train_timesteps: int = 1000, noise_kind: NoiseKind = "gaussian") -> None:
        choose(noise_kind, get_args(NoiseKind), "noise kind")
        self.num_train_timesteps = num_train_timesteps
        self.noise_kind = noise_kind
        self.first, self.last = num_train_timesteps / 1000, float(num_train_timesteps)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t.float() / self.num_train_timesteps
        return 1 - sigma, sigma

    def point(self, t: float) -> Point:
        if not 0 <= t <= self.last:
            raise ValueError(f"t = {t} is outside 0 .. {self.last}")
        sigma = t / self.num_train_timesteps
        return Point(t, 1 - sigma, sigma)

    def point_at_ratio(self, ratio: float) -> Point:
        return self.point(self.num_train_timesteps * ratio / (1 + ratio))

    def draw_times(self, uniform: Tensor) -> Tensor:
        return (1 - uniform) * self.num_train_timesteps  # (0, T]: at 0 there is nothing to predict

    def times(self, steps: int, spacing: str, *, offset: int, whole: bool) -> list[float]:
        if steps < 1:
            raise UserError(f"steps must be 1 or more, got {steps}")
        stop = self.first if spacing == "linspace" else self.last / steps
        return [float(t) for t in np.linspace(self.last, stop, steps)]
