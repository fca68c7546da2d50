"""Every sampler against diffusers' scheduler of its name, step for step, on one small random network.

Both sides see the same start, the same network and generators of the same seed. diffusers' Euler and Heun walk in
the variance-exploding variable x / alpha with noise level sigma / alpha: they start at x / alpha, and what they
give is multiplied by alpha = 1 / sqrt(1 + (sigma / alpha)^2) before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from torch import Tensor, nn

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.grid import Grid, time_grid
from ldm.diffusion.prediction import convert
from ldm.diffusion.process import CLEAN, DiscreteProcess, FlowProcess, betas_for
from ldm.diffusion.samplers import SAMPLERS, Sampler, ddim, find_sampler, sample
from ldm.errors import UserError

# diffusers reads float32 tensors as numpy arrays in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESS = DiscreteProcess(betas_for("scaled_linear", 1000, 0.00085, 0.012))
THEIR_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
STEPS = [4, 10, 20, 25]
SPACINGS = ["leading", "linspace", "trailing"]


class TinyNet(nn.Module):
    """A fixed nonlinear function of x and t, of size about 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.into = nn.Conv2d(3, 8, 3, padding=1)
        self.time = nn.Linear(4, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        angles = t.float().reshape(-1, 1) / torch.tensor([20.0, 300.0])
        shift = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        return 2 * self.out(torch.tanh(self.into(x) + shift[:, :, None, None]))


NET = TinyNet().requires_grad_(False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start() -> Tensor:
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(8))


def our_steps(
    sampler: Sampler, grid: Grid, prediction: str = "epsilon", process: Any = PROCESS, clip: float | None = None
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    denoiser = Denoiser(NET, process, prediction, clip=clip)
    draw = partial(torch.randn, generator=generator)
    return [step.x for step in sample(sampler, denoiser, start(), grid, lambda x: draw(x.shape), process)]


Ask = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> what the scheduler takes for the network's output


def ask_net(x: Tensor, t: Tensor) -> Tensor:
    return NET(x, t.float().expand(len(x)))


def their_steps(
    scheduler: Any, steps: int, ask: Ask = ask_net, exploding: bool = False, **options: Any
) -> list[Tensor]:
    """What the scheduler returns at each of its timesteps; ``exploding``: it walks in x / alpha."""
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas if exploding else torch.zeros(2 * steps + 1)
    x = start() * (1 + levels[0] ** 2).sqrt()
    if "generator" in options:
        options["generator"] = torch.Generator().manual_seed(9)
    walk = []
    for index, t in enumerate(scheduler.timesteps):
        output = ask(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
        walk.append(x / (1 + levels[index + 1] ** 2).sqrt())
    return walk


def assert_same_walk(ours: list[Tensor], theirs: list[Tensor], steps: int) -> None:
    assert len(ours) == len(theirs) == steps
    largest = max(x.abs().max().item() for x in theirs)
    assert largest > 0.5
    for ours_x, theirs_x in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_x, theirs_x, rtol=0, atol=1e-4 * largest)


def test_the_network_is_nonlinear_and_depends_on_time() -> None:
    x, zero = start(), torch.zeros(2)
    assert (NET(2 * x, zero) - 2 * NET(x, zero) + NET(0 * x, zero)).std() > 0.05
    assert (NET(x, zero) - NET(x, zero + 500)).std() > 0.05
    assert 0.3 < NET(x, zero).std() < 3


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm(steps: int, variance: str, prediction: str) -> None:
    scheduler = DDPMScheduler(
        **BETAS, variance_type=variance, clip_sample=False, prediction_type=THEIR_PREDICTION[prediction]
    )
    sampler = SAMPLERS["ddpm" if variance == "fixed_small" else "ddpm_large"]
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    assert_same_walk(ours, their_steps(scheduler, steps, generator=True), steps)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddpm_on_other_times(spacing: str) -> None:
    scheduler = DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing)
    sampler = find_sampler(f"ddpm {spacing}")
    assert_same_walk(our_steps(sampler, sampler.grid(PROCESS, 25)), their_steps(scheduler, 25, generator=True), 25)


@pytest.mark.parametrize(
    ("length", "schedule", "prediction", "clip"),
    [
        (30, "linear", "epsilon", None),
        (30, "linear", "epsilon", 1.0),  # the clipping of Ho et al.'s code
        (30, "cosine", "v", None),
        (30, "cosine", "v", 0.5),
        (1000, "linear", "epsilon", None),
    ],
)
def test_ddpm_at_every_time(length: int, schedule: str, prediction: str, clip: float | None) -> None:
    """Ho et al.'s algorithm 2."""
    scheduler = DDPMScheduler(
        length,
        1e-4,
        0.02,
        beta_schedule={"cosine": "squaredcos_cap_v2"}.get(schedule, schedule),
        clip_sample=clip is not None,
        clip_sample_range=clip,
        prediction_type=THEIR_PREDICTION[prediction],
    )
    process = DiscreteProcess(betas_for(schedule, length, 1e-4, 0.02))
    grid = SAMPLERS["ddpm"].grid(process, length)
    ours = our_steps(SAMPLERS["ddpm"], grid, prediction, process, clip)
    assert_same_walk(ours, their_steps(scheduler, length, generator=True), length)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("steps", [*STEPS, 30, 50])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(steps: int, offset: int, to_one: bool, prediction: str) -> None:
    scheduler = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=to_one,
        steps_offset=offset,
        prediction_type=THEIR_PREDICTION[prediction],
    )
    grid = SAMPLERS["ddim"].grid(PROCESS, steps, offset=offset, end="clean" if to_one else "first")
    assert_same_walk(our_steps(SAMPLERS["ddim"], grid, prediction), their_steps(scheduler, steps), steps)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_eta(steps: int, to_one: bool, eta: float) -> None:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1)
    sampler = Sampler(partial(ddim, eta=eta), stochastic=True, model_end=True)
    grid = sampler.grid(PROCESS, steps, offset=1, end="clean" if to_one else "first")
    assert_same_walk(our_steps(sampler, grid), their_steps(scheduler, steps, eta=eta, generator=True), steps)


