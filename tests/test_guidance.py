"""Classifier-free guidance against its closed form, diffusers' rescaling, and a count of what the network does."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Guided
from ldm.diffusion.prediction import PREDICTIONS, to_estimate
from ldm.diffusion.process import DiscreteProcess, betas_for
from ldm.errors import UserError

PROCESS = DiscreteProcess(betas_for("scaled_linear", 1000, 0.00085, 0.012))
AT = PROCESS.point(600)


class CountingNet(nn.Module):
    """A real network that also keeps the batch size of each of its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.mix = nn.Linear(4, 3)
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        assert t.shape == (len(x),)
        if context is None:
            return torch.tanh(self.conv(x)) * (1 + t / 1000).reshape(-1, 1, 1, 1)
        assert len(context) == len(x)
        return torch.tanh(self.conv(x) + self.mix(context).mean(1)[:, :, None, None]) * (t / 500).reshape(-1, 1, 1, 1)


@pytest.fixture
def net() -> CountingNet:
    return CountingNet().requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[Tensor, Context, Context]:
    """x_t, context and unconditional context of three pictures, all different."""
    generator = torch.Generator().manual_seed(6)
    x_t = torch.randn(3, 3, 6, 6, generator=generator)
    return x_t, *(Context(tokens) for tokens in torch.randn(2, 3, 7, 4, generator=generator))


def outputs(net: CountingNet, inputs: tuple[Tensor, Context, Context]) -> tuple[Tensor, Tensor]:
    """The network's conditional and unconditional output, asked apart."""
    x_t, context, unconditional = inputs
    times = torch.full((3,), AT.t)
    found = net(x_t, times, context.tokens), net(x_t, times, unconditional.tokens)
    net.batches.clear()
    return found


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 7.5])
def test_guidance_is_its_closed_form(net, inputs, prediction: str, scale: float) -> None:
    cond, uncond = outputs(net, inputs)
    found = Guided(Denoiser(net, PROCESS, prediction), *inputs[1:], scale=scale)(inputs[0], AT)
    expected = to_estimate(prediction, uncond + scale * (cond - uncond), inputs[0], AT.alpha, AT.sigma)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert net.batches == [6]  # both halves in one call


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_scale_1_is_no_guidance_and_half_the_work(net, inputs, rescale: float) -> None:
    cond, _ = outputs(net, inputs)
    x_t, context, unconditional = inputs
    for negative in (None, unconditional):
        found = Guided(Denoiser(net, PROCESS), context, negative, scale=1.0, rescale=rescale)(x_t, AT)
        torch.testing.assert_close(found.eps, cond)
    assert net.batches == [3, 3]


def test_an_unconditional_network_needs_no_context(net, inputs) -> None:
    denoiser = Denoiser(net, PROCESS)
    torch.testing.assert_close(Guided(denoiser)(inputs[0], AT), denoiser(inputs[0], AT))
    assert net.batches == [3, 3]


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescale_equals_diffusers(net, inputs, rescale: float) -> None:
    cond, uncond = outputs(net, inputs)
    found = Guided(Denoiser(net, PROCESS), *inputs[1:], scale=7.5, rescale=rescale)(inputs[0], AT).eps
    expected = rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, guidance_rescale=rescale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if rescale == 1:
        torch.testing.assert_close(found.std((1, 2, 3)), cond.std((1, 2, 3)))


@pytest.mark.parametrize(
    ("t", "inside"), [(0, False), (299, False), (300, True), (500, True), (700, True), (701, False), (999, False)]
)
def test_outside_its_interval_guidance_is_off(net, inputs, t: int, inside: bool) -> None:
    x_t, context, unconditional = inputs
    denoiser, at = Denoiser(net, PROCESS), PROCESS.point(t)
    everywhere = Guided(denoiser, context, unconditional, scale=5.0)(x_t, at)
    plain = denoiser(x_t, at, context)
    net.batches.clear()
    found = Guided(denoiser, context, unconditional, scale=5.0, interval=(0.3, 0.7))(x_t, at)
    torch.testing.assert_close(found, everywhere if inside else plain)
    assert net.batches == [6 if inside else 3]


@pytest.mark.parametrize("t", [0, 999])
def test_the_whole_interval_is_everywhere(net, inputs, t: int) -> None:
    Guided(Denoiser(net, PROCESS), *inputs[1:], scale=2.0)(inputs[0], PROCESS.point(t))
    assert net.batches == [6]


def test_clipping_follows_guidance(net, inputs) -> None:
    x_t = inputs[0]
    free = Guided(Denoiser(net, PROCESS), *inputs[1:], scale=7.5)(x_t, AT)
    clipped = Guided(Denoiser(net, PROCESS, clip=1.0), *inputs[1:], scale=7.5)(x_t, AT)
    assert free.x0.abs().max() > 1
    torch.testing.assert_close(clipped.x0, free.x0.clamp(-1, 1))


@pytest.mark.parametrize("rescale", [-0.1, 1.5])
def test_rescale_out_of_range(net, rescale: float) -> None:
    with pytest.raises(UserError, match=f"between 0 and 1, got {rescale}"):
        Guided(Denoiser(net, PROCESS), rescale=rescale)


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.6, 0.4), (0.0, 1.1)])
def test_interval_out_of_order(net, interval: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="low <= high"):
        Guided(Denoiser(net, PROCESS), interval=interval)


def test_guidance_without_a_condition(net, inputs) -> None:
    with pytest.raises(UserError, match="needs a conditional model"):
        Guided(Denoiser(net, PROCESS), scale=7.5)


def test_guidance_without_its_other_half(net, inputs) -> None:
    with pytest.raises(UserError, match="unconditional context"):
        Guided(Denoiser(net, PROCESS), inputs[1], scale=7.5)
