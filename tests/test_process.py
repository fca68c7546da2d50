"""Processes against closed forms, against Bayes' rule done numerically, and against diffusers' betas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion.process import (
    CLEAN,
    DiscreteProcess,
    FlowProcess,
    Point,
    betas_for,
    per_sample,
    posterior,
    transition,
    zero_terminal_snr,
)
from ldm.errors import UserError

SCHEDULES = {  # ours -> (diffusers' name, start, end)
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 0.0, 0.0),
}
LENGTHS = [2, 3, 10, 77, 1000]


def betas_of(schedule: str, steps: int = 1000) -> torch.Tensor:
    _, start, end = SCHEDULES[schedule]
    return betas_for(schedule, steps, start, end)


STABLE_DIFFUSION = DiscreteProcess(betas_of("scaled_linear"))
ZERO_SNR = DiscreteProcess(zero_terminal_snr(betas_of("scaled_linear")))
FLOW = FlowProcess(1000)


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_equal_diffusers(schedule: str, steps: int) -> None:
    name, start, end = SCHEDULES[schedule]
    theirs = DDPMScheduler(steps, start, end, beta_schedule=name).betas
    ours = betas_of(schedule, steps)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr(schedule: str, steps: int) -> None:
    betas = betas_of(schedule, steps)
    process, plain = DiscreteProcess(zero_terminal_snr(betas)), DiscreteProcess(betas)
    assert process.point(steps - 1) == Point(steps - 1, 0.0, 1.0)
    assert process.alphas_cumprod[0].item() == pytest.approx(plain.alphas_cumprod[0].item(), rel=1e-14)
    assert (process.alphas_cumprod.diff() < 0).all()
    theirs = rescale_zero_terminal_snr(betas)  # in float64, as theirs loses digits in float32
    torch.testing.assert_close(process.betas, theirs, rtol=1e-9, atol=1e-12)


def test_linear_betas_in_numbers() -> None:
    assert betas_for("linear", 3, 1e-4, 0.02).tolist() == pytest.approx([1e-4, 0.01005, 0.02])
    assert betas_for("scaled_linear", 3, 0.01, 0.09).tolist() == pytest.approx([0.01, 0.04, 0.09])
    assert betas_of("cosine")[-1].item() == 0.999


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.2], [0.1, math.nan], [0.1, 1.0, 0.1], [[0.1, 0.2]]], ids=str)
def test_betas_that_make_no_process(betas: list) -> None:
    with pytest.raises(UserError, match="betas"):
        DiscreteProcess(torch.tensor(betas))


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"scaled_liner.*did you mean 'scaled_linear'"):
        betas_for("scaled_liner", 10, 0.1, 0.2)
    with pytest.raises(UserError, match=r"unifrom.*did you mean 'uniform'"):
        FlowProcess(noise_kind="unifrom")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("betas", [betas_of("linear", 60), zero_terminal_snr(betas_of("cosine", 60))])
def test_direct_noising_is_the_composition_of_single_steps(betas: torch.Tensor) -> None:
    process = DiscreteProcess(betas)
    mean, variance, before = 1.0, 0.0, CLEAN
    for t, beta in enumerate(betas.tolist()):
        factor, spread = transition(before, process.point(t))
        assert factor == pytest.approx(math.sqrt(1 - beta), abs=1e-9)  # Ho et al., equation 2
        assert spread == pytest.approx(math.sqrt(beta), abs=1e-9)
        mean, variance, before = factor * mean, factor**2 * variance + spread**2, process.point(t)
        assert mean == pytest.approx(before.alpha, abs=1e-12)
        assert variance == pytest.approx(before.sigma**2, abs=1e-12)


@pytest.mark.parametrize(
    "process", [DiscreteProcess(betas_of("linear", 40)), FlowProcess(40)], ids=["discrete", "flow"]
)
def test_direct_noising_and_a_simulated_chain_have_the_same_distribution(
    process: DiscreteProcess | FlowProcess,
) -> None:
    generator = torch.Generator().manual_seed(0)
    count, x0 = 200_000, 1.5
    x, before = torch.full((count,), x0), CLEAN
    stop = 30
    for t in range(1, stop + 1):
        factor, spread = transition(before, process.point(t))
        x, before = factor * x + spread * process.noise((count,), generator), process.point(t)
    direct = process.add_noise(torch.full((count,), x0), process.noise((count,), generator), torch.full((count,), stop))
    error = 4 / math.sqrt(count)  # four standard errors of a mean of unit variables
    assert x.mean().item() == pytest.approx(direct.mean().item(), abs=2 * error)
    assert x.std().item() == pytest.approx(direct.std().item(), abs=2 * error)
    assert direct.mean().item() == pytest.approx(before.alpha * x0, abs=error)


@st.composite
def two_points(draw: st.DrawFn) -> tuple[Point, Point]:
    """Two places s before t of one process, both noisy."""
    process = draw(st.sampled_from([STABLE_DIFFUSION, ZERO_SNR, FLOW]))
    s = draw(st.floats(process.first, process.last - 1))
    t = draw(st.floats(s + 0.5, process.last))
    return process.point(s), process.point(t)


@given(two_points(), st.floats(-3, 3), st.floats(-3, 3))
def test_posterior_is_bayes_rule(points: tuple[Point, Point], x_t: float, x0: float) -> None:
    """The product of the Gaussians N(alpha_s x0, sigma_s^2) and, as a function of x_s, q(x_t | x_s)."""
    s, t = points
    factor = t.alpha / s.alpha
    spread = t.sigma**2 - factor**2 * s.sigma**2
    precision = 1 / s.sigma**2 + factor**2 / spread
    mean = (s.alpha * x0 / s.sigma**2 + factor * x_t / spread) / precision
    found, variance = posterior(torch.tensor(x_t).double(), torch.tensor(x0).double(), t, s)
    assert found.item() == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert variance == pytest.approx(1 / precision, rel=1e-6)


@pytest.mark.parametrize("process", [STABLE_DIFFUSION, ZERO_SNR, FLOW], ids=["sd", "zero-snr", "flow"])
@pytest.mark.parametrize(("early", "late"), [(100, 300), (500, 999), (10, 11)])
def test_posterior_is_bayes_rule_on_a_fine_grid(process: DiscreteProcess | FlowProcess, early: int, late: int) -> None:
    s, t, x_t, x0 = process.point(early), process.point(late), 0.7, -0.4
    x_s = np.linspace(-8, 8, 400_001)
    factor, spread = transition(s, t)
    log_density = -((x_s - s.alpha * x0) ** 2) / (2 * s.sigma**2) - (x_t - factor * x_s) ** 2 / (2 * spread**2)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = (density * x_s).sum()
    found, variance = posterior(torch.tensor(x_t).double(), torch.tensor(x0).double(), t, s)
    assert found.item() == pytest.approx(mean, abs=1e-7)
    assert variance == pytest.approx((density * (x_s - mean) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize("t", [1, 2, 250, 999])
def test_posterior_has_the_coefficients_of_ho_et_al(t: int) -> None:
    betas = betas_of("linear").numpy()
    alpha_bar = np.cumprod(1 - betas)
    process = DiscreteProcess(torch.from_numpy(betas))
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    on_x_t, variance = posterior(one, zero, process.point(t), process.point(t - 1))
    on_x0, _ = posterior(zero, one, process.point(t), process.point(t - 1))
    assert on_x0.item() == pytest.approx(math.sqrt(alpha_bar[t - 1]) * betas[t] / (1 - alpha_bar[t]), rel=1e-9)
    kept = math.sqrt(1 - betas[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    assert on_x_t.item() == pytest.approx(kept, rel=1e-9)
    assert variance == pytest.approx((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * betas[t], rel=1e-9)


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 1.0), ("uniform", 1 / 3)])
def test_flow_noise_has_the_mean_and_variance_of_its_kind(kind: str, variance: float) -> None:
    process = FlowProcess(1000, noise_kind=kind)  # pyright: ignore[reportArgumentType]
    eps = process.noise((200_000,), torch.Generator().manual_seed(1))
    x_t = process.add_noise(torch.full_like(eps, 0.5), eps, torch.full(eps.shape, 400.0))
    assert x_t.mean().item() == pytest.approx(0.6 * 0.5, abs=4 * 0.4 / math.sqrt(200_000))
    assert x_t.var().item() == pytest.approx(0.4**2 * variance, rel=0.02)
    if kind == "uniform":
        assert eps.min() >= -1
        assert eps.max() <= 1


def test_add_noise_is_per_sample() -> None:
    x0, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = torch.tensor([0, 500, 999])
    x_t = STABLE_DIFFUSION.add_noise(x0, eps, t)
    for i, time in enumerate(t.tolist()):
        at = STABLE_DIFFUSION.point(time)
        torch.testing.assert_close(x_t[i], at.alpha * x0[i] + at.sigma * eps[i])
    assert per_sample(t, x0).shape == (3, 1, 1, 1)


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(1, 1000))
def test_discrete_times_are_0_to_last(uniform: float, steps: int) -> None:
    process = DiscreteProcess(betas_of("linear", steps))
    time = process.draw_times(torch.tensor([uniform]))
    assert time.dtype == torch.int64
    assert time.item() == min(int(np.float32(uniform) * np.float32(steps)), steps - 1)


def test_discrete_times_are_all_equally_likely() -> None:
    times = STABLE_DIFFUSION.draw_times(torch.arange(100_000) / 100_000)
    assert (times.bincount(minlength=1000) - 100).abs().max() <= 1


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(1, 1000))
def test_flow_times_never_reach_0(uniform: float, steps: int) -> None:
    time = FlowProcess(steps).draw_times(torch.tensor([uniform])).item()
    assert 0 < time <= steps


@pytest.mark.parametrize("process", [STABLE_DIFFUSION, ZERO_SNR, FLOW], ids=["sd", "zero-snr", "flow"])
def test_point_equals_the_training_table_and_lies_on_its_curve(process: DiscreteProcess | FlowProcess) -> None:
    times = torch.arange(1, 1000)
    alpha, sigma = process.alpha_sigma(times)
    assert alpha.dtype == sigma.dtype == torch.float32
    points = [process.point(t) for t in times.tolist()]
    torch.testing.assert_close(alpha, torch.tensor([p.alpha for p in points]))
    torch.testing.assert_close(sigma, torch.tensor([p.sigma for p in points]))


@given(st.sampled_from([STABLE_DIFFUSION, ZERO_SNR]), st.floats(0, 999))
def test_points_between_whole_times_are_on_the_unit_circle_and_in_order(process: DiscreteProcess, t: float) -> None:
    at, low, high = process.point(t), process.point(math.floor(t)), process.point(math.ceil(t))
    assert at.alpha**2 + at.sigma**2 == pytest.approx(1, abs=1e-12)
    assert low.ratio * (1 - 1e-12) <= at.ratio <= high.ratio * (1 + 1e-12)
    if math.isfinite(high.ratio):  # k-diffusion and diffusers interpolate sigma / alpha
        assert at.ratio == pytest.approx(low.ratio + (t - low.t) * (high.ratio - low.ratio))


@given(st.sampled_from([STABLE_DIFFUSION, ZERO_SNR, FLOW]), st.integers(1, 998))
def test_point_at_ratio_inverts_point_at_whole_times(process: DiscreteProcess | FlowProcess, t: int) -> None:
    there = process.point(t)
    back = process.point_at_ratio(there.ratio)
    assert back == pytest.approx(tuple(there), rel=1e-9)


@given(st.sampled_from([STABLE_DIFFUSION, ZERO_SNR, FLOW]), st.floats(0.04, 14), st.floats(1.001, 1.5))
def test_point_at_ratio_has_that_ratio_and_a_time_beside_it(
    process: DiscreteProcess | FlowProcess, ratio: float, more: float
) -> None:
    at = process.point_at_ratio(ratio)
    assert at.sigma / at.alpha == pytest.approx(ratio, rel=1e-12)
    assert process.point(math.floor(at.t)).ratio <= ratio * (1 + 1e-9)
    assert process.point(min(math.floor(at.t) + 1, process.last)).ratio >= min(ratio, 14.6) * (1 - 1e-9)
    assert process.point_at_ratio(ratio * more).t > at.t or ratio * more > 14.6


@pytest.mark.parametrize("process", [STABLE_DIFFUSION, FLOW], ids=["discrete", "flow"])
@pytest.mark.parametrize("t", [-1, 1001, math.nan])
def test_times_outside_the_process(process: DiscreteProcess | FlowProcess, t: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        process.point(t)


def test_ratio_of_a_point() -> None:
    assert Point(0, 0.6, 0.8).ratio == pytest.approx(4 / 3)
    assert Point(999, 0.0, 1.0).ratio == math.inf
    assert CLEAN.ratio == 0
