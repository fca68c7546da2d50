"""What a network's output means: conversions, loss weights, the loss itself and the denoiser."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import (
    PREDICTIONS,
    convert,
    min_snr_weight,
    target,
    to_estimate,
    x0_error_multiple,
)
from ldm.diffusion.process import DiscreteProcess, FlowProcess, Point, betas_for, zero_terminal_snr
from ldm.errors import UserError

DISCRETE = DiscreteProcess(betas_for("linear", 1000, 1e-4, 0.02))
ZERO_SNR = DiscreteProcess(zero_terminal_snr(DISCRETE.betas))
FLOW = FlowProcess(1000)

predictions = st.sampled_from(PREDICTIONS)
numbers = st.floats(-4, 4)
angles = st.floats(0.02, math.pi / 2 - 0.02)


def double(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@st.composite
def noise_levels(draw: st.DrawFn) -> tuple[float, float]:
    """(alpha, sigma) of a variance-preserving process or of a flow, neither of them 0."""
    if draw(st.booleans()):
        angle = draw(angles)
        return math.cos(angle), math.sin(angle)
    sigma = draw(st.floats(0.02, 0.98))
    return 1 - sigma, sigma


@given(predictions, numbers, numbers, noise_levels())
def test_to_estimate_inverts_target(prediction: str, x0: float, eps: float, level: tuple[float, float]) -> None:
    alpha, sigma = level
    output = target(prediction, double(x0), double(eps), alpha, sigma)
    found = to_estimate(prediction, output, alpha * double(x0) + sigma * double(eps), alpha, sigma)
    assert found.x0.item() == pytest.approx(x0, abs=1e-11)
    assert found.eps.item() == pytest.approx(eps, abs=1e-11)


@given(predictions, numbers, numbers, noise_levels())
def test_an_estimate_of_any_output_adds_up_to_x_t(
    prediction: str, output: float, x_t: float, level: tuple[float, float]
) -> None:
    """Also of a wrong output: the pair is what the samplers' transfer relies on."""
    alpha, sigma = level
    found = to_estimate(prediction, double(output), double(x_t), alpha, sigma)
    assert (alpha * found.x0 + sigma * found.eps).item() == pytest.approx(x_t, abs=1e-11)
    back = target(prediction, found.x0, found.eps, alpha, sigma)
    assert back.item() == pytest.approx(output, abs=1e-10)


@given(predictions, predictions, numbers, numbers, noise_levels())
def test_conversion_of_the_truth_is_the_truth(
    source: str, to: str, x0: float, eps: float, level: tuple[float, float]
) -> None:
    alpha, sigma = level
    pair = double(x0), double(eps)
    x_t = alpha * pair[0] + sigma * pair[1]
    found = convert(target(source, *pair, alpha, sigma), source, to, x_t, alpha, sigma)
    assert found.item() == pytest.approx(target(to, *pair, alpha, sigma).item(), abs=1e-10)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("to", PREDICTIONS)
