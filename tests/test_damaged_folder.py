"""What is said of model folders that are damaged, contradict themselves, or are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TENSOR_FILES, WEIGHTS, text_model
from typer.testing import CliRunner

import ldm.cli
from ldm.describe import describe
from ldm.errors import UserError
from ldm.weights.components import save_module, save_tower
from ldm.weights.files import write_json
from ldm.weights.model import load_model, resolve

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
    output = tmp_path / "picture.png"

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
        (
            "label",
            "label_encoder/config.json",
            {"classes": -3},
            "config.json: classes .*at least 1, got -3",
        ),
        ("label", "label_encoder/config.json", {"classes": 12}, r"does not fit .*embedding.weight \(11, 24\)"),
        (
            "text",
            "vae/config.json",
            {"latent_channels": 0},
            "vae/config.json: latent_channels: .*than 0, got 0",
        ),
        ("text", "vae/config.json", {"shift_factor": 0.1}, "vae/config.json: .*shift_factor = 0.1"),
        ("text", "scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEuler.*one of: DDIM"),
        ("text", "scheduler/scheduler_config.json", {"trained_betas": [0.1]}, r"scheduler_config.json: trained_betas"),
        ("text", "scheduler/scheduler_config.json", {"thresholding": True}, "scheduler_config.json: thresholding"),
        ("text", "scheduler/scheduler_config.json", {"beta_schedule": "no_such"}, "scheduler_config.json: .*no_such"),
        ("text", "scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "scheduler_config.json: .*many"),
        ("text", "scheduler/scheduler_config.json", {"beta_end": 7}, "scheduler_config.json: .*beta_end"),
        ("text", "model_index.json", {"text_encoder_3": ["transformers", "X"]}, "lists text_encoder_3; known parts"),
        ("text", "model_index.json", {"_ldm": {"size": "big"}}, "model_index.json: _ldm: size"),
        ("text", "model_index.json", {"_ldm": [1]}, "model_index.json: _ldm: "),
        ("text", "model_index.json", {"_ldm": {"defaults": {"sampler": "dimm"}}}, "_ldm: .*did you mean 'ddim'"),
        ("text", "model_index.json", {"text_encoder": None}, "reads a context 24 wide, but .* is nothing"),
        ("text", "model_index.json", {"vae": None}, None),
        ("text", "text_encoder/config.json", {"vocab_size": "x"}, "text_encoder"),
        (
            "text",
            "text_encoder/config.json",
            {"num_hidden_layers": 3},
            "text_encoder.* does not fit its configuration: 16 missing",
        ),
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


def with_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", TENSOR_FILES["text"])
def test_one_tensor_too_few_or_too_many(copy: Callable[[str], Path], name: str) -> None:
    path = copy("text") / name
    with_tensors(path, lambda tensors: tensors.update({"stranger": torch.zeros(2)}))
    with pytest.raises(UserError, match=f"{name}.*stranger"):
        load_model(path.parent.parent)
    lost = "text_model.final_layer_norm.weight" if "text" in name else "conv_out.bias"
    lost = f"decoder.{lost}" if "vae" in name else lost
    with_tensors(path, lambda tensors: (tensors.pop("stranger"), tensors.pop(lost)))
    with pytest.raises(UserError, match=f"{name}.*{lost.removeprefix('text_model.')}"):
        load_model(path.parent.parent)


def test_a_variant_that_was_fetched_instead_is_pointed_at(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UserError, match=f"unet/{WEIGHTS} is missing; variants there: fp16"):
        load_model(folder)


def test_parts_of_different_models_are_refused(whole: dict[str, Path], copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    shutil.rmtree(folder / "unet")
    shutil.copytree(whole["label"] / "unet", folder / "unet")
    with pytest.raises(UserError, match=r"model: the U-Net maps 1 channels to 1, but what it diffuses has 4"):
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
    save_tower(conditioner.towers[0], tmp_path / "clip")
    index = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    write_json(tmp_path / "clip" / "model_index.json", {"_class_name": "CLIP", **index})
    with pytest.raises(UserError, match=r"holds vae but no unet: it cannot draw"):
        load_model(tmp_path / "vae")
    with pytest.raises(UserError, match=r"holds text_encoder, tokenizer but no unet: it cannot draw"):
        load_model(tmp_path / "clip")
    assert "AutoencoderKL" in describe(str(tmp_path / "vae"))
    assert "CLIPTextModel" in describe(str(tmp_path / "clip"))


def test_places_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", r"no such folder or file; a model is a \.safetensors file, a folder .*, or owner/name on the hub"),
        ("modle.ckpt", r"no such folder or file \(near: model\.ckpt\)"),
        ("emty", r"no such folder or file \(near: empty\)"),
        ("model.ckpt", "is a file, and a model is a folder"),
        ("empty", "found neither model_index.json nor checkpoints"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(tmp_path / name)
    with pytest.raises(UserError, match=r"https://hub\.org/a/b is an address: download the file, or give owner/name"):
        resolve("https://hub.org/a/b")


def test_info_of_a_damaged_folder_exits_with_its_name(copy: Callable[[str], Path]) -> None:
    folder = copy("text")
    shutil.rmtree(folder / "vae")
    result = CliRunner().invoke(ldm.cli.app, ["info", str(folder)])
    assert isinstance(result.exception, UserError)
    assert f"{folder / 'vae'} is missing" in str(result.exception)
