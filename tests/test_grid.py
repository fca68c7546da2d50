"""Time grids against diffusers' ``set_timesteps``."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion.grid import AYS, RATIOS, Grid, beta_quantiles, karras, time_grid
from ldm.diffusion.prediction import Estimate
from ldm.diffusion.process import CLEAN, DiscreteProcess, FlowProcess, Point, betas_for, zero_terminal_snr
from ldm.diffusion.samplers import SAMPLERS, find_sampler
from ldm.errors import UserError

# diffusers reads float32 tensors as numpy arrays in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = [1, 2, 3, 4, 7, 10, 20, 25, 30, 48, 50, 77, 100]
LENGTHS = [100, 250, 1000]


def process_of(length: int = 1000) -> DiscreteProcess:
    return DiscreteProcess(betas_for("scaled_linear", length, 0.00085, 0.012))


def times_of(grid: Grid) -> list[float]:
    """The times at which the network is asked."""
    return [point.t for point in grid[:-1]]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_whole_times_equal_ddim(spacing: str, length: int) -> None:
    scheduler = DDIMScheduler(length, **SD_BETAS, timestep_spacing=spacing)
    for steps in (*STEPS, length):
        scheduler.set_timesteps(steps)
        grid = time_grid(process_of(length), steps, spacing)
        assert times_of(grid) == scheduler.timesteps.tolist(), steps
        assert grid[-1] == CLEAN


@pytest.mark.parametrize("offset", [0, 1])
def test_leading_with_the_offset_of_stable_diffusion(offset: int) -> None:
    scheduler = DDIMScheduler(1000, **SD_BETAS, timestep_spacing="leading", steps_offset=offset)
    for steps in (*STEPS, 333, 500):
        scheduler.set_timesteps(steps)
        assert times_of(time_grid(process_of(), steps, offset=offset)) == scheduler.timesteps.tolist()


def test_at_all_times_there_is_no_room_for_an_offset() -> None:
    """diffusers asks for time T there, which its own table does not have."""
    assert times_of(time_grid(process_of(100), 100, offset=1)) == list(range(99, -1, -1))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_fractional_times_and_noise_levels_equal_euler(spacing: str, length: int) -> None:
    scheduler = EulerDiscreteScheduler(length, **SD_BETAS, timestep_spacing=spacing)
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        grid = time_grid(process_of(length), steps, spacing, whole=False)
        np.testing.assert_allclose(times_of(grid), scheduler.timesteps, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose([point.ratio for point in grid], scheduler.sigmas, rtol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_spacings_by_noise_level_equal_euler(spacing: str, length: int) -> None:
    scheduler = EulerDiscreteScheduler(length, **SD_BETAS, **{f"use_{spacing}_sigmas": True})
    for steps in STEPS[1:]:
        scheduler.set_timesteps(steps)
        grid = time_grid(process_of(length), steps, spacing, whole=False)
        np.testing.assert_allclose([point.ratio for point in grid], scheduler.sigmas, rtol=1e-4)
        # where sigma / alpha is flat in t, its float32 in diffusers blurs t
        np.testing.assert_allclose(times_of(grid), scheduler.timesteps, rtol=1e-4, atol=0.02)


@pytest.mark.parametrize("spacing", ["exponential", "beta"])
def test_spacings_by_noise_level_equal_dpm_solver(spacing: str) -> None:
    """It cuts the fraction of a time off, here it is rounded: at most one apart."""
    scheduler = DPMSolverMultistepScheduler(1000, **SD_BETAS, **{f"use_{spacing}_sigmas": True})
    for steps in STEPS[1:]:
        scheduler.set_timesteps(steps)
        grid = time_grid(process_of(), steps, spacing)
        np.testing.assert_allclose([point.ratio for point in grid], scheduler.sigmas, rtol=1e-4)
        np.testing.assert_allclose(times_of(grid), scheduler.timesteps, atol=1)


AYS_NAMES = {"ays": "StableDiffusion", "ays_xl": "StableDiffusionXL"}


@pytest.mark.parametrize("spacing", AYS)
def test_align_your_steps_at_10_steps_equals_diffusers(spacing: str) -> None:
    levels, times = (AysSchedules[AYS_NAMES[spacing] + kind] for kind in ("Sigmas", "Timesteps"))
    scheduler = EulerDiscreteScheduler(1000, **SD_BETAS)
    scheduler.set_timesteps(sigmas=levels)
    grid = time_grid(process_of(), 10, spacing, whole=False)
    np.testing.assert_allclose([point.ratio for point in grid], scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(times_of(grid), scheduler.timesteps, rtol=1e-4, atol=0.02)
    np.testing.assert_allclose(times_of(time_grid(process_of(), 10, spacing)), times, atol=1)


@pytest.mark.parametrize("spacing", AYS)
def test_align_your_steps_bends_only_at_the_rows_of_its_table(spacing: str) -> None:
    """20 steps pass through every row, and half of the way between two in log sigma; 5 steps are every other row."""
    levels = np.array([point.ratio for point in time_grid(process_of(), 20, spacing)[:-1]])
    np.testing.assert_allclose(levels[::2], AYS[spacing][:-1])
    np.testing.assert_allclose(levels[1:-1:2] ** 2, levels[:-2:2] * levels[2::2])
    assert levels[-1] ** 2 == pytest.approx(levels[-2] * AYS[spacing][-1])
    np.testing.assert_allclose([p.ratio for p in time_grid(process_of(), 5, spacing)[:-1]], AYS[spacing][:-1:2])


@pytest.mark.parametrize("spacing", AYS)
@pytest.mark.parametrize("end", [0.002, 0.02])
def test_align_your_steps_needs_its_noise_levels(spacing: str, end: float) -> None:
    process = DiscreteProcess(betas_for("linear", 100, 0.0001, end))
    with pytest.raises(UserError, match=rf"{spacing} spacing is a table of sigma / alpha from 14.615 to 0.029"):
        time_grid(process, 10, spacing)


@pytest.mark.parametrize("shape", [0.3, 0.6, 1.0, 2.5])
def test_beta_quantiles_equal_scipy(shape: float) -> None:
    shares = [0.0, 1e-6, 1e-4, *np.linspace(0.01, 0.99, 99), 0.9999, 1.0]
    expected = scipy.stats.beta.ppf(shares, shape, shape)
    np.testing.assert_allclose(beta_quantiles(shares, shape), expected, rtol=1e-11)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "karras"])
def test_times_and_noise_levels_equal_dpm_solver(spacing: str, length: int) -> None:
    asked = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = DPMSolverMultistepScheduler(length, **SD_BETAS, **asked)
    for steps in STEPS[:-1]:
        scheduler.set_timesteps(steps)
        grid = time_grid(process_of(length), steps, spacing, skip_last=True)
        assert times_of(grid) == scheduler.timesteps.tolist(), steps
        np.testing.assert_allclose([point.ratio for point in grid], scheduler.sigmas, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 8, 12, 25, 50])
@pytest.mark.parametrize("length", LENGTHS)
def test_lcm_times_equal_diffusers(length: int, steps: int) -> None:
    scheduler = LCMScheduler(length)
    scheduler.set_timesteps(steps)
    assert times_of(time_grid(process_of(length), steps, "lcm")) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", STEPS)
def test_linspace_of_a_flow_equals_flow_match_euler(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(1000)
    scheduler.set_timesteps(steps)
    grid = time_grid(FlowProcess(1000), steps, "linspace")
    np.testing.assert_allclose(times_of(grid), scheduler.timesteps, rtol=1e-6)
    np.testing.assert_allclose([point.sigma for point in grid], scheduler.sigmas, atol=1e-6)


def test_trailing_of_a_flow_is_even_and_ends_clean() -> None:
    grid = time_grid(FlowProcess(1000), 5, "trailing")
    assert [point.sigma for point in grid] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


def test_the_end_of_the_grid() -> None:
    process = process_of()
    first = time_grid(process, 10, end="first")[-1]
    assert first.alpha == pytest.approx(math.sqrt(1 - 0.00085))
    assert time_grid(process, 10, end="clean")[-1] == (0.0, 1.0, 0.0)


@given(st.integers(1, 1200), st.data())
def test_every_grid_falls_from_noise_to_clean(length: int, data: st.DataObject) -> None:
    process = process_of(length)
    steps = data.draw(st.integers(1, length), "steps")
    spacing = data.draw(
        st.sampled_from(["leading", "linspace", "trailing", "karras", "exponential", "beta"]), "spacing"
    )
    offset = data.draw(st.integers(0, 2), "offset")
    grid = time_grid(process, steps, spacing, offset=offset, whole=data.draw(st.booleans(), "whole"))
    ratios = [point.ratio for point in grid]
    assert len(grid) == steps + 1
    assert all(now > to for now, to in pairwise(ratios))
    assert all(0 <= point.t <= length - 1 for point in grid)
    assert all(point.alpha**2 + point.sigma**2 == pytest.approx(1) for point in grid)


def test_karras_is_linear_in_the_power_1_over_rho() -> None:
    roots = np.array(karras(14.6, 0.03, 12, rho=5.0)) ** (1 / 5.0)
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "lcm", *RATIOS])
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(spacing: str, steps: int) -> None:
    with pytest.raises(UserError, match=f"steps must be .* got {steps}"):
        time_grid(process_of(), steps, spacing)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_no_steps_of_a_flow(spacing: str) -> None:
    with pytest.raises(UserError, match="steps must be 1 or more, got 0"):
        time_grid(FlowProcess(), 0, spacing)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "lcm"])
def test_more_steps_than_times(spacing: str) -> None:
    with pytest.raises(UserError, match=r"between 1 and 100 .*got 101"):
        time_grid(process_of(100), 101, spacing)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_dpm_solver_at_all_times(spacing: str) -> None:
    """It lays one more time than it uses while there is one; diffusers lays one twice here and divides by 0."""
    assert times_of(time_grid(process_of(100), 99, spacing, skip_last=True)) == list(range(99, 0, -1))
    assert times_of(time_grid(process_of(100), 100, spacing, skip_last=True)) == list(range(99, -1, -1))
    with pytest.raises(UserError, match=r"between 1 and 100 .*got 101"):
        time_grid(process_of(100), 101, spacing, skip_last=True)


def test_more_steps_than_lcm_has() -> None:
    with pytest.raises(UserError, match="lcm takes at most 50 steps, got 51"):
        time_grid(process_of(), 51, "lcm")


@pytest.mark.parametrize(
    ("process", "spacing", "message"),
    [
        (process_of(), "trailling", r"unknown spacing 'trailling'; did you mean 'trailing'\? \(one of: leading, "),
        (FlowProcess(), "leading", r"unknown spacing 'leading'.*\(one of: trailing, linspace\)"),
        (FlowProcess(), "karras", r"unknown spacing 'karras'.*\(one of: trailing, linspace\)"),
        (FlowProcess(), "ays", r"unknown spacing 'ays'.*\(one of: trailing, linspace\)"),
    ],
)
def test_unknown_spacing(process: DiscreteProcess | FlowProcess, spacing: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        time_grid(process, 10, spacing)


def test_unknown_end() -> None:
    with pytest.raises(UserError, match="end of the grid 'zero'"):
        time_grid(process_of(), 10, end="zero")


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_spacings_by_noise_level_cannot_start_at_infinite_noise(spacing: str) -> None:
    process = DiscreteProcess(zero_terminal_snr(betas_for("linear", 100, 1e-4, 0.02)))
    with pytest.raises(UserError, match=f"{spacing} spacing needs .* use trailing with zero terminal SNR"):
        time_grid(process, 10, spacing)


def test_grid_holds_plain_floats() -> None:
    for spacing in ("leading", "linspace", "trailing", "lcm", *RATIOS):
        for point in time_grid(process_of(), 10, spacing):
            assert [type(value) for value in point] == [float] * 3
    assert not isinstance(time_grid(FlowProcess(), 3, "trailing")[0].t, torch.Tensor | np.floating)


@pytest.mark.parametrize("key", ["euler", "heun", "dpm++_2m", "dpm++_2m_sde", "euler_a", "ddpm", "plms"])
@pytest.mark.parametrize("spacing", RATIOS)
def test_samplers_on_these_times_recover_a_gaussian(spacing: str, key: str) -> None:
    """In x_T = alpha mu + sqrt(alpha^2 s^2 + sigma^2) z, for data N(mu, s^2) whose best estimate is linear."""
    mu, s = 1.5, 0.5

    def denoise(x_t: torch.Tensor, at: Point) -> Estimate:
        centred = (x_t - at.alpha * mu) / (at.alpha**2 * s**2 + at.sigma**2)
        return Estimate(mu + at.alpha * s**2 * centred, at.sigma * centred)

    generator = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    grid = SAMPLERS[key].grid(process_of(), 200, spacing)
    start = noise(torch.empty(20000))
    x = grid[0].alpha * mu + math.hypot(grid[0].alpha * s, grid[0].sigma) * start
    made = [step.x for step in SAMPLERS[key].rule(denoise, x, grid, noise)][-1]
    assert made.mean().item() == pytest.approx(mu, abs=0.015)
    assert made.std().item() == pytest.approx(s, rel=0.06)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("DPM++ 2M Karras", "karras"),
        ("DPM++ 2M Exponential", "exponential"),
        ("DPM++ 2M Beta", "beta"),
        ("DPM++ 2M AYS", "ays"),
        ("DPM++ 2M Align Your Steps", "ays"),
        ("dpm++_2m_ays_xl", "ays_xl"),
        ("DPM++ 2M", "linspace"),
    ],
)
def test_a_sampler_by_its_name_and_spacing(name: str, spacing: str) -> None:
    assert find_sampler(name).rule is SAMPLERS["dpm++_2m"].rule
    assert find_sampler(name).spacing == spacing