def test_conversion_goes_there_and_back(source: str, to: str) -> None:
    generator = torch.Generator().manual_seed(0)
    output, x_t = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha = torch.linspace(0.1, 0.9, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    there = convert(output, source, to, x_t, alpha, sigma)
    torch.testing.assert_close(convert(there, to, source, x_t, alpha, sigma), output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_at_pure_noise_x0_is_still_known(prediction: str) -> None:
    x0, eps = double(1.25), double(-0.5)
    found = to_estimate(prediction, target(prediction, x0, eps, 0.0, 1.0), eps, 0.0, 1.0)
    assert (found.x0.item(), found.eps.item()) == (1.25, -0.5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_at_no_noise_eps_is_still_known(prediction: str) -> None:
    x0, eps = double(1.25), double(-0.5)
    found = to_estimate(prediction, target(prediction, x0, eps, 1.0, 0.0), x0, 1.0, 0.0)
    assert (found.x0.item(), found.eps.item()) == (1.25, -0.5)


def test_the_targets_in_numbers() -> None:
    x0, eps, alpha, sigma = double(2.0), double(-1.0), 0.6, 0.8
    found = {name: target(name, x0, eps, alpha, sigma).item() for name in PREDICTIONS}
    assert found == pytest.approx({"epsilon": -1, "x0": 2, "v": 0.6 * -1 - 0.8 * 2, "flow": -3})


def test_unknown_prediction() -> None:
    x = double(0.0)
    for call in (
        lambda: target("eps", x, x, 1.0, 1.0),
        lambda: to_estimate("eps", x, x, 1.0, 1.0),
        lambda: x0_error_multiple("eps", x, x),
        lambda: Denoiser(lambda x, t, context: x, DISCRETE, "eps"),
    ):
        with pytest.raises(UserError, match=r"unknown prediction 'eps'.*epsilon, x0, v, flow"):
            call()


@given(predictions, noise_levels(), numbers, numbers, st.floats(0.1, 2), st.floats(0.5, 20))
def test_min_snr_weighs_the_x0_error(
    prediction: str, level: tuple[float, float], x0: float, eps: float, wrong: float, gamma: float
) -> None:
    """weight |output error|^2 = min(snr, gamma) |x0 error|^2, the errors measured, not derived."""
    alpha, sigma = map(double, level)
    x_t = alpha * x0 + sigma * eps
    output = target(prediction, double(x0), double(eps), alpha, sigma) + wrong
    x0_error = to_estimate(prediction, output, x_t, alpha, sigma).x0 - x0
    weight = min_snr_weight(prediction, alpha, sigma, gamma)
    snr = (level[0] / level[1]) ** 2
    assert (weight * wrong**2).item() == pytest.approx(min(snr, gamma) * x0_error.item() ** 2, rel=1e-8)
    multiple = x0_error_multiple(prediction, alpha, sigma)
    assert (multiple * x0_error**2).item() == pytest.approx(wrong**2, rel=1e-8)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_has_the_weights_of_the_paper(gamma: float) -> None:
    """Hang et al. 2023, section 3.4, for a variance-preserving process."""
    alpha, sigma = ZERO_SNR.alpha_sigma(torch.arange(0, 999))
    snr = (alpha / sigma).double() ** 2
    least = snr.clamp(max=gamma)
    expected = {"epsilon": least / snr, "x0": least, "v": least / (snr + 1)}
    for prediction, weight in expected.items():
        found = min_snr_weight(prediction, alpha, sigma, gamma)
        torch.testing.assert_close(found.double(), weight, rtol=1e-4, atol=1e-7)


def test_min_snr_at_pure_noise() -> None:
    alpha, sigma = torch.zeros(1), torch.ones(1)
    found = {name: min_snr_weight(name, alpha, sigma, 5.0).item() for name in PREDICTIONS}
    assert found == {"epsilon": 1, "x0": 0, "v": 0, "flow": 0}


@given(predictions, st.floats(0, 1, exclude_max=True, width=32))
def test_weights_are_finite_wherever_training_goes(prediction: str, uniform: float) -> None:
    for process in (DISCRETE, ZERO_SNR, FLOW):
        weight = min_snr_weight(prediction, *process.alpha_sigma(process.draw_times(torch.tensor([uniform]))), 5.0)
        assert weight.isfinite().all()
        assert (weight >= 0).all()


class SmallNet(nn.Module):
    """A nonlinear function of x, t and context."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        shift = (t.float() / 100).sin().reshape(-1, 1, 1, 1)
        if context is not None:
            shift = shift + context.mean((1, 2)).reshape(-1, 1, 1, 1)
        return torch.tanh(self.conv(x) + shift)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x0, eps = torch.randn(2, 6, 2, 5, 5, generator=generator)
    context = torch.randn(6, 3, 4, generator=generator)
    return x0, eps, context, torch.tensor([0, 3, 150, 700, 998, 999])


@torch.no_grad()
@pytest.mark.parametrize(
    ("process", "prediction"),
    [(DISCRETE, name) for name in PREDICTIONS] + [(FLOW, name) for name in PREDICTIONS if name != "epsilon"],
)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_of_each_sample(process: DiscreteProcess | FlowProcess, prediction: str, gamma: float | None) -> None:
    x0, eps, context, t = batch()
    t = t + 1 if process is FLOW else t
    net = SmallNet()
    found = Denoiser(net, process, prediction).loss(x0, t, eps, Context(context), snr_gamma=gamma)
    for i, time in enumerate(t.tolist()):  # one at a time, from the table that samplers use
        at = process.point(time)
        x_t = (at.alpha * x0[i] + at.sigma * eps[i])[None]
        wanted = {"epsilon": eps[i], "x0": x0[i], "flow": eps[i] - x0[i], "v": at.alpha * eps[i] - at.sigma * x0[i]}
        mse = functional.mse_loss(
            net(x_t, t[i : i + 1], context[i : i + 1]), wanted[prediction][None], reduction="none"
        ).mean()
        if gamma is not None:
            levels = torch.tensor([at.alpha]), torch.tensor([at.sigma])
            mse = mse * min_snr_weight(prediction, *levels, gamma).item()
        torch.testing.assert_close(found[i], mse, rtol=2e-4, atol=1e-6)
    assert found.shape == (6,)


@pytest.mark.parametrize("process", [ZERO_SNR, FLOW], ids=["zero-snr", "flow"])
def test_epsilon_is_refused_where_alpha_reaches_0(process: DiscreteProcess | FlowProcess) -> None:
    with pytest.raises(UserError, match="use prediction v, flow or x0"):
        Denoiser(SmallNet(), process, "epsilon")


@torch.no_grad()
def test_denoiser_gives_the_estimate_of_its_networks_output() -> None:
    x_t, _, context, _ = batch()
    at = DISCRETE.point(400)
    for prediction in PREDICTIONS:
        denoiser = Denoiser(SmallNet(), DISCRETE, prediction)
        output = SmallNet()(x_t, torch.full((6,), 400.0), context)
        torch.testing.assert_close(denoiser(x_t, at, Context(context)), to_estimate(prediction, output, x_t, *at[1:]))


@given(predictions, st.floats(-5, 5), st.floats(-5, 5), angles, st.floats(0.2, 2))
def test_clipped_estimates_stay_in_range_and_add_up(
    prediction: str, output: float, x_t: float, angle: float, clip: float
) -> None:
    at = Point(1.0, math.cos(angle), math.sin(angle))
    denoiser = Denoiser(lambda x, t, context: x, DISCRETE, prediction, clip=clip)
    plain = to_estimate(prediction, double(output), double(x_t), at.alpha, at.sigma)
    found = denoiser.estimate(double(output), double(x_t), at)
    assert found.x0.item() == pytest.approx(min(max(plain.x0.item(), -clip), clip))
    assert (at.alpha * found.x0 + at.sigma * found.eps).item() == pytest.approx(x_t, abs=1e-12)
