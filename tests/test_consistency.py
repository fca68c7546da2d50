"""Consistency distillation: against diffusers' schedulers, and on Gaussian data, where the function is known."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm.diffusion.consistency import Consistency, Ladder, boundary, pseudo_huber
from ldm.diffusion.context import Context
from ldm.diffusion.prediction import target
from ldm.diffusion.process import DiscreteProcess, betas_for, zero_terminal_snr

# diffusers reads float32 tensors as numpy arrays in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESS = DiscreteProcess(betas_for("scaled_linear", 1000, 0.00085, 0.012))
ZERO_SNR = DiscreteProcess(zero_terminal_snr(PROCESS.betas))
THEIR_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
EVERY_RUNG = (torch.arange(50) + 0.5) / 50  # uniform numbers that draw each once, in order


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Linear:
    """A network whose output is a fixed function of x, t and the first number of its context."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        shift = 0 if context is None else context[:, :1, :1, None]
        return torch.tanh(0.7 * x.flip(-1) + t.float()[:, None, None, None] / 1000 + shift)


# ------------------------------------------------------------------------------ against diffusers


def test_boundary_scalings_equal_diffusers() -> None:
    times = torch.tensor([0, 1, 19, 259, 999])
    theirs = LCMScheduler(**BETAS)
    expected = [theirs.get_scalings_for_boundary_condition_discrete(t.double()) for t in times]
    torch.testing.assert_close(torch.stack(boundary(times), 1).double(), torch.tensor(expected).double())
    assert [float(c) for c in boundary(torch.zeros(1))] == [1, 0]  # it is the identity at the end of the path


def test_the_rungs_are_the_times_that_the_sampler_may_ask_at() -> None:
    t, s, _ = Ladder(PROCESS, 50).draw(EVERY_RUNG)
    theirs = LCMScheduler(**BETAS)
    theirs.set_timesteps(50, original_inference_steps=50)
    assert t.flip(0).tolist() == theirs.timesteps.tolist()
    assert s.tolist() == [0, *t[:-1].tolist()]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_function_is_what_diffusers_jumps_to(prediction: str) -> None:
    theirs = LCMScheduler(**BETAS, prediction_type=THEIR_PREDICTION[prediction], clip_sample=False)
    theirs.set_timesteps(50, original_inference_steps=50)
    x = noise(50, 3, 4, 4)
    found = Consistency(Linear(), PROCESS, prediction)(x, theirs.timesteps, Context())
    for i, t in enumerate(theirs.timesteps):
        theirs._step_index = i
        output = Linear()(x[i : i + 1], t[None])
        torch.testing.assert_close(found[i : i + 1], theirs.step(output, t, x[i : i + 1]).denoised)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_the_teachers_step_equals_diffusers_ddim(prediction: str, clip: float | None) -> None:
    """Guided with a scale of its own for every sample, from every rung to the one below it."""
    told = {"prediction_type": THEIR_PREDICTION[prediction], "clip_sample": clip is not None}
    theirs = DDIMScheduler(**BETAS, **told, set_alpha_to_one=False)
    theirs.set_timesteps(50)
    t, s, _ = Ladder(PROCESS, 50).draw(EVERY_RUNG)
    x, scale = noise(50, 3, 4, 4), torch.linspace(0, 15, 50)
    context, without = Context(torch.full((50, 2, 3), 0.4)), Context(torch.full((50, 2, 3), -0.3))
    found = Consistency(Linear(), PROCESS, prediction, clip).ddim(x, t, s, context, without, scale)
    for i in range(50):
        row, at = x[i : i + 1], t[i : i + 1]
        cond, uncond = (Linear()(row, at, c.rows(0, 1).tokens) for c in (context, without))
        output = uncond + scale[i] * (cond - uncond)
        expected = theirs.step(output, int(t[i]), row, use_clipped_model_output=clip is not None).prev_sample
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------- closed forms


