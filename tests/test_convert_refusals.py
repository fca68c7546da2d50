"""Conversions that are refused: nothing is spoilt on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import (
    contents,
    folder_of,
    foreign,
    header,
    made_lora,
    refused,
)
from safetensors.torch import load_file, save_file
from test_training_failures import leave, small_disk  # noqa: F401
from tiny_families import FAMILIES
from tiny_models import written

from ldm.convert_command import convert_files
from ldm.weights.converting import convert_lora, convert_model
from ldm.weights.lora_files import save_lora
from ldm.weights.modelspec import INDEX, TOKENIZERS
from ldm.weights.opening import Loading, lora_targets, open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("sd1", tmp_path_factory.mktemp("refusals") / "model")


@pytest.mark.parametrize(
    ("target", "form", "message"),
    [
        ("model", "diffusers", "is what is converted"),
        ("link", "diffusers", "is what is converted"),
        ("model/inside", "diffusers", "is inside"),
        ("model/one.safetensors", "single-file", "is inside"),
        ("letters", "diffusers", "holds something that is no model"),
        ("letters/a.txt", "diffusers", "holds something that is no model"),
        ("letters/b.safetensors", "single-file", "is there and no model"),
        ("lora.safetensors", "single-file", "is there and no model"),
        ("one", "single-file", "is written to a .safetensors file"),
        ("one.ckpt", "single-file", "is written to a .safetensors file"),
        ("one.safetensors", "diffusers", "is written to a folder"),
        ("letters/a.txt/one.safetensors", "single-file", "cannot be written"),
        ("letters/a.txt/one", "diffusers", "cannot be written"),
        ("one", "onnx", "unknown form of a model 'onnx'"),
    ],
)
def test_where_nothing_is_written(model: Path, target: str, form: Any, message: str) -> None:
    place = model.parent
    (place / "letters").mkdir(exist_ok=True)
    (place / "letters" / "a.txt").write_text("dear")
    (place / "letters" / "b.safetensors").write_text("dear")
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, place / "lora.safetensors")
    (place / "link").unlink(missing_ok=True)
    (place / "link").symlink_to(model)
    refused(lambda: convert_model(model, place / target, form), place, message)


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    outer = written("text", tmp_path / "outer")
    inner = written("text", outer / "inner")
    refused(lambda: convert_model(inner, outer, "diffusers"), tmp_path, "which is read, is inside")
    file = foreign("sd1", tmp_path / "one.safetensors")
    refused(lambda: convert_model(file, file, "single-file"), tmp_path, "is what is converted")
    how = Loading(vae=file)
    refused(lambda: convert_model(outer, file, "single-file", how), tmp_path, "is what is converted")


def test_a_model_is_replaced_whole(tmp_path: Path) -> None:
    target = written("label", tmp_path / "old")
    convert_model(written("text", tmp_path / "new"), target, "diffusers")
    assert contents(target) == contents(tmp_path / "new")
    file = foreign("sd1", tmp_path / "one.safetensors")
    convert_model(tmp_path / "new", file, "single-file")
    assert open_model(file, Loading()).size == (32, 32)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_damaged_sources(share: float, tmp_path: Path) -> None:
    folder = written("text", tmp_path / "model")
    file = foreign("sd1", tmp_path / "one.safetensors")
    for damaged in (file, folder / "vae" / "diffusion_pytorch_model.safetensors"):
        content = damaged.read_bytes()
        damaged.write_bytes(content[: int(share * len(content))])
        source = damaged if damaged == file else folder
        for target, form in (("out", "diffusers"), ("out.safetensors", "single-file")):
            run = lambda source=source, target=target, form=form: convert_model(source, tmp_path / target, form)  # type: ignore[misc]  # noqa: E731
            refused(run, tmp_path, "is damaged")
    refused(lambda: convert_model(tmp_path / "no", tmp_path / "out", "diffusers"), tmp_path, "no such folder")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (TOKENIZERS, {"tokenizer": {"../../escaped.txt": "x"}}, r"\.\./\.\./escaped.txt', which is no file of a tok"),
        (TOKENIZERS, {"../tokenizer": {"vocab.json": "x"}}, "which is no file of a tokenizer"),
        (TOKENIZERS, {"tokenizer": {"vocab.json": 3}}, "which is no file of a tokenizer"),
        (TOKENIZERS, {"tokenizer": {"vocab.json": "{", "tokenizer_config.json": "{}"}}, "tokenizer"),
        (TOKENIZERS, {"tokenizer": 3}, f"{TOKENIZERS} in its header is damaged"),
        (INDEX, [], f"{INDEX} in its header is damaged"),
        (INDEX, {"_ldm": {"defaults": {"sampler": "dimm"}}}, "did you mean 'ddim'"),
    ],
)
def test_hostile_headers(field: str, value: Any, message: str, tmp_path: Path) -> None:
    file = foreign("sd1", tmp_path / "one.safetensors")
    save_file(load_file(file), file, metadata={**header(file), field: json.dumps(value)})
    refused(lambda: convert_model(file, tmp_path / "out", "diffusers"), tmp_path, message)


@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_a_full_disk(form: Any, small_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    source = written("text", tmp_path / "model")
    target = small_disk / ("old" if form == "diffusers" else "old.safetensors")
    convert_model(source, target, form, dtype=torch.float16)
    leave(small_disk, sum(path.stat().st_size for path in source.rglob("*.safetensors")) // 2)
    refused(lambda: convert_model(source, target, form), small_disk, "cannot be written")
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", target.name]


def test_loras_that_are_not_converted(tmp_path: Path) -> None:
    sd1, sdxl = FAMILIES["sd1"](), FAMILIES["sdxl"]()
    lora = tmp_path / "style.safetensors"
    save_lora(made_lora(lora_targets(sd1)), lora)
    other = foreign("sd1", tmp_path / "model.safetensors")
    new = tmp_path / "new.safetensors"
    refused(lambda: convert_lora(lora, lora, "kohya", sd1), tmp_path, "is what is converted")
    refused(lambda: convert_lora(lora, other, "kohya", sd1), tmp_path, "is there and no LoRA")
    refused(lambda: convert_lora(other, new, "kohya", sd1), tmp_path, "holds no LoRA")
    refused(lambda: convert_lora(lora, new, "kohya", sdxl), tmp_path, "does not fit this model")


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", {}, "unknown form 'onnx'"),
        ("diffusers", {"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ("diffusers", {"dtype": "bf16", "half_variant": True}, "half_variant means float16, and dtype says bfloat16"),
        ("single-file", {"half_variant": True}, "half_variant is for folders"),
        ("diffusers", {"model": "x"}, "model says which model a LoRA is for"),
        ("diffusers", {"ema": True}, "ema is for single files"),
        ("diffusers", {"variant": "fp16"}, "variants there: \\(none\\)"),
        ("diffusers", {"prediction": "x"}, "prediction should be one of epsilon, v"),
        ("kohya", {}, "give one as model"),
        ("peft", {"model": "x", "dtype": "fp16", "ema": False}, "^dtype: for models, and peft is a naming of LoRAs"),
    ],
)
def test_flags_that_do_not_go_together(model: Path, to: str, options: dict[str, Any], message: str) -> None:
    target = model.parent / ("out" if to == "diffusers" else "out.safetensors")
    refused(lambda: convert_files(str(model), target, to, options), model.parent, message)