@pytest.mark.parametrize("steps", [4, 10, 20, 25])
def test_ddim_trailing_where_the_steps_divide_t(steps: int) -> None:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    sampler = find_sampler("ddim trailing")
    assert_same_walk(our_steps(sampler, sampler.grid(PROCESS, steps)), their_steps(scheduler, steps), steps)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 10), ("linspace", 25), ("trailing", 7), ("trailing", 30)])
def test_ddim_on_uneven_times_is_its_closed_form(spacing: str, steps: int) -> None:
    """No comparison with diffusers: its DDIM steps to t - T // N, which is not the next time asked on these grids.

    Here is equation 12 of the paper with alpha_bar of the next time in the grid instead.
    """
    sampler = find_sampler(f"ddim {spacing}")
    grid = sampler.grid(PROCESS, steps)
    alpha_bar = PROCESS.alphas_cumprod
    x, expected = start(), []
    for now, to in pairwise(grid):
        now_bar = alpha_bar[int(now.t)].item()
        to_bar = 1.0 if to is grid[-1] else alpha_bar[int(to.t)].item()
        eps = ask_net(x, torch.tensor(now.t))
        x0 = (x - (1 - now_bar) ** 0.5 * eps) / now_bar**0.5
        x = to_bar**0.5 * x0 + (1 - to_bar) ** 0.5 * eps
        expected.append(x)
    assert_same_walk(our_steps(sampler, grid), expected, steps)


def pndm_walk(steps: int, ask: Ask = ask_net, **config: Any) -> list[Tensor]:
    """PNDM without its Runge-Kutta start; its first call is only half of its first step."""
    return their_steps(PNDMScheduler(**BETAS, skip_prk_steps=True, **config), steps, ask)[1:]


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [2, 3, *STEPS, 30])
def test_plms(steps: int, offset: int, to_one: bool) -> None:
    grid = SAMPLERS["plms"].grid(PROCESS, steps, offset=offset, end="clean" if to_one else "first")
    theirs = pndm_walk(steps, set_alpha_to_one=to_one, steps_offset=offset)
    assert_same_walk(our_steps(SAMPLERS["plms"], grid), theirs, steps)