@given(st.floats(0, 1), st.integers(1, 60))
def test_every_number_has_a_rung_and_says_where_it_lies_on_it(uniform: float, steps: int) -> None:
    uniform = min(uniform, 1 - 2**-24)  # as float32 has it, below 1
    t, s, rest = Ladder(PROCESS, steps).draw(torch.tensor([uniform], dtype=torch.float32))
    rung = (int(t) + 1) / (1000 // steps)
    assert rung == int(rung)
    assert 1 <= rung <= steps
    assert int(s) == max(0, int(t) - 1000 // steps)
    assert 0 <= float(rest) <= 1
    assert (rung - 1 + float(rest)) / steps == pytest.approx(uniform, abs=1e-6)


@given(st.floats(-50, 50), st.floats(1e-4, 2))
def test_the_loss_is_a_parabola_within_c_and_straight_beyond(error: float, c: float) -> None:
    found = float(pseudo_huber(torch.full((1, 2, 3), error, dtype=torch.float64), c))
    assert found == pytest.approx(error**2 / ((error**2 + c**2) ** 0.5 + c), abs=1e-12)
    assert abs(error) - c - 1e-12 <= found <= min(abs(error), error**2 / (2 * c)) + 1e-12


def gaussian_eps(process: DiscreteProcess, x: Tensor, t: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """The best estimate of the noise in x for data N(mean, deviation^2)."""
    alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
    return sigma * (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)


def value_on_path(process: DiscreteProcess, x: Tensor, t: Tensor, mean: float, deviation: float) -> Tensor:
    """Where the path of the ODE through (x, t) comes to at t = 0: it keeps its place in the Gaussian of its time."""
    alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
    first = process.point(0)
    z = (x - alpha * mean) / (alpha**2 * deviation**2 + sigma**2).sqrt()
    return first.alpha * mean + (first.alpha**2 * deviation**2 + first.sigma**2) ** 0.5 * z


@pytest.mark.parametrize("process", [PROCESS, ZERO_SNR], ids=["sd", "zero-snr"])
def test_the_loss_of_the_true_consistency_function_is_the_error_of_the_solver(process: DiscreteProcess) -> None:
    """Teachers of N(1.5, 0.5^2) and N(-0.5, 0.5^2) without words, guided, describe the paths of a third Gaussian."""
    scale, deviation = 3.0, 0.5
    guided = -0.5 + scale * (1.5 - -0.5)

    def teacher(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
        eps = gaussian_eps(process, x, t, context[:, :1, :1, None], deviation)
        v_from_eps = (x - sigma * eps) / alpha.clamp(min=1e-6)
        return torch.where(alpha > 1e-6, alpha * eps - sigma * v_from_eps, -sigma * context[:, :1, :1, None])

    def student(x: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out = (c[:, None, None, None] for c in boundary(t))
        alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
        x0 = (value_on_path(process, x, t, guided, deviation) - c_skip * x) / c_out.clamp(min=1e-3)
        return target("v", x0, (x - alpha * x0) / sigma, alpha, sigma)

    def worst(steps: int) -> float:
        t, s, _ = Ladder(process, steps).draw((torch.arange(steps) + 0.5) / steps)
        context, without = Context(torch.full((steps, 1, 1), 1.5)), Context(torch.full((steps, 1, 1), -0.5))
        alpha, sigma = (value[:, None, None, None] for value in process.alpha_sigma(t))
        x_t = alpha * (guided + deviation * noise(steps, 1, 8, 8)) + sigma * noise(steps, 1, 8, 8, seed=1)
        x_s = Consistency(teacher, process, "v").ddim(x_t, t, s, context, without, torch.full((steps,), scale))
        f = Consistency(student, process, "v")
        return float(pseudo_huber(f(x_t, t, Context()) - f(x_s, s, Context()), 0.001).max())

    coarse, fine = worst(50), worst(500)
    assert coarse < 0.05
    assert fine < coarse / 20  # the error of a step of order one falls with the square of its length
