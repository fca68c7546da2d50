"""What ``ldm info`` says of folders, files and what is neither."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import folder_of
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from single_files import announced, full_size, shapes_of
from tiny_models import label_model, text_model, written
from torch import Tensor

import ldm
from ldm.describe import describe
from ldm.errors import UserError
from ldm.weights.converting import convert_model
from ldm.weights.families import FAMILIES, SD_SCALE, Part, vae_config
from ldm.weights.model import save_model
from ldm.weights.single_file import joined, read_single_file


def shown(place: Path, **options: bool) -> str:
    found = describe(str(place), **options)
    assert found.splitlines()[0] == str(place)
    return found


def numbers(module: torch.nn.Module) -> str:
    return f"{sum(value.numel() for value in module.state_dict().values()):,d} parameters"


# --------------------------------------------------------------------------------------- folders


def test_a_folder(tmp_path: Path) -> None:
    model = text_model()
    found = shown(written("text", tmp_path / "model"))
    text = model.conditioner.towers[0].encoder  # type: ignore[attr-defined]
    for module in (model.net, model.codec.vae, text):  # type: ignore[attr-defined]
        assert numbers(module) in found
    for fact in (
        "kind: StableDiffusionPipeline",
        "MB, float32",
        "scheduler: DDIMScheduler, predicts epsilon, scaled_linear noise of 1000 times",
        f"text_encoder: 24 wide, 2 layers, {text.config.vocab_size} tokens known, windows of 16",
        "pictures: 32x32",
        "draws by default with: sampler ddim, steps 3, guidance 3.0",
    ):
        assert fact in found
    assert "family" not in found


def test_the_model_in_the_package() -> None:
    found = describe(None)
    model = ldm.load().model
    assert str(model.folder) in found
    assert f"draws by default with: sampler {model.defaults['sampler']}" in found
    assert "data: mnist (train), batch" in found


def test_models_in_the_package_have_names_that_hold_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe("ldm:mnist_text") == describe(None)
    assert "LabelConditioner" in describe("ldm:mnist_label")
    named = ldm.load("ldm:mnist_text", dtype="fp32").generate(["a handwritten two"], [1], steps=2)
    assert torch.equal(named, ldm.load(dtype="fp32").generate(["a handwritten two"], [1], steps=2))
    with pytest.raises(UserError, match="no such model comes with ldm, but ldm:mnist_label and ldm:mnist_text"):
        ldm.load("ldm:other")


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        model = label_model()
        model.provenance = {"step": step, "config": {"data": {"source": "mnist", "split": "train"}}}
        save_model(model, tmp_path / "checkpoints" / f"step_{step}")
    found = describe(str(tmp_path))
    assert found.startswith(str(tmp_path / "checkpoints" / "step_2"))
    assert "step: 2" in found
    assert "data: mnist (train)" in found
    model.provenance = {"config": {"data": {"source": "folder"}, "train": {"batch_size": 4}}}
    save_model(model, tmp_path / "checkpoints" / "step_3")
    assert "data: folder, batch 4" in describe(str(tmp_path))


def test_variants_shards_and_pickles_are_told_apart(tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    convert_model(folder, tmp_path / "half", "diffusers", half_variant=True)
    half = Path("unet") / "diffusion_pytorch_model.fp16.safetensors"
    (tmp_path / "half" / half).rename(folder / half)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    torch.save(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"), folder / "vae" / "x.bin")
    (folder / "vae" / "x.bin").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found, count = shown(folder), numbers(unet)
    shards = len(list((folder / "unet").glob("*-of-*.safetensors")))
    assert shards > 1
    assert re.search(rf"unet +UNet2DConditionModel +{count}, [\d.]+ MB, float32, {shards} shards\n", found)
    assert re.search(rf"\n +{count}, [\d.]+ MB, float16, variant fp16\n", found)
    assert re.search(r"vae +AutoencoderKL +pickle, not opened \(see --allow-pickle\), [\d.]+ MB\n", found)
    opened = shown(folder, allow_pickle=True)
    assert re.search(r"vae +AutoencoderKL +[\d,]+ parameters, [\d.]+ MB, float32\n", opened)


def published(family: Any, folder: Path) -> Path:
    """A folder as published: full size, all holes."""
    parts = full_size(family)
    scheduler = {**family.scheduler_config(), "prediction_type": "v_prediction"}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": ["a", "SafetyChecker"]}
    for name, part in [*parts.items(), ("scheduler", Part(scheduler))]:
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(part.config))
        index[name] = ["x", str(part.config.get("_class_name") or part.config["architectures"][0])]
        if part.tensors:
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            announced(folder / name / f"{stem}.safetensors", shapes_of(part.tensors))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_at_full_size(family: Any, tmp_path: Path) -> None:
    found = shown(published(family, tmp_path / "model"))
    assert f"family: {family.title}\n" in found
    assert f"scheduler: {family.scheduler['_class_name']}, predicts v_prediction, scaled_linear" in found
    assert "safety_checker (not here, and not needed)" in found
    assert found.count(" wide, ") == len(family.text_encoders)
    sampler = {"PNDMScheduler": "plms", "DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler leading"}
    guidance = "5.0" if family.name.startswith("sdxl") else "7.5"
    habits = f"sampler {sampler[family.scheduler['_class_name']]}, steps 50, guidance {guidance}"
    assert f"draws by default with: {habits}" in found


def test_a_distilled_network(tmp_path: Path) -> None:
    folder = published(FAMILIES[0], tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "time_cond_proj_dim": 256}))
    assert "family: Stable Diffusion 1.x, distilled: it reads the scale of guidance" in shown(folder)
    assert "kind: UNet2DConditionModel\n" in shown(folder / "unet")
    assert "family: Stable Diffusion 1.x" in shown(folder / "unet")


# ----------------------------------------------------------------------------------------- files


def test_a_single_file_of_ours(tmp_path: Path) -> None:
    convert_model(written("text", tmp_path / "model"), tmp_path / "one.safetensors", "single-file")
    found = shown(tmp_path / "one.safetensors")
    for fact in ("form: single file", "prediction: epsilon (says the header)", "dtype: float32", "title: one"):
        assert f"  {fact}\n" in found
    assert "draws by default with: sampler ddim, steps 3, guidance 3.0" in found
    assert "pictures: 32x32" in found


def pair(name: str, down: str, up: str, rank: int = 4) -> dict[str, Tensor]:
    return {f"{name}.{down}.weight": torch.ones(rank, 8), f"{name}.{up}.weight": torch.ones(8, rank)}


LORA = {**pair("lora_unet_mid", "lora_down", "lora_up"), **pair("lora_te_x", "lora_down", "lora_up", 2)}


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        (LORA, ("kind: LoRA", "naming: kohya", "rank: 2, 4", "parts: unet, text encoder", "layers: 2")),
        (pair("unet.mid", "lora_A", "lora_B"), ("kind: LoRA", "naming: diffusers", "tensors: 2 of 64 numbers")),
        ({"emb_params": torch.ones(2, 768)}, ("kind: textual inversion", "width: 768", "tokens: 2")),
        ({"control_model.a.weight": torch.ones(2)}, ("kind: ControlNet", "naming: CompVis")),
        ({"a.b": torch.ones(2), "c.d": torch.ones(2)}, ("kind: tensors of no model that is known",)),
    ],
)
def test_files_of_weights(tensors: dict[str, Tensor], facts: tuple[str, ...], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "file.safetensors")
    found = shown(tmp_path / "file.safetensors")
    for fact in (*facts, "size: 0.0 MB"):
        assert f"  {fact}" in found


def test_an_autoencoder_alone(tmp_path: Path) -> None:
    parts = {"vae": full_size(FAMILIES[0])["vae"]}
    assert parts["vae"].config == vae_config(SD_SCALE, 512)
    path = announced(tmp_path / "vae.safetensors", shapes_of(joined(parts)))
    assert "kind: vae alone" in shown(path)


def test_a_pickle_is_named_and_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"emb": Bomb()}, tmp_path / "bomb.ckpt")
    found = shown(tmp_path / "bomb.ckpt")
    assert "kind: pickle, a form that can carry code: not opened" in found
    assert "--allow-pickle" in found
    with pytest.raises(UserError, match="is refused"):
        describe(str(tmp_path / "bomb.ckpt"), allow_pickle=True)
    assert not (tmp_path / "exploded").exists()
    torch.save({"emb_params": torch.ones(2, 768)}, tmp_path / "word.pt")
    assert "kind: textual inversion" in shown(tmp_path / "word.pt", allow_pickle=True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_is_for_another_command(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
    assert "`ldm show` reads" in shown(tmp_path / f"a.{suffix}")


# ------------------------------------------------------------------------------------- refusals


def missing_shard(folder: Path) -> None:
    model = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(folder / "unet", max_shard_size="100KB")
    sorted((folder / "unet").glob("*.safetensors"))[-1].unlink()


def truncated(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, r"(\d+)-of-\1\.safetensors is missing, a shard"),
        (truncated, "unet.*is damaged"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json is missing"),
        (lambda folder: (folder / "vae").rename(folder / "vea"), "vae is missing, though .*model_index.json lists it"),
        (lambda folder: (folder / "model_index.json").write_text("["), "is not readable JSON"),
    ],
)
def test_damaged_folders(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message):
        describe(str(folder))


def test_half_a_file_is_told_with_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a.b": torch.ones(500), "c.d": torch.ones(500)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match=f"it is incomplete: {len(whole) - 1000:,d} of {len(whole):,d} bytes"):
        describe(str(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WebP"])
def test_a_picture_in_place_of_weights(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.safetensors", kind)
    with pytest.raises(UserError, match=f"it is a {kind} picture"):
        read_single_file(tmp_path / "a.safetensors")


def test_a_zip_is_no_pickle(tmp_path: Path) -> None:
    for name, inside, message in (
        ("a.zip", "b/model.safetensors", "a zip with b/model.safetensors inside: unpack it"),
        ("a.ckpt", "model.safetensors", "a zip with model.safetensors inside: unpack it"),
        ("a.safetensors", "readme.txt", "a zip without weights in it"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(inside, "x")
        with pytest.raises(UserError, match=message):
            describe(str(tmp_path / name))


def test_names_and_addresses_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"own/name: no such .*on the hub .* are not looked up by info"):
        describe("own/name")
    with pytest.raises(UserError, match=r"https://a\.org/b/c\.safetensors is an address: download the file"):
        describe("https://a.org/b/c.safetensors")


def test_a_folder_of_loose_files(tmp_path: Path) -> None:
    save_file(LORA, tmp_path / "style.safetensors")
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "word.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    torch.save({"emb_params": torch.ones(2, 768)}, tmp_path / "old.pt")
    (tmp_path / "notes.txt").write_text("mine")
    *most, page, style, word = shown(tmp_path).splitlines()
    assert most[1:] == ["  old.pt: pickle, not opened (see --allow-pickle)"]
    assert page.startswith("  page.safetensors: ")
    assert page.endswith("it is a web page, not a model: download it again, perhaps after logging in")
    assert style == "  style.safetensors: LoRA, for no family that is known"
    assert word == "  word.safetensors: textual inversion"
    assert "  old.pt: textual inversion" in shown(tmp_path, allow_pickle=True)


def test_a_folder_of_many_files(tmp_path: Path) -> None:
    for k in range(203):
        (tmp_path / f"{k:03d}.safetensors").touch()
    lines = shown(tmp_path).splitlines()
    assert len(lines) == 202
    assert lines[-1] == "  and 3 more"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"dear", "neither a safetensors file nor a pickle"),
        ("a.safetensors", b"dear", "is damaged or no safetensors file"),
        ("a.safetensors", b"", "is damaged or no safetensors file"),
        ("empty.ckpt", b"", "neither a safetensors file nor a pickle"),
        ("folder/a.txt", b"", "found neither model_index.json nor checkpoints"),
        ("nowhere/../a", None, "no such folder"),
        ("a.safetensors", b"<!DOCTYPE html><html>", "it is a web page, not a model: download it again"),
        ("a.ckpt", b"\n<html>", "it is a web page, not a model: download it again"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "it is a git-lfs pointer"),
        ("a.safetensors", b'{"error": "not found"}', "it is JSON, perhaps an error message of the server"),
        ("a.safetensors", b"", "it is empty"),
        ("a.safetensors", (9).to_bytes(8, "little") + b"{", "it is incomplete: 9 of more than 17 bytes"),
        ("a.safetensors", (ord("<")).to_bytes(8, "little") + b"{", "it is incomplete: 9 of more than 68 bytes"),
    ],
)
def test_what_is_nothing_of_a_model(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        describe(str(path.parent if name.startswith("folder") else path))
