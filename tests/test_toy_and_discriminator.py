"""The teaching network, and the autoencoder's adversary."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)
from ldm.models.toy import ToyUNet, ToyUNetConfig

torch.set_num_threads(1)  # these shapes are too small to share


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_toy_has_its_known_size():
    assert parameters(ToyUNet(ToyUNetConfig())) == 309_057


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (1, (32, 32)), (3, (30, 19)), (4, (4, 4))])
def test_the_toy_keeps_shapes(channels, size):
    x = torch.randn(2, channels, *size)
    assert ToyUNet(ToyUNetConfig(in_channels=channels))(x).shape == x.shape


def test_the_toy_reads_neither_time_nor_context():
    net, x = ToyUNet(ToyUNetConfig()), torch.randn(2, 1, 28, 28)
    assert torch.equal(net(x), net(x, torch.tensor([3, 900]), torch.randn(2, 1, 8)))


def test_the_toy_adds_its_skips():
    net, x = ToyUNet(ToyUNetConfig()), torch.randn(1, 1, 16, 16)
    for layer in net.up[:2]:  # nothing comes back from below
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    torch.testing.assert_close(net(x), net.up[2](nn.functional.silu(net.down[0](x))))


def test_the_toy_can_say_any_value():
    net = ToyUNet(ToyUNetConfig())
    nn.init.constant_(net.up[2].bias, -50.0)
    assert net(torch.randn(1, 1, 28, 28)).max() < -10  # no activation after the last layer


@pytest.mark.parametrize(("layers", "size", "out"), [(2, 32, 6), (3, 32, 2), (3, 256, 30)])
def test_discriminator_gives_a_map_of_logits(layers, size, out):
    logits = PatchDiscriminator(3, channels=8, layers=layers)(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 1, out, out)


@pytest.mark.parametrize(("layers", "patch"), [(2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, patch):
    model = PatchDiscriminator(1, channels=4, layers=layers).eval()  # in training, batch norm mixes all patches
    images = torch.randn(1, 1, 160, 160, requires_grad=True)
    logits = model(images)
    centre = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, centre, centre], images)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == patch


def test_discriminator_has_the_size_that_pix2pix_prints():
    assert round(parameters(PatchDiscriminator(6)) / 1e6, 3) == 2.769


def test_discriminator_starts_as_the_papers_say():
    model = PatchDiscriminator()
    assert model.main[5].weight.std().item() == pytest.approx(0.02, rel=0.02)
    norms = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert len(norms) == 128 + 256 + 512
    assert norms.mean().item() == pytest.approx(1.0, abs=0.005)
    assert norms.std().item() == pytest.approx(0.02, rel=0.15)


def test_hinge_loss_in_closed_form():
    sure = hinge_discriminator_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -5.0]))
    assert sure.item() == 0
    unsure = hinge_discriminator_loss(torch.tensor([0.5, 2.0]), torch.tensor([-0.5, 1.0]))
    assert unsure.item() == pytest.approx(0.5 * (0.5 + 0) / 2 + 0.5 * (0.5 + 2.0) / 2)
    assert generator_loss(torch.tensor([1.0, 3.0])).item() == -2


def test_the_two_players_pull_apart():
    logits = torch.zeros(4, requires_grad=True)
    (discriminator,) = torch.autograd.grad(hinge_discriminator_loss(torch.zeros(4), logits), logits)
    (generator,) = torch.autograd.grad(generator_loss(logits), logits)
    assert (discriminator > 0).all()
    assert (generator < 0).all()


@pytest.mark.parametrize(("pull", "push"), [(3.0, 1.0), (0.01, 5.0)])
def test_adaptive_weight_balances_the_two_gradients(pull, push):
    last_layer = nn.Parameter(torch.randn(10))
    hidden = torch.randn(10)
    output = last_layer * hidden
    reconstruction, adversarial = pull * output.sum(), push * output.sum()
    weight = adaptive_weight(reconstruction, adversarial, last_layer)
    assert weight.item() == pytest.approx(pull / push, rel=1e-3)  # 1e-4 in the denominator
    assert not weight.requires_grad
    assert last_layer.grad is None
    (reconstruction + weight * adversarial).backward()  # the graph is still there
    torch.testing.assert_close(last_layer.grad, hidden * 2 * pull, rtol=1e-3, atol=1e-5)


def test_adaptive_weight_is_bounded():
    last_layer = nn.Parameter(torch.ones(2))
    weight = adaptive_weight(1e6 * last_layer.sum(), 0 * last_layer.sum(), last_layer, maximum=10.0)
    assert weight.item() == 10.0
