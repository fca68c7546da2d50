"""Model folders: written and read back bit for bit; foreign and old ones; and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL  # type: ignore[attr-defined]
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, TENSOR_FILES, label_model, pipeline, text_model, unconditional_model, written
from transformers import CLIPTextModel, CLIPTokenizer

import ldm
from ldm.conditioner import LabelConditioner
from ldm.errors import UserError
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.text_conditioner import TextConditioner
from ldm.weights.components import load_module, load_tower
from ldm.weights.families import FAMILIES, Family
from ldm.weights.files import write_json
from ldm.weights.model import Model, load_model, resolve, save_model


def parts(model: Model) -> dict[str, torch.nn.Module]:
    found = {"net": model.net}
    if hasattr(model.codec, "vae"):
        found["vae"] = model.codec.vae  # type: ignore[attr-defined]
    if isinstance(model.conditioner, LabelConditioner):
        found["labels"] = model.conditioner
    if isinstance(model.conditioner, TextConditioner):
        found["text"] = model.conditioner.towers[0].encoder
    return found


# ------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip_is_bitwise(whole: dict[str, Path], kind: str) -> None:
    before, after = MODELS[kind](), load_model(whole[kind])
    assert parts(before).keys() == parts(after).keys()
    for name, module in parts(before).items():
        expected, found = module.state_dict(), parts(after)[name].state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
        assert not parts(after)[name].training
    for name in ("process", "prediction", "size", "defaults", "provenance"):
        assert getattr(before, name) == getattr(after, name), name


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize(
    "process", [{}, {"beta_schedule": "cosine"}, {"kind": "flow"}, {"kind": "flow", "noise": "uniform"}]
)
def test_processes_and_predictions_come_back(tmp_path: Path, process: dict[str, Any], prediction: str) -> None:
    model = unconditional_model()
    model.process = model.process.model_copy(update=process)
    model.prediction = prediction
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert (again.process, again.prediction) == (model.process, prediction)


def test_the_toy_network_comes_back(tmp_path: Path) -> None:
    model = unconditional_model()
    model.net = ToyUNet(ToyUNetConfig()).eval()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again.net, ToyUNet)
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in model.net.state_dict().items())


def test_half_precision_halves_the_files_and_rounds_the_weights(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = written("text", tmp_path / "half", torch.float16)
    for name in TENSOR_FILES["text"]:
        full, half = load_file(whole["text"] / name), load_file(folder / name)
        assert full.keys() == half.keys()
        assert all(torch.equal(full[key].half(), half[key]) for key in full)
    model = load_model(folder)
    assert {p.dtype for p in model.net.parameters()} == {torch.float16}


def test_files_can_be_read_by_others(whole: dict[str, Path]) -> None:
    for file in whole["text"].rglob("*.safetensors"):
        assert file.stat().st_mode & 0o044 == 0o044  # on a cluster, group and others read it


# -------------------------------------------------------- what the world of Stable Diffusion has


def test_diffusers_opens_the_parts(whole: dict[str, Path]) -> None:
    folder = whole["text"]
    for theirs, part in ((UNet2DConditionModel, "unet"), (DiffusersAutoencoderKL, "vae")):
        opened: Any = theirs
        module, report = opened.from_pretrained(folder / part, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert module.state_dict().keys() == load_module(folder / part).state_dict().keys()


def test_text_tower_has_the_names_of_stable_diffusion(whole: dict[str, Path]) -> None:
    names = load_file(whole["text"] / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names
    config = json.loads((whole["text"] / "text_encoder" / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModel"]


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_tower_is_read_under_both_names(copy: Callable[[str], Path], prefix: str) -> None:
    path = copy("text") / "text_encoder" / "model.safetensors"
    tensors = {prefix + k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    if prefix:  # as checkpoints of before 2023 have it
        tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    encoder, _ = load_tower(path.parent.parent)
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    for key, value in expected.towers[0].encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


@pytest.mark.parametrize("gone", ["tokenizer.json", "vocab.json"])
def test_tokenizer_is_read_from_either_form(copy: Callable[[str], Path], gone: str) -> None:
    folder = copy("text")
    (folder / "tokenizer" / gone).unlink()
    if gone == "vocab.json":
        (folder / "tokenizer" / "merges.txt").unlink()
    _, tokenizer = load_tower(folder)
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    for prompt in ("a handwritten seven", "Two, ÜNÏCODE 漢字 123!", "  spaced   out "):
        assert tokenizer(prompt).input_ids == expected.towers[0].tokenizer(prompt).input_ids


def test_transformers_opens_the_text_parts(whole: dict[str, Path]) -> None:
    found: Any = CLIPTextModel.from_pretrained(whole["text"] / "text_encoder", output_loading_info=True)
    assert not found[1]["missing_keys"]
    assert not found[1]["unexpected_keys"]
    tokenizer = CLIPTokenizer.from_pretrained(whole["text"] / "tokenizer")
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    assert tokenizer("a thick two").input_ids == expected.towers[0].tokenizer("a thick two").input_ids


def test_a_model_index_of_stable_diffusion_is_understood(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    index = json.loads((folder / "model_index.json").read_text())
    del index["_ldm"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    write_json(folder / "model_index.json", index)
    model = load_model(folder)
    assert model.size == (32, 32)  # the U-Net's sample_size times the VAE's factor
    assert model.defaults == {"sampler": "ddim leading", "steps": 50, "guidance": 7.5}  # as diffusers would


def test_a_run_means_its_newest_checkpoint(whole: dict[str, Path], tmp_path: Path) -> None:
    for step in (900, 1000, 12000):
        shutil.copytree(whole["label"], tmp_path / "checkpoints" / f"step_{step:08d}")
    (tmp_path / "checkpoints" / "writing_step_00099999").mkdir()  # half written
    assert resolve(tmp_path) == tmp_path / "checkpoints" / "step_00012000"
    assert load_model(resolve(tmp_path)).folder == tmp_path / "checkpoints" / "step_00012000"


# ----------------------------------------------------------------------------------- ready to draw


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:77"}, "unknown device 'cuda:77'"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"device": "cpu", "dtype": "fp16"}, "fp16 is for GPUs"),
        ({"attention": "flash"}, "flash"),
    ],
)
def test_loading_options(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ldm.load(written("label", tmp_path / "model"), **options)  # type: ignore[arg-type]


def test_label_model_keeps_its_defaults_through_a_folder(tmp_path: Path) -> None:
    pipe = ldm.load(written("label", tmp_path / "model"), device="cpu", dtype="fp32")
    expected = pipeline(label_model()).generate([4], [0])
    # the folder's is channels_last, which rounds otherwise, and clipped estimates amplify that
    torch.testing.assert_close(pipe.generate(["4"], [0]), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_draws_nearly_the_same(tmp_path: Path, kind: str) -> None:
    folder = written(kind, tmp_path / "model")
    condition = {"label": [3], "text": ["two"]}.get(kind, [None])
    full, half = (ldm.load(folder, device="cpu", dtype=d).generate(condition, [0], steps=4) for d in ("fp32", "bf16"))
    assert full.dtype == half.dtype == torch.float32
    error = (full - half).abs().mean() / full.std()
    assert 0 < error < 0.05


# ------------------------------------------------------------------------ saving: whole or not at all


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_failing_save_leaves_the_old_model(tmp_path: Path) -> None:
    folder = written("text", tmp_path / "model")
    before = contents(tmp_path)
    broken = text_model()
    broken.provenance = {"started": object()}  # found when the index is written, after all the weights
    with pytest.raises(TypeError):
        save_model(broken, folder)
    assert contents(tmp_path) == before
    with pytest.raises(TypeError):
        save_model(broken, tmp_path / "new")
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_saving_over_a_model_replaces_all_of_it(tmp_path: Path) -> None:
    folder = written("text", tmp_path / "model")
    (tmp_path / "writing_model").mkdir()  # left by a process that was killed
    written("label", folder)
    assert contents(folder) == contents(written("label", tmp_path / "fresh"))
    assert sorted(place.name for place in tmp_path.iterdir()) == ["fresh", "model"]


def test_what_is_no_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="holds something that is no model"):
            written("label", place)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert load_model(written("label", tmp_path / "empty")).size == (8, 8)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_schedulers_of_single_files_leave_latents_whole(family: Family) -> None:
    """diffusers' DDIM clips to [-1, 1] where a configuration says nothing, and latents go beyond."""
    assert DDIMScheduler.from_config(family.scheduler_config()).config.clip_sample is False
