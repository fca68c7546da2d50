"""Operations, bytes and steps that are counted on paper, against formulas and against the same steps as they run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldm.config import validate
from ldm.cost.counting import Ledger, counting, flops_of, on_paper
from ldm.cost.of_run import steps_of
from ldm.cost.step import count_step
from ldm.models.attention import Attention
from ldm.models.unet import UNet, UNetConfig
from ldm.training.rehearsal import rehearse

MODEL = Path(__file__).parent.parent / "ldm" / "assets" / "mnist_text"
NET = UNetConfig(
    in_channels=2,
    out_channels=2,
    sample_size=16,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention=(False, True),
    num_attention_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)


def there_and_back(build: Callable[[], Any], *shapes: tuple[int, ...], paper: bool) -> tuple[int, int]:
    """Operations of the forward pass, and of the backward pass to weights and inputs."""
    with on_paper() if paper else nullcontext():
        module = build()
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        with counting() as ledger:
            with ledger.of("there"):
                found = module(*inputs)
            with ledger.of("back"):
                torch.autograd.backward(found.sum())
    return flops_of(ledger.works["there"]), flops_of(ledger.works["back"])


@pytest.mark.parametrize("paper", [False, True])
def test_layers_against_a_count_by_hand(paper: bool) -> None:
    """The backward pass of a product is two: to the weights and to the inputs."""
    convolution = 2 * (2 * 6 * 5) * (7 * 3) * 9
    found = there_and_back(lambda: nn.Conv2d(3, 7, 3, padding=1), (2, 3, 6, 5), paper=paper)
    assert found == (convolution, 2 * convolution)
    linear = 2 * (2 * 6) * 7 * 11
    assert there_and_back(lambda: nn.Linear(7, 11), (2, 6, 7), paper=paper) == (linear, 2 * linear)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("others", [None, 5])
def test_attention_against_a_count_by_hand(paper: bool, others: int | None) -> None:
    """Forward, scores and their sum; backward, the scores once more and the four gradients of both products."""
    batch, length, channels, width = 2, 9, 24, 16
    if others is None:  # to itself: four square layers
        linear, keys = 2 * batch * length * 4 * channels**2, length
        found = there_and_back(lambda: Attention(channels, 3), (batch, length, channels), paper=paper)
    else:
        linear, keys = 2 * batch * (2 * length * channels**2 + 2 * others * width * channels), others
        shapes = ((batch, length, channels), (batch, others, width))
        found = there_and_back(lambda: Attention(channels, 3, width), *shapes, paper=paper)
    product = 2 * batch * length * keys * channels
    assert found == (linear + 2 * product, 2 * linear + 5 * product)


def by_hand(net: UNet, *inputs: Tensor) -> tuple[int, int]:
    """Operations of a U-Net there and back: of each layer that multiplies, from the shapes that it sees as it runs."""
    seen: list[tuple[int, int]] = []

    def layer(module: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        inputs_of_one = module.weight[0].numel()  # that one number of the output is a sum over
        flops = 2 * out.numel() * inputs_of_one
        seen.append((flops, flops * (1 + given[0].requires_grad)))  # to the weights, and to the input if it asks

    def attention(module: Attention, given: tuple[Tensor, ...], out: Tensor) -> None:
        batch, length, channels = given[0].shape
        keys = given[1].shape[1] if len(given) > 1 and given[1] is not None else length
        product = 2 * batch * length * keys * channels
        seen.append((2 * product, 5 * product))  # back: the scores once more, and two gradients of each product
        kinds.add(keys == length)

    kinds: set[bool] = set()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        if isinstance(module, Attention):
            module.register_forward_hook(attention)
    net(*inputs)
    assert kinds == {True, False}  # to itself and to the context
    return sum(there for there, _ in seen), sum(back for _, back in seen)


@pytest.mark.parametrize("paper", [False, True])
def test_a_whole_unet_against_a_count_by_hand(paper: bool) -> None:
    expected = by_hand(UNet(NET).train(), torch.randn(3, 2, 16, 16), torch.rand(3), torch.randn(3, 5, 12))
    with on_paper() if paper else nullcontext():
        net = UNet(NET).train()
        with counting() as ledger:
            with ledger.of("there"):
                loss = net(torch.randn(3, 2, 16, 16), torch.rand(3), torch.randn(3, 5, 12)).sum()
            with ledger.of("back"):
                torch.autograd.backward(loss)
    found = flops_of(ledger.works["there"]), flops_of(ledger.works["back"])
    assert found == pytest.approx(expected, rel=0.001)


def run_unet(half: bool, recompute: bool) -> tuple[Ledger, int, int]:
    """A forward and backward pass; the bytes that the forward pass left, and those of the gradients in the end."""
    net = UNet(NET)
    net.gradient_checkpointing = recompute
    x, t, context = torch.randn(3, 2, 16, 16), torch.rand(3), torch.randn(3, 5, 12)
    with counting() as ledger:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = net.train()(x, t, context).float().square().mean()
        kept = ledger.live
        torch.autograd.backward(loss)
    return ledger, kept, ledger.live


@pytest.mark.parametrize(("half", "recompute"), [(False, True), (True, False)])
def test_paper_agrees_with_what_runs(half: bool, recompute: bool) -> None:
    torch.manual_seed(0)
    ran, kept, left = run_unet(half, recompute)
    with on_paper():
        counted, kept_on_paper, left_on_paper = run_unet(half, recompute)
    assert counted.flops == ran.flops > 0
    assert kept_on_paper == pytest.approx(kept, rel=0.01)
    assert counted.peak == pytest.approx(ran.peak, rel=0.01)
    weights = sum(parameter.numel() * 4 for parameter in UNet(NET).parameters())
    assert left == left_on_paper == pytest.approx(weights, abs=100)  # and the loss


@pytest.mark.parametrize("paper", [False, True])
def test_activations_are_what_autograd_saves(paper: bool) -> None:
    """Told by its hooks: every storage once, weights left out."""
    with on_paper() if paper else nullcontext():
        net = UNet(NET).train()
        x, t, context = torch.randn(3, 2, 16, 16), torch.rand(3), torch.randn(3, 5, 12)
        known = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), x, t, context)}
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with counting() as ledger, saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net(x, t, context).square().mean()
        sizes = [tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in known]
        assert sum(sizes) == pytest.approx(ledger.live, rel=0.01)
        assert loss.requires_grad


def test_a_gpu_keeps_norms_in_float32_and_no_probabilities() -> None:
    with on_paper():
        cpu, kept, _ = run_unet(half=True, recompute=False)
    with on_paper(gpu=True):
        gpu, more, _ = run_unet(half=True, recompute=False)
    assert more > 1.2 * kept
    names = [{kind.operator for works in ledger.works.values() for kind in works} for ledger in (cpu, gpu)]
    assert "_softmax" in names[0] - names[1]
    with on_paper():  # and afterwards all is as before
        assert run_unet(half=True, recompute=False)[1] == kept


def test_what_is_freed_is_held_no_more() -> None:
    with counting() as ledger:
        first = torch.zeros(1000)
        view = first[:10]
        del first
        assert ledger.live == 4000  # by the view
        second = torch.zeros(500, dtype=torch.float64)
        assert ledger.by_dtype() == {"float32": 4000, "float64": 4000}
        del view
        assert (ledger.live, ledger.peak) == (4000, 8000)
        assert len(second) == 500


# ------------------------------------------------------------------------------ steps of runs


def gan(output: Path) -> dict[str, Any]:
    """A generator of 28 x 28 pixels and its adversary, as plain data."""
    label = tiny_runs.config("label", output)
    shape = {"latent_dim": 6, "sample_size": 28, "channels": [8, 4]}
    common = {key: label[key] for key in ("output", "data", "train")}
    return {**common, "task": "gan", "generator": shape, "discriminator": {"channels": 4}}


def test_players_in_turn_hold_one_at_a_time(tmp_path: Path) -> None:
    """The generator has forgotten its activations and gradients when the adversary plays; its average alone is kept."""
    run = validate(gan(tmp_path / "run"), "t")
    ((_, step),) = steps_of(run)
    alone, stay = count_step(step), count_step(step, kept=True)
    generator, adversary = alone.parts.values()
    assert alone.averaged == generator.trained > 0
    assert adversary.backward == 2 * adversary.forward - adversary_inputs(run)
    assert stay.flops == alone.flops
    assert alone.trained == generator.trained + adversary.trained


def adversary_inputs(run: Any) -> int:
    """Operations that would carry gradients to pictures, real and drawn, which ask for none: a kernel of 4 x 4."""
    return 2 * 2 * run.train.batch_size * 14 * 14 * run.discriminator.channels * 16


@pytest.mark.parametrize(
    ("data", "side", "grey"),
    [
        ({"source": "split", "of": {"source": "mnist", "size": 40}, "hold_out": 5, "part": "train"}, 40, True),
        (
            {"source": "mix", "sources": [{"data": {"source": "mnist"}}, {"data": {"source": "mnist", "size": 32}}]},
            32,
            True,
        ),
    ],
)
def test_parts_and_mixtures_have_the_sides_of_their_sources(tmp_path: Path, data: Any, side: int, grey: bool) -> None:
    run = validate(tiny_runs.config("clip", tmp_path / "run") | {"data": data}, "t")
    ((_, step),) = steps_of(run)
    with torch.device("meta"):
        (player,) = step.build().values()
    vision: Any = player.clip.config.vision_config
    assert (vision.image_size, vision.num_channels) == (side, 1 if grey else 3)


TEXT = {"codec__path": MODEL, "condition__path": MODEL, "unet__cross_attention_dim": 128}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("label", {"train__gradient_checkpointing": True}),
        ("vae", {"loss__adversarial_start": 0}),
        ("clip", {}),
        ("latent", TEXT),
        ("gan", {}),
    ],
)
def test_a_step_on_paper_is_the_step_that_trains(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    run = validate(gan(tmp_path / "run") if kind == "gan" else tiny_runs.config(kind, tmp_path / "run", **changes), "t")
    measured, _ = rehearse(run)
    ((_, step),) = steps_of(run)
    counted = count_step(step)
    # captions of the rehearsal are remembered, or shorter than the window
    allowed = 0.01 if kind in ("label", "vae", "gan") else 0.1
    assert counted.flops == pytest.approx(measured.flops, rel=allowed)
    assert counted.trained == pytest.approx(measured.trained, rel=0.001 if kind != "clip" else 0.1)