@pytest.mark.parametrize("steps", STEPS)
def test_plms_of_a_v_network(steps: int) -> None:
    """The multistep formula is one on eps, so diffusers' scheduler is given eps, converted from v at each time.

    Given v itself it mixes those of different times, each of which means another share of eps and x0.
    """

    def eps_from_v(x: Tensor, t: Tensor) -> Tensor:
        at = PROCESS.point(t.item())
        return convert(ask_net(x, t), "v", "epsilon", x, at.alpha, at.sigma)

    grid = SAMPLERS["plms"].grid(PROCESS, steps)
    theirs = pndm_walk(steps, eps_from_v, set_alpha_to_one=True)
    assert_same_walk(our_steps(SAMPLERS["plms"], grid, "v"), theirs, steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler(steps: int, spacing: str, prediction: str) -> None:
    times = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = EulerDiscreteScheduler(**BETAS, **times, prediction_type=THEIR_PREDICTION[prediction])
    sampler = find_sampler(f"Euler {spacing}")
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    assert_same_walk(ours, their_steps(scheduler, steps, exploding=True), steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(steps: int, spacing: str, prediction: str) -> None:
    scheduler = EulerAncestralDiscreteScheduler(
        **BETAS, timestep_spacing=spacing, prediction_type=THEIR_PREDICTION[prediction]
    )
    sampler = find_sampler(f"Euler a {spacing}")
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    assert_same_walk(ours, their_steps(scheduler, steps, exploding=True, generator=True), steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras"])
@pytest.mark.parametrize("steps", STEPS)
def test_heun(steps: int, spacing: str, prediction: str) -> None:
    times = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = HeunDiscreteScheduler(**BETAS, **times, prediction_type=THEIR_PREDICTION[prediction])
    sampler = find_sampler(f"Heun {spacing}")
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    theirs = their_steps(scheduler, steps, exploding=True)
    assert len(theirs) == 2 * steps - 1  # two calls a step, but one for the last
    assert_same_walk(ours, [*theirs[1::2], theirs[-1]], steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras"])
@pytest.mark.parametrize("steps", [1, 2, *STEPS])
@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "sde"])
def test_dpmpp_2m(stochastic: bool, steps: int, spacing: str, prediction: str) -> None:
    times = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        **times,
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        prediction_type=THEIR_PREDICTION[prediction],
    )
    sampler = find_sampler(f"DPM++ 2M {'SDE ' * stochastic}{spacing}")
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    assert_same_walk(ours, their_steps(scheduler, steps, generator=True), steps)


@pytest.mark.parametrize("steps", [10, 20])
def test_dpmpp_2m_that_ends_at_the_first_noise_level(steps: int) -> None:
    """Its last step is of order 1 in a short run, and of order 2 in a long one."""
    scheduler = DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="sigma_min")
    grid = time_grid(PROCESS, steps, "linspace", skip_last=True, end="first")
    assert_same_walk(our_steps(SAMPLERS["dpm++_2m"], grid), their_steps(scheduler, steps), steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 10, 20, 25, 50])
def test_lcm(steps: int, prediction: str) -> None:
    scheduler = LCMScheduler(**BETAS, prediction_type=THEIR_PREDICTION[prediction])
    sampler = SAMPLERS["lcm"]
    ours = our_steps(sampler, sampler.grid(PROCESS, steps), prediction)
    assert_same_walk(ours, their_steps(scheduler, steps, generator=True), steps)


def test_lcm_ends_at_its_estimate_whatever_the_grid_ends_at() -> None:
    scheduler = LCMScheduler(**BETAS, set_alpha_to_one=False)
    grid = time_grid(PROCESS, 4, "lcm", end="first")
    assert_same_walk(our_steps(SAMPLERS["lcm"], grid), their_steps(scheduler, 4, generator=True), 4)


@pytest.mark.parametrize("key", SAMPLERS)
def test_only_the_samplers_of_stable_diffusion_end_where_its_scheduler_says(key: str) -> None:
    end = SAMPLERS[key].grid(PROCESS, 4, end="first")[-1]
    assert end == (PROCESS.point(0) if key in ("ddim", "plms") else CLEAN)


