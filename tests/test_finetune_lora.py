"""LoRAs in training: peft's numbers on diffusers' networks, files that others read, and a base that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline  # type: ignore[attr-defined]
from peft import LoraConfig
from safetensors import safe_open
from test_finetune import a_batch, gradients, player_of, run_of, their_loss
from tiny_families import Folders, drawn_by_diffusers, drawn_by_us, opened
from torch import nn

import ldm
from ldm.errors import UserError
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.lora_training import lora_of
from ldm.training.start import Start
from ldm.training.tuning import tuning_of
from ldm.weights.lora_files import read_lora
from ldm.weights.lora_live import LiveLoras
from ldm.weights.model import load_model
from ldm.weights.opening import lora_targets
from ldm.weights.tuned import LORA_FILE

ATTENTION = {"to_q", "to_k", "to_v", "to_out.0"}
CONVOLUTIONS = {"conv1", "conv2", "conv", "proj_in", "proj_out", "conv_shortcut"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def trained(folder: Path, out: Path, steps: int = 2, **tune: Any) -> DiffusionPlayer:
    """A LoRA after some steps of plain gradient descent, and its checkpoint at ``out``."""
    torch.manual_seed(0)
    settings = {"tune": {"kind": "lora", "rank": 3, "alpha": 5.0, **tune}, "output": "runs/zork"}
    start = Start(load_model(folder), lambda: pytest.fail("nothing is saved"))
    tuning = tuning_of(run_of(**settings), start)
    player = DiffusionPlayer(start.model, run_of(**settings), tuning.encoders()).train()
    parameters = [p for p in player.parameters() if p.requires_grad]
    for step in range(steps):
        player(a_batch(step), step).loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= 3.0 * parameter.grad
                parameter.grad = None
    tuning.save(out, player.eval(), {"steps": steps})
    return player


def layers(player: DiffusionPlayer) -> set[str]:
    return set(lora_of({"unet": player.net}, "x").layers["unet"])


def test_gradients_are_those_of_peft_on_diffusers_unet(folders):
    """The same adapter weights in both: the same loss and the same gradients."""
    player = player_of(folders.folder("sd1"), tune={"kind": "lora", "rank": 3, "alpha": 5.0, "targets": "conv"})
    pipe = opened(folders.folder("sd1"))
    pipe.unet.requires_grad_(False)
    parts = {name: part for name, part in pipe.unet.named_modules() if "block" in name}
    names = [name for name, part in parts.items() if isinstance(part, nn.Linear | nn.Conv2d)]
    pipe.unet.add_adapter(LoraConfig(r=3, lora_alpha=5.0, target_modules=names))
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (dict(net.named_parameters()) for net in (player.net, pipe.unet))
    with torch.no_grad():
        for name, parameter in ours.items():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
                theirs[name].copy_(parameter)
    batch = a_batch()
    found, wanted = player(batch, 0).loss, their_loss(pipe, batch, None)
    found.backward()
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    expected = gradients(pipe.unet)
    assert gradients(player.net).keys() == expected.keys()
    assert len(expected) == 2 * len(names)
    for name, value in gradients(player.net).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "text_encoder"), [("sd1", True), ("sdxl", False)])
def test_diffusers_and_we_draw_the_same_with_either_file(family, text_encoder, folders, tmp_path):
    """A checkpoint in both namings, in diffusers, merged by us, and as it is trained: one picture."""
    folder, out = folders.folder(family), tmp_path / "checkpoint"
    player = trained(folder, out, targets="conv", text_encoder=text_encoder)
    ours = ldm.load(folder, device="cpu", dtype="fp32", loras=[(out / LORA_FILE, 1.0)])
    wanted = drawn_by_us(ours, "ddim")
    assert not torch.allclose(wanted, drawn_by_us(folders.ours(family), "ddim"), atol=0.02)
    kohya = ldm.load(folder, device="cpu", dtype="fp32", loras=[(out / "zork.kohya.safetensors", 1.0)])
    torch.testing.assert_close(drawn_by_us(kohya, "ddim"), wanted, atol=1e-5, rtol=0)
    live = ldm.load(folder, device="cpu", dtype="fp32")
    live.model = player.model(load_model(folder), {})
    live.denoiser = type(live.denoiser)(live.model.net, live.denoiser.process, live.model.prediction)
    torch.testing.assert_close(drawn_by_us(live, "ddim"), wanted, atol=2e-4, rtol=0)
    # diffusers 0.42 does not find kohya's text encoders among the names of transformers 5
    for name in (LORA_FILE,) if text_encoder else (LORA_FILE, "zork.kohya.safetensors"):
        pipe = opened(folder)
        pipe.load_lora_weights(out, weight_name=name)
        torch.testing.assert_close(drawn_by_diffusers(pipe, "ddim"), wanted, atol=1e-3, rtol=0)


def test_the_files_say_what_they_are(folders, tmp_path):
    trained(folders.folder("sd1"), tmp_path, text_encoder=True)
    tensors, settings = StableDiffusionPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)[::2]
    assert settings["unet.r"] == 3
    assert settings["text_encoder.lora_alpha"] == 5.0
    assert {key.split(".")[0] for key in tensors} == {"unet", "text_encoder"}
    with safe_open(tmp_path / "zork.kohya.safetensors", "pt") as file:
        header = file.metadata()
        assert {"lora_te", "lora_unet"} <= {"_".join(key.split("_")[:2]) for key in file.keys()}  # noqa: SIM118
    assert header["ss_network_dim"] == "3"
    assert header["modelspec.title"] == "zork"


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        ("attention", ATTENTION),
        (["to_q", "time_embedding.linear_1"], {"to_q", "linear_1"}),
        ("all-linear", ATTENTION | {"proj", "2", "time_emb_proj"}),
        ("conv", ATTENTION | {"proj", "2", "time_emb_proj", *CONVOLUTIONS}),
    ],
)
def test_which_layers_are_changed(targets, ends, folders):
    player = player_of(folders.folder("sd1"), tune={"kind": "lora", "targets": targets})
    found = {path if path in ends else path.rpartition(".")[2] for path in layers(player)}
    found = {end if end != "0" else "to_out.0" for end in found}
    assert found == ends


def test_names_that_mean_no_layer(folders):
    with pytest.raises(UserError, match=r"the network has no layer to_x; its layers end in .*to_q"):
        player_of(folders.folder("sd1"), tune={"kind": "lora", "targets": ["to_q", "to_x"]})


def test_only_the_lora_is_trained_and_nothing_else_changes(folders, tmp_path):
    """After training, and after peft's layers are out again, every weight of the base is what it was to the bit."""
    before = load_model(folders.folder("sd1"))
    player = trained(folders.folder("sd1"), tmp_path, text_encoder=True)
    names = [name for name, p in player.named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert all(p.dtype == torch.float32 for p in player.parameters() if p.requires_grad)
    encoder: Any = player.encoders[0].encoder
    for module, base in ((player.net, before.net), (encoder, before.conditioner.towers[0].encoder)):
        weights = {name.replace(".base_layer", ""): value for name, value in module.state_dict().items()}
        for name, value in base.state_dict().items():
            assert torch.equal(weights[name], value), name


def test_a_lora_that_is_taken_out_leaves_the_model_as_it_was(folders, tmp_path):
    trained(folders.folder("sd1"), tmp_path)
    model = load_model(folders.folder("sd1"))
    targets = lora_targets(model)
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in targets.items()}
    live = LiveLoras(targets)
    live.add(read_lora(tmp_path / LORA_FILE, targets))
    live.remove()
    for name, part in targets.items():
        assert part.state_dict().keys() == before[name].keys()
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())


def test_a_base_in_half_precision_trains_a_lora_in_full(folders):
    """Under bf16 autocast, a base kept in bf16 gives nearly the gradients of one that is cast there anyway."""
    settings = {"tune": {"kind": "lora", "targets": "all-linear"}, "train": {"steps": 1, "mixed_precision": "bf16"}}
    players = [player_of(folders.folder("sd2"), frozen_dtype=dtype, **settings) for dtype in ("fp32", "bf16")]
    added = [{n: p for n, p in player.named_parameters() if p.requires_grad} for player in players]
    for name, parameter in added[0].items():
        added[1][name].data.copy_(parameter.data)
    found = []
    for player in players:
        with torch.autocast("cpu", torch.bfloat16):
            loss = player(a_batch(), 0).loss
        loss.backward()
        found.append((loss.item(), gradients(player.net)))
    (loss, wanted), (half_loss, got) = found
    assert half_loss == pytest.approx(loss, rel=0.01)
    assert players[1].net.conv_in.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert all(value.dtype == torch.float32 for value in got.values())
    difference = sum((got[name] - value).square().sum() for name, value in wanted.items())
    assert difference < 0.02 * sum(value.square().sum() for value in wanted.values())
