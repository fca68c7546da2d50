"""Samplers on Gaussian data, whose denoiser is known: they must give the data's mean and standard deviation back.

For data N(mu, s^2) the noised sample x_t has mean alpha mu and variance V = alpha^2 s^2 + sigma^2, and the best
estimate of (x0, eps) is linear in x_t:

    x0 = mu + (alpha s^2 / V) (x_t - alpha mu)        eps = (sigma / V) (x_t - alpha mu)

Every sampler is then a linear function of its start and of each noise that it draws. A batch that holds the zero
start, the unit start, and the zero start with one unit draw each, shows all its coefficients, and so the exact mean
and variance of what it makes: what is left is the sampler's own error, without any of chance's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, Estimator
from ldm.diffusion.grid import Grid
from ldm.diffusion.prediction import Estimate, target
from ldm.diffusion.process import (
    CLEAN,
    DiscreteProcess,
    FlowProcess,
    Point,
    Process,
    betas_for,
    zero_terminal_snr,
)
from ldm.diffusion.samplers import SAMPLERS, Rule, lcm, sample

STABLE_DIFFUSION = DiscreteProcess(betas_for("scaled_linear", 1000, 0.00085, 0.012))
ZERO_SNR = DiscreteProcess(zero_terminal_snr(STABLE_DIFFUSION.betas))
FLOW = FlowProcess(1000)
PROCESSES = {"sd": STABLE_DIFFUSION, "zero-snr": ZERO_SNR, "flow": FLOW}
SOLVERS = [key for key in SAMPLERS if key != "lcm"]
MU, S = 1.5, 0.5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gaussian(mu: float, s: float) -> Estimator:
    """The best estimate of (x0, eps) for data N(mu, s^2)."""

    def denoise(x_t: Tensor, at: Point) -> Estimate:
        centred = (x_t - at.alpha * mu) / (at.alpha**2 * s**2 + at.sigma**2)
        return Estimate(mu + at.alpha * s**2 * centred, at.sigma * centred)

    return denoise


def marginal(at: Point, mu: float, s: float) -> tuple[float, float]:
    """Mean and standard deviation of x_t."""
    return at.alpha * mu, math.sqrt(at.alpha**2 * s**2 + at.sigma**2)


def law(rule: Rule, denoise: Estimator, grid: Grid, mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation of what the rule makes of a start with this mean and standard deviation."""
    x = torch.zeros(len(grid) + 1, dtype=torch.float64)
    x[1] = 1
    draws = 0

    def noise(like: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros_like(like).index_fill(0, torch.tensor(draws + 1), 1.0)

    made = [step.x for step in rule(denoise, x, grid, noise)][-1]
    constant, on_start, on_noise = made[0], made[1] - made[0], made[2:] - made[0]
    variance = (on_start * std) ** 2 + on_noise.square().sum()
    return (constant + on_start * mean).item(), variance.sqrt().item()


def arc(steps: int, high: float = 1.5, low: float = 0.1) -> Grid:
    """Even steps of the angle atan(sigma / alpha), with noise left at the end."""
    angles = [high + (low - high) * i / steps for i in range(steps + 1)]
    return tuple(Point(0.0, math.cos(angle), math.sin(angle)) for angle in angles)


# The relative error of the standard deviation that 1000 steps may have: first order about 1/N, second order what
# the last step to alpha = 1 leaves. fixed_small has the least of the two extreme variances, so it falls short most.
TOLERANCE = {
    "ddpm": 1.2e-2,
    "ddpm_large": 1e-3,
    "ddim": 6e-3,
    "plms": 1e-3,
    "euler": 6e-3,
    "euler_a": 1.2e-2,
    "heun": 2e-3,
    "dpm++_2m": 2e-3,
    "dpm++_2m_sde": 1e-3,
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("key", SOLVERS)
def test_samplers_recover_a_gaussian(key: str, process: str) -> None:
    grid = SAMPLERS[key].grid(PROCESSES[process], 1000)
    mean, std = law(SAMPLERS[key].rule, gaussian(MU, S), grid, *marginal(grid[0], MU, S))
    assert mean == pytest.approx(MU, abs=1e-9)
    assert std == pytest.approx(S, rel=TOLERANCE[key])


@pytest.mark.parametrize(("mu", "s"), [(-3.0, 0.2), (0.0, 1.0), (0.3, 3.0)])
@pytest.mark.parametrize("key", SOLVERS)
def test_samplers_recover_other_gaussians(key: str, mu: float, s: float) -> None:
    """Far from the data's scale and near it; from half of the way too, as image-to-image starts."""
    grid = SAMPLERS[key].grid(STABLE_DIFFUSION, 500, "trailing")
    for begun in (grid, grid[250:]):
        mean, std = law(SAMPLERS[key].rule, gaussian(mu, s), begun, *marginal(begun[0], mu, s))
        assert mean == pytest.approx(mu, abs=1e-9)
        assert std == pytest.approx(s, rel=0.07)


def test_a_wrong_start_shows() -> None:
    """These tests would see a sampler that is wrong: a mean that is off by 1 stays off."""
    grid = SAMPLERS["ddim"].grid(STABLE_DIFFUSION, 200)
    mean, std = marginal(grid[0], MU, S)
    assert abs(law(SAMPLERS["ddim"].rule, gaussian(MU, S), grid, mean + 1, std)[0] - MU) > 0.1


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("key", SOLVERS)
def test_a_single_point_is_exact_in_any_number_of_steps(key: str, process: str) -> None:
    """With s = 0 the path is a straight line and every rule, but the larger variance of DDPM, is exact on it."""
    grid = SAMPLERS[key].grid(PROCESSES[process], 7, "trailing")
    walk = (*grid[:-1], PROCESSES[process].point(5.0))
    mean, std = law(SAMPLERS[key].rule, gaussian(MU, 0.0), walk, *marginal(walk[0], MU, 0.0))
    expected = marginal(walk[-1], MU, 0.0)
    if key == "ddpm_large":
        assert std > expected[1] * 1.1
    else:
        assert (mean, std) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_larger_variance_of_ddpm_is_exact_for_unit_data(steps: int) -> None:
    """Ho et al., section 3.2: beta_t is optimal for data N(0, 1), the posterior's for a point."""
    grid = arc(steps)
    assert law(SAMPLERS["ddpm_large"].rule, gaussian(0.0, 1.0), grid, 0.0, 1.0)[1] == pytest.approx(1, abs=1e-12)
    assert law(SAMPLERS["ddpm"].rule, gaussian(0.0, 1.0), grid, 0.0, 1.0)[1] < 0.99


def error_of(key: str, grid: Grid) -> float:
    std = law(SAMPLERS[key].rule, gaussian(MU, S), grid, *marginal(grid[0], MU, S))[1]
    return abs(std - marginal(grid[-1], MU, S)[1])


FIRST_ORDER = ["ddpm", "ddpm_large", "ddim", "euler", "euler_a"]
SECOND_ORDER = ["heun", "plms", "dpm++_2m", "dpm++_2m_sde"]


@pytest.mark.parametrize("key", FIRST_ORDER)
@pytest.mark.parametrize("steps", [40, 80])
def test_first_order(key: str, steps: int) -> None:
    """Twice the steps, half the error."""
    assert error_of(key, arc(steps)) / error_of(key, arc(2 * steps)) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("key", SECOND_ORDER)
@pytest.mark.parametrize("steps", [40, 80])
def test_second_order(key: str, steps: int) -> None:
    """Twice the steps, a quarter of the error.

    PLMS has four terms but is of order 2 here: its weights are for even steps of sigma / alpha, which these are not.
    """
    assert error_of(key, arc(steps)) / error_of(key, arc(2 * steps)) == pytest.approx(4, abs=0.4)
    assert error_of(key, arc(steps)) < error_of("ddim", arc(steps)) / 2


@pytest.mark.parametrize(
    ("key", "least", "most"), [("ddim", 1.9, 2.1), ("plms", 3.6, 4.5), ("heun", 3.3, 4.5), ("dpm++_2m", 3.2, 4.5)]
)
@pytest.mark.parametrize("steps", [100, 200])
def test_orders_on_a_flow(key: str, least: float, most: float, steps: int) -> None:
    """From pure noise, where the first step is Euler's, to clean, where the last one is."""
    errors = [error_of(key, SAMPLERS[key].grid(FLOW, n, "trailing")) for n in (steps, 2 * steps)]
    assert least < errors[0] / errors[1] < most


@pytest.mark.parametrize(("process", "pure_noise"), [("sd", False), ("zero-snr", True), ("flow", True)])
@pytest.mark.parametrize("key", SAMPLERS)
def test_what_a_run_costs(key: str, process: str, pure_noise: bool) -> None:
    """Calls of the network in 10 steps."""
    levels: list[float] = []

    def denoise(x_t: Tensor, at: Point) -> Estimate:
        levels.append(at.sigma)
        return gaussian(MU, S)(x_t, at)

    grid = SAMPLERS[key].grid(PROCESSES[process], 10, "trailing")
    list(SAMPLERS[key].rule(denoise, torch.zeros(1), grid, torch.randn_like))
    # Heun is Euler where a noise level is infinite or nothing is left; PLMS starts with one step of two calls
    expected = {"heun": 18 if pure_noise else 19, "plms": 11}.get(key, 10)
    assert len(levels) == expected
    assert min(levels) > 0


def mixture(x_t: Tensor, at: Point) -> Estimate:
    """The best estimate for data of three Gaussians, where eps bends along the way."""
    means, stds, weights = torch.tensor([[-2.0, 0.5, 3.0], [0.3, 0.2, 0.5], [0.3, 0.3, 0.4]], dtype=torch.float64)
    variance = at.alpha**2 * stds**2 + at.sigma**2
    centred = x_t[:, None] - at.alpha * means
    share = (weights.log() - (variance.log() + centred**2 / variance) / 2).softmax(1)
    x0 = (share * (means + at.alpha * stds**2 / variance * centred)).sum(1)
    return Estimate(x0, (x_t - at.alpha * x0) / at.sigma)


@pytest.mark.parametrize(("key", "most"), [("ddim", 0.2), ("plms", 0.01), ("heun", 0.05), ("dpm++_2m", 0.07)])
def test_solvers_find_the_path_of_a_mixture_from_pure_noise(key: str, most: float) -> None:
    """Against the same path in 1000 steps: mean error of 10 steps, for data whose standard deviation is 2."""
    start = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)

    def end(rule: Rule, steps: int) -> Tensor:
        grid = tuple(FLOW.point(1000 - 980 * i / steps) for i in range(steps + 1))
        return list(rule(mixture, start, grid, torch.randn_like))[-1].x

    error = (end(SAMPLERS[key].rule, 10) - end(SAMPLERS["heun"].rule, 1000)).abs().mean().item()
    assert error < most


def consistency(mu: float, s: float) -> Estimator:
    """A perfect latent consistency model of data N(mu, s^2).

    The probability-flow ODE keeps a sample's distance from the mean in standard deviations, so its end is

        f(x_t, t) = mu + s (x_t - alpha mu) / sqrt(alpha^2 s^2 + sigma^2)

    The sampler mixes x_t into what the network says, to meet f(x, 0) = x; the network says what makes f of it.
    """

    def denoise(x_t: Tensor, at: Point) -> Estimate:
        mean, std = marginal(at, mu, s)
        end = mu + s * (x_t - mean) / std
        scaled = 10 * at.t / 0.5  # timestep_scaling over sigma_data
        x0 = (end - x_t / (scaled**2 + 1)) * math.sqrt(scaled**2 + 1) / scaled
        return Estimate(x0, x_t * math.nan)  # LCM must not use eps

    return denoise


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("process", PROCESSES)
def test_lcm_recovers_a_gaussian_exactly(process: str, steps: int) -> None:
    grid = SAMPLERS["lcm"].grid(PROCESSES[process], steps)
    found = law(lcm, consistency(MU, S), grid, *marginal(grid[0], MU, S))
    assert found == pytest.approx((MU, S), rel=1e-9)


def test_lcm_with_a_plain_denoiser_loses_the_variance() -> None:
    grid = SAMPLERS["lcm"].grid(STABLE_DIFFUSION, 4)
    mean, std = law(lcm, gaussian(MU, S), grid, *marginal(grid[0], MU, S))
    assert mean == pytest.approx(MU, rel=1e-4)
    assert std < 0.8 * S


def test_lcm_leaves_a_clean_sample_as_it_is() -> None:
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    grid = (STABLE_DIFFUSION.point(0), CLEAN)
    (step,) = lcm(gaussian(MU, S), x, grid, torch.randn_like)
    torch.testing.assert_close(step.x, x)


def network_of(process: Process, prediction: str, mu: float, s: float) -> Denoiser:
    """A denoiser whose network outputs v, flow or x0 of the best estimate."""
    best = gaussian(mu, s)

    def net(x_t: Tensor, t: Tensor) -> Tensor:
        at = process.point(round(t[0].item(), 3))
        return target(prediction, *best(x_t, at), at.alpha, at.sigma)

    return Denoiser(net, process, prediction)


@pytest.mark.parametrize("mu", [5.0, 100.0])
@pytest.mark.parametrize(
    ("process", "prediction"), [("zero-snr", "v"), ("zero-snr", "x0"), ("flow", "flow"), ("flow", "v")]
)
@pytest.mark.parametrize("key", SAMPLERS)
def test_from_pure_noise_the_mean_is_right(key: str, process: str, prediction: str, mu: float) -> None:
    """alpha = 0 at the start: no NaN, and the start N(0, 1) does not know the mean, however large it is."""
    sampler, there = SAMPLERS[key], PROCESSES[process]
    grid = sampler.grid(there, 20, "lcm" if key == "lcm" and process == "zero-snr" else "trailing")
    assert grid[0].alpha == 0
    generator = torch.Generator().manual_seed(11)
    start = there.noise((4000, 1), generator)
    denoiser = network_of(there, prediction, mu, S)
    walk = list(sample(sampler, denoiser, start, grid, lambda x: there.noise(x.shape, generator), there))
    assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in walk)
    assert len(walk) == 20
    assert walk[-1].x.mean().item() == pytest.approx(mu, abs=5 * S / math.sqrt(4000) + 1e-4 * mu)


def test_without_pure_noise_a_large_mean_is_missed() -> None:
    """Why zero terminal SNR is there (Lin et al. 2023): N(0, 1) is not the marginal of x_T when alpha_T > 0."""
    grid = SAMPLERS["ddim"].grid(STABLE_DIFFUSION, 200, "trailing")
    assert law(SAMPLERS["ddim"].rule, gaussian(5.0, S), grid, 0.0, 1.0)[0] < 4.9
