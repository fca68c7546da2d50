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
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, text_model, unconditional_model, written
from transformers import CLIPTextModel, CLIPTokenizer
from typer.testing import CliRunner

import ldm.cli
from ldm.commands import describe_model
from ldm.conditioner import LabelConditioner, TextConditioner
from ldm.errors import UserError
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.weights.components import load_module, load_text_encoder, save_module, save_text_encoder
from ldm.weights.files import write_json
from ldm.weights.model import Model, load_model, load_vae, resolve, save_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
TENSOR_FILES = {
    "text": [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"],
    "label": [f"label_encoder/{WEIGHTS}"],
}
JSON_FILES = {
    "text": [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer_config.json",
    ],
    "label": ["label_encoder/config.json"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind of model, not to be changed."""
    place = tmp_path_factory.mktemp("models")
    return {kind: written(kind, place / kind) for kind in MODELS}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / "model"))


def parts(model: Model) -> dict[str, torch.nn.Module]:
    found = {"net": model.net}
    if hasattr(model.codec, "vae"):
        found["vae"] = model.codec.vae  # type: ignore[attr-defined]
    if isinstance(model.conditioner, LabelConditioner):
        found["labels"] = model.conditioner
    if isinstance(model.conditioner, TextConditioner):
        found["text"] = model.conditioner.encoder
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
    encoder, _ = load_text_encoder(path.parent.parent)
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    for key, value in expected.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


@pytest.mark.parametrize("gone", ["tokenizer.json", "vocab.json"])
def test_tokenizer_is_read_from_either_form(copy: Callable[[str], Path], gone: str) -> None:
    folder = copy("text")
    (folder / "tokenizer" / gone).unlink()
    if gone == "vocab.json":
        (folder / "tokenizer" / "merges.txt").unlink()
    _, tokenizer = load_text_encoder(folder)
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    for prompt in ("a handwritten seven", "Two, ÜNÏCODE 漢字 123!", "  spaced   out "):
        assert tokenizer(prompt).input_ids == expected.tokenizer(prompt).input_ids


def test_transformers_opens_the_text_parts(whole: dict[str, Path]) -> None:
    found: Any = CLIPTextModel.from_pretrained(whole["text"] / "text_encoder", output_loading_info=True)
    assert not found[1]["missing_keys"]
    assert not found[1]["unexpected_keys"]
    tokenizer = CLIPTokenizer.from_pretrained(whole["text"] / "tokenizer")
    expected = text_model().conditioner
    assert isinstance(expected, TextConditioner)
    assert tokenizer("a thick two").input_ids == expected.tokenizer("a thick two").input_ids


def test_old_attention_names_of_the_vae(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    path = folder / "vae" / WEIGHTS
    expected = load_file(path)
    old = {}
    for key, value in expected.items():
        for name, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f"attentions.0.{name}.", f"attentions.0.{former}.")
        old[key] = value
    assert old.keys() != expected.keys()
    save_file(old, path)
    found = load_vae(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_model_index_of_stable_diffusion_is_understood(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    index = json.loads((folder / "model_index.json").read_text())
    del index["_ldm"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    write_json(folder / "model_index.json", index)
    model = load_model(folder)
    assert model.size == (32, 32)  # the U-Net's sample_size times the VAE's factor
    assert model.defaults == {}


# ------------------------------------------------------------------------- what is said of damage


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_shape(path: Path) -> None:
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_file({**tensors, name: tensors[name][1:].contiguous()}, path, metadata={"format": "pt"})


def damage_name(path: Path) -> None:
    tensors = load_file(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors["stranger"] = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})


def damage_list(path: Path) -> None:
    path.write_text("[1, 2]")


COMMON = [damage_missing, damage_cut, damage_garbage, damage_empty, damage_folder]
DAMAGES = [
    (kind, name, damage)
    for table, damages in ((TENSOR_FILES, [*COMMON, damage_shape, damage_name]), (JSON_FILES, [*COMMON, damage_list]))
    for kind, names in table.items()
    for name in names
    for damage in damages
]


@pytest.mark.parametrize(
    ("kind", "name", "damage"), DAMAGES, ids=[f"{name}-{damage.__name__[7:]}" for _, name, damage in DAMAGES]
)
def test_damage_is_named(
    copy: Callable[[str], Path], kind: str, name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy(kind)
    damage(folder / name)
    with pytest.raises(UserError) as caught:
        load_model(resolve(folder))
    told = str(folder if name == "model_index.json" else folder / name)
    if damage is damage_folder or (name, damage) != ("model_index.json", damage_missing):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model_index.json", "scheduler/scheduler_config.json", f"unet/{WEIGHTS}", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("damage", [damage_missing, damage_cut])
def test_through_the_command_line(
    copy: Callable[[str], Path],
    name: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copy("text")
    damage(folder / name)
    if name == "tokenizer/tokenizer.json" and damage is damage_missing:
        (folder / "tokenizer" / "merges.txt").unlink()
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "new" / "picture.png"

    def command() -> None:
        ldm.cli.app(["generate", "two", "--model", str(folder), "-o", str(output)], standalone_mode=False)

    with pytest.raises(SystemExit) as exit_:
        ldm.cli.run(command)
    said = capsys.readouterr()
    assert exit_.value.code == 2
    assert said.err.startswith("error: ")
    assert str(folder) in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def edited(folder: Path, name: str, **values: Any) -> Path:
    """Change keys of a JSON file; None deletes."""
    found = {**json.loads((folder / name).read_text()), **values}
    write_json(folder / name, {k: v for k, v in found.items() if v is not None})
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        ("text", "unet/config.json", {"_class_name": "UNet3D"}, r"unknown _class_name in .*unet/config.json 'UNet3D'"),
        ("text", "unet/config.json", {"block_out_channels": 5}, "unet/config.json"),
        ("text", "unet/config.json", {"block_out_channels": "wide"}, "unet/config.json"),
        ("text", "unet/config.json", {"layers_per_block": []}, "unet/config.json"),
        ("text", "unet/config.json", {"addition_embed_type": "text_time"}, "unet/config.json.*text_time"),
        ("text", "unet/config.json", {"block_out_channels": [32, 64]}, f"unet/{WEIGHTS} does not fit"),
        ("label", "label_encoder/config.json", {"classes": None}, "label_encoder/config.json lacks the key 'classes'"),
        ("label", "label_encoder/config.json", {"classes": "ten"}, "label_encoder/config.json"),
        ("text", "scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "scheduler_config.json: .*sigmoid"),
        ("text", "scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "scheduler_config.json: .*many"),
        ("text", "scheduler/scheduler_config.json", {"beta_end": 7}, "scheduler_config.json: .*beta_end"),
        ("text", "model_index.json", {"text_encoder_2": ["transformers", "X"]}, "lists text_encoder_2; known parts"),
        ("text", "model_index.json", {"_ldm": {"size": "big"}}, "model_index.json: _ldm: size"),
        ("text", "model_index.json", {"_ldm": [1]}, "model_index.json: _ldm: "),
        ("text", "model_index.json", {"_ldm": {"defaults": {"sampler": "dimm"}}}, "_ldm: .*did you mean 'ddim'"),
        ("text", "model_index.json", {"text_encoder": None}, "reads a context 24 wide, but .* is nothing"),
        ("text", "model_index.json", {"vae": None}, None),
        ("text", "text_encoder/config.json", {"vocab_size": "x"}, "text_encoder"),
        ("text", "text_encoder/config.json", {"num_hidden_layers": 3}, "text_encoder.* lacks"),
    ],
)
def test_contradictions_are_named(
    copy: Callable[[str], Path], kind: str, name: str, values: dict[str, Any], message: str | None
) -> None:
    folder = edited(copy(kind), name, **values)
    if message is None:  # a U-Net of four channels is a pixel model, if an unusual one
        assert load_model(folder).codec.channels == 4
        return
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_parts_of_different_models_are_refused(whole: dict[str, Path], copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    shutil.rmtree(folder / "unet")
    shutil.copytree(whole["label"] / "unet", folder / "unet")
    with pytest.raises(UserError, match=r"unet has \[1\] channels, what it diffuses 4"):
        load_model(folder)
    shutil.rmtree(folder / "unet")
    shutil.copytree(whole["text"] / "vae", folder / "unet")
    with pytest.raises(UserError, match="unet holds a AutoencoderKL"):
        load_model(folder)


def test_parts_of_a_model_cannot_draw(tmp_path: Path) -> None:
    model = text_model()
    conditioner: Any = model.conditioner
    codec: Any = model.codec
    save_module(codec.vae, tmp_path / "vae" / "vae")
    write_json(tmp_path / "vae" / "model_index.json", {"_class_name": "VAE", "vae": ["diffusers", "AutoencoderKL"]})
    save_text_encoder(conditioner.encoder, conditioner.tokenizer, tmp_path / "clip")
    index = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    write_json(tmp_path / "clip" / "model_index.json", {"_class_name": "CLIP", **index})
    with pytest.raises(UserError, match=r"holds vae but no unet: it cannot draw"):
        load_model(tmp_path / "vae")
    with pytest.raises(UserError, match=r"holds text_encoder, tokenizer but no unet: it cannot draw"):
        load_model(tmp_path / "clip")
    assert "AutoencoderKL" in describe_model(str(tmp_path / "vae"))
    assert "CLIPTextModel" in describe_model(str(tmp_path / "clip"))


def test_places_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", "no such folder; a model is a folder with model_index.json"),
        ("model.ckpt", "is a file, and a model is a folder"),
        ("empty", "found neither model_index.json nor checkpoints"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(tmp_path / name)


def test_a_run_means_its_newest_checkpoint(whole: dict[str, Path], tmp_path: Path) -> None:
    for step in (900, 1000, 12000):
        shutil.copytree(whole["label"], tmp_path / "checkpoints" / f"step_{step:08d}")
    (tmp_path / "checkpoints" / "writing_step_00099999").mkdir()  # half written
    assert resolve(tmp_path) == tmp_path / "checkpoints" / "step_00012000"
    assert load_model(resolve(tmp_path)).folder == tmp_path / "checkpoints" / "step_00012000"


def test_info_of_a_damaged_folder_exits_with_its_name(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    shutil.rmtree(folder / "vae")
    result = CliRunner().invoke(ldm.cli.app, ["info", str(folder)])
    assert isinstance(result.exception, UserError)
    assert f"{folder / 'vae'} is missing" in str(result.exception)