@pytest.mark.parametrize("steps", [*STEPS, 100])
def test_euler_on_a_flow(steps: int) -> None:
    process = FlowProcess(1000)
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=1.0)
    scheduler.scale_model_input = lambda x, t: x  # it has none, as its x is not scaled
    ours = our_steps(SAMPLERS["euler"], SAMPLERS["euler"].grid(process, steps), "flow", process)
    assert_same_walk(ours, their_steps(scheduler, steps), steps)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("ddim", "ddim"),
        ("DDPM", "ddpm"),
        ("PLMS", "plms"),
        ("pndm", "plms"),
        ("Euler", "euler"),
        ("k_euler", "euler"),
        ("Euler a", "euler_a"),
        ("k_euler_a", "euler_a"),
        ("euler-ancestral", "euler_a"),
        ("Heun", "heun"),
        ("DPM++ 2M", "dpm++_2m"),
        ("dpmpp_2m", "dpm++_2m"),
        ("k_dpmpp_2m", "dpm++_2m"),
        ("DPM++ 2M SDE", "dpm++_2m_sde"),
        ("dpm++_2m_sde", "dpm++_2m_sde"),
        ("dpmpp_2m_sde", "dpm++_2m_sde"),
        ("LCM", "lcm"),
        *((key, key) for key in SAMPLERS),
    ],
)
def test_names_as_users_type_them(typed: str, key: str) -> None:
    assert find_sampler(typed) is SAMPLERS[key]


@pytest.mark.parametrize(
    ("typed", "key", "spacing"),
    [
        ("DPM++ 2M Karras", "dpm++_2m", "karras"),
        ("dpm++_2m_sde_karras", "dpm++_2m_sde", "karras"),
        ("Euler a trailing", "euler_a", "trailing"),
        ("DDIM linspace", "ddim", "linspace"),
        ("heun leading", "heun", "leading"),
    ],
)
def test_names_with_a_spacing(typed: str, key: str, spacing: str) -> None:
    found = find_sampler(typed)
    assert (found.rule, found.spacing) == (SAMPLERS[key].rule, spacing)
    assert found.grid(PROCESS, 8) == SAMPLERS[key].grid(PROCESS, 8, spacing)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("eulr", "unknown sampler 'eulr'; did you mean 'euler'"),
        ("dpm+_2m", r"unknown sampler 'dpm\+_2m'; did you mean 'dpm\+\+_2m'"),
        ("unipc", "unknown sampler 'unipc'.*ddpm, ddpm_large, ddim, plms, euler"),
        ("karras", "unknown sampler 'karras'"),
        ("", "unknown sampler ''"),
    ],
)
def test_unknown_names(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sampler(typed)


@pytest.mark.parametrize("key", SAMPLERS)
def test_uniform_noise_is_refused_by_samplers_that_add_gaussian_noise(key: str) -> None:
    process = FlowProcess(1000, noise_kind="uniform")
    sampler = SAMPLERS[key]
    denoiser = Denoiser(NET, process, "x0")
    grid = sampler.grid(process, 4)
    if key in ("ddpm", "ddpm_large", "euler_a", "dpm++_2m_sde", "lcm"):
        with pytest.raises(UserError, match="trained with uniform noise: use ddim"):
            sample(sampler, denoiser, start(), grid, torch.randn_like, process)
    else:
        steps = list(sample(sampler, denoiser, start(), grid, torch.randn_like, process))
        assert len(steps) == 4
        assert steps[-1].x.isfinite().all()


def test_the_default_spacing_gives_way_to_the_process_but_a_named_one_does_not() -> None:
    process = FlowProcess(1000)
    assert SAMPLERS["ddim"].grid(process, 5) == SAMPLERS["ddim"].grid(process, 5, "trailing")
    with pytest.raises(UserError, match=r"unknown spacing 'leading'.*trailing, linspace"):
        find_sampler("ddim leading").grid(process, 5)


def test_the_teaching_example_is_ddim() -> None:
    """Five steps that mix a prediction of the clean picture in, from uniform noise: x (1 - m) + pred m."""
    process = FlowProcess(1000, noise_kind="uniform")
    times: list[float] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return torch.sigmoid(NET(x, torch.zeros(len(x))))

    x = first = process.noise((2, 3, 5, 5), torch.Generator().manual_seed(10))
    grid = SAMPLERS["ddim"].grid(process, 5, "trailing")
    steps = list(sample(SAMPLERS["ddim"], Denoiser(predict, process, "x0"), first, grid, torch.randn_like, process))
    assert times == pytest.approx([1000, 800, 600, 400, 200])
    for i, step in enumerate(steps):
        prediction = predict(x, torch.zeros(2))
        mix = 1 / (5 - i)
        x = x * (1 - mix) + prediction * mix
        torch.testing.assert_close(step.x, x)
        torch.testing.assert_close(step.x0, prediction)
