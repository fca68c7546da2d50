"""Models from one form into another: every tensor and every setting as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import (
    DTYPES,
    PNDM,
    change,
    contents,
    folder_of,
    foreign,
    header,
    made_lora,
    refused,
    tensors_of,
)
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from single_files import assert_same, clip_state, full_size, with_average
from tiny_families import FAMILIES
from tiny_models import vae, written
from torch import Tensor

import ldm
from ldm.convert_command import convert_files
from ldm.errors import UserError
from ldm.weights.components import describe
from ldm.weights.converting import convert_lora, convert_model
from ldm.weights.families import FAMILIES as TABLE
from ldm.weights.families import Part
from ldm.weights.lora import merge_loras
from ldm.weights.lora_files import read_lora, save_lora
from ldm.weights.model import load_model
from ldm.weights.modelspec import CONFIGS, TOKENIZERS
from ldm.weights.opening import Loading, lora_targets, open_model
from ldm.weights.papers import is_usual, read_papers, usual_tokenizer
from ldm.weights.single_file import joined, write_single_file

# ------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd1", "fp32"), ("sd1", "fp16"), ("sd1", "bf16"), ("sd2", "fp16"), ("sdxl", "bf16"), ("sdxl-empty", "fp32")],
)
def test_a_folder_returns_as_it_was(family: str, dtype: str, tmp_path: Path) -> None:
    """Tensors, configurations, tokenizers and what the model likes to be drawn with: all that is in the folder."""
    folder = folder_of(family, tmp_path / "model", DTYPES[dtype])
    change(folder / "scheduler" / "scheduler_config.json", timestep_spacing="trailing", _diffusers_version="0.6.0")
    done = convert_model(folder, tmp_path / "one.safetensors", "single-file")
    assert done.dtypes == str(DTYPES[dtype]).removeprefix("torch.")
    assert done.size == sum(t.numel() * t.itemsize for t in load_file(done.path).values())
    convert_model(done.path, tmp_path / "back", "diffusers")
    assert contents(tmp_path / "back") == contents(folder)


def test_the_class_of_the_scheduler_survives(tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    change(folder / "scheduler" / "scheduler_config.json", **PNDM)
    change(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    convert_model(folder, tmp_path / "one.safetensors", "single-file")
    convert_model(tmp_path / "one.safetensors", tmp_path / "back", "diffusers")
    assert contents(tmp_path / "back") == contents(folder)
    opened = DiffusionPipeline.from_pretrained(tmp_path / "back")
    assert type(opened.scheduler).__name__ == "PNDMScheduler"


def test_the_model_in_the_package_draws_the_same(tmp_path: Path) -> None:
    """It has a tokenizer of its own, defaults of its own and a record of its training: all go along."""
    folder = ldm.load().model.folder
    assert folder is not None
    done = convert_model(folder, tmp_path / "digits.safetensors", "single-file")
    assert done.tokenizers == ["tokenizer"]
    before, after = (ldm.load(place, device="cpu", dtype="fp32") for place in (folder, done.path))
    for field in ("defaults", "provenance", "size", "prediction", "process"):
        assert getattr(after.model, field) == getattr(before.model, field), field
    pictures = [pipe("a thick seven", seed=3, steps=2)[0].tobytes() for pipe in (before, after)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(("kind", "dtype"), [("sd1", "fp32"), ("sd2", "bf16"), ("sdxl", "fp16")])
def test_a_file_returns_as_it_was(kind: str, dtype: str, tmp_path: Path) -> None:
    first = foreign(kind, tmp_path / "first.safetensors", DTYPES[dtype])
    convert_model(first, tmp_path / "folder", "diffusers")
    convert_model(tmp_path / "folder", tmp_path / "second.safetensors", "single-file")
    assert_same(load_file(tmp_path / "second.safetensors"), load_file(first))
    before, after = header(first), header(tmp_path / "second.safetensors")
    for name, config in json.loads(before[CONFIGS]).items():
        again = json.loads(after[CONFIGS])[name]
        assert {key: again[key] for key in config} == config
    assert TOKENIZERS not in after  # CLIP's own
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert "_ldm" not in index  # it was not trained here, and its scheduler tells how to draw


@pytest.mark.parametrize("family", TABLE, ids=lambda family: family.name)
def test_configurations_of_the_families_are_taken_as_they_are(family: Any, tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1).expand(t.shape) for name, t in joined(full_size(family)).items()}
    torch.save(tensors, tmp_path / "any.ckpt")
    found = read_papers(tmp_path / "any.ckpt", allow_pickle=True)
    side = found.configs["vae"]["sample_size"]
    assert found.configs["unet"] == family.unet_config(side)
    assert found.configs["scheduler"].items() >= family.scheduler_config().items()
    assert found.index is None


def test_a_header_keeps_what_its_author_wrote(tmp_path: Path) -> None:
    first = foreign("sd1", tmp_path / "first.safetensors")
    metadata = {**header(first), "modelspec.author": "Ada", "modelspec.license": "CC0", "other": "x"}
    save_file({**load_file(first), "betas": torch.ones(3)}, first, metadata=metadata)
    done = convert_model(first, tmp_path / "half.safetensors", "single-file", dtype=torch.float16)
    after = header(done.path)
    kept = {"title": "Käfer", "author": "Ada", "license": "CC0"}
    assert {key: after[f"modelspec.{key}"] for key in kept} == kept
    assert done.left_out == ["betas"]
    expected = {name: value.half() for name, value in load_file(first).items() if name != "betas"}
    assert_same(load_file(done.path), expected)


def test_a_projection_without_use_is_told(tmp_path: Path) -> None:
    """Files of SD 2 have one for their text encoder, whose states are read before it."""
    first = foreign("sd2", tmp_path / "first.safetensors")
    name = "cond_stage_model.model.text_projection"
    save_file({**load_file(first), name: torch.ones(32, 32)}, first, metadata=header(first))
    assert convert_model(first, tmp_path / "folder", "diffusers").left_out == [name]


# ------------------------------------------------------------------------------ with diffusers


@pytest.mark.parametrize(("family", "kind"), [("sd1", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_diffusers_opens_the_file(family: str, kind: Any, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path / "model")
    convert_model(folder, tmp_path / "one.safetensors", "single-file")
    extra = {} if family == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    file = str(tmp_path / "one.safetensors")
    opened = kind.from_single_file(file, config=str(folder), local_files_only=True, **extra)
    assert_same_modules(opened, tensors_of(folder))


def assert_same_modules(opened: Any, expected: dict[str, dict[str, Tensor]]) -> None:
    for name, tensors in expected.items():
        module = getattr(opened, name)
        assert_same(clip_state(module) if name.startswith("text") else dict(module.state_dict()), tensors)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_opens_the_half_variant(family: str, tmp_path: Path) -> None:
    folder, half = folder_of(family, tmp_path / "model"), tmp_path / "half"
    convert_model(folder, half, "diffusers", half_variant=True)
    files = {path.relative_to(half).as_posix() for path in half.rglob("*.safetensors")}
    whole = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert files == {name.replace(".safetensors", ".fp16.safetensors") for name in whole}
    opened = DiffusionPipeline.from_pretrained(half, variant="fp16", torch_dtype=torch.float16)
    halved = {name: {k: v.half() for k, v in part.items()} for name, part in tensors_of(folder).items()}
    assert_same_modules(opened, halved)
    # and we read it too, on into a single file
    convert_model(half, tmp_path / "one.safetensors", "single-file", Loading(variant="fp16"))
    convert_model(folder, tmp_path / "two.safetensors", "single-file", dtype=torch.float16)
    assert_same(load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors"))


def test_a_file_becomes_a_folder_that_diffusers_draws_with(tmp_path: Path) -> None:
    """In half precision too, where transformers would compute in another dtype than diffusers."""
    file = foreign("sd1", tmp_path / "one.safetensors", torch.float16)
    convert_model(file, tmp_path / "folder", "diffusers")
    opened = DiffusionPipeline.from_pretrained(tmp_path / "folder")
    opened.set_progress_bar_config(disable=True)
    picture = opened("a cat", num_inference_steps=2, height=32, width=32, output_type="pt").images
    assert picture.shape == (1, 3, 32, 32)
    assert (
        opened.tokenizer("a cat sat").input_ids == usual_tokenizer({"hidden_act": "quick_gelu"})("a cat sat").input_ids
    )


# ------------------------------------------------------------------------- other sources, changes


def test_shards_and_pickles_become_one_file(tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    expected = tensors_of(folder)
    model = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    torch.save(expected["vae"], folder / "vae" / "diffusion_pytorch_model.bin")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="--allow-pickle"):
        convert_model(folder, tmp_path / "copy", "diffusers")
    convert_model(folder, tmp_path / "copy", "diffusers", Loading(allow_pickle=True))
    for name, tensors in tensors_of(tmp_path / "copy").items():
        assert_same(tensors, expected[name])


def test_a_checkpoint_becomes_safetensors(tmp_path: Path) -> None:
    """A pickle has no header; where its tensors are of a family that is known, it needs none."""
    parts = full_size(TABLE[0])
    torch.save(
        {"state_dict": {n: torch.zeros(1).expand(t.shape) for n, t in joined(parts).items()}}, tmp_path / "a.ckpt"
    )
    with pytest.raises(UserError, match=r"a\.ckpt is a pickle.*--allow-pickle"):
        convert_model(tmp_path / "a.ckpt", tmp_path / "a.safetensors", "single-file")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("kind", ["label", "unconditional"])
def test_pixel_models_stay_folders(kind: str, tmp_path: Path) -> None:
    folder = written(kind, tmp_path / "model")
    with pytest.raises(UserError, match="no vae and no text_encoder: keep this model as a folder"):
        convert_model(folder, tmp_path / "one.safetensors", "single-file")
    convert_model(folder, tmp_path / "copy", "diffusers")
    assert contents(tmp_path / "copy") == contents(folder)
    convert_model(folder, tmp_path / "half", "diffusers", half_variant=True)
    found = open_model(tmp_path / "half", Loading(variant="fp16"))
    assert_same(dict(found.net.state_dict()), {k: v.half() for k, v in load_model(folder).net.state_dict().items()})


def test_what_the_layout_has_no_place_for_stays_a_folder(tmp_path: Path) -> None:
    folder = folder_of("lcm", tmp_path / "model")
    with pytest.raises(UserError, match=r"no place for 1 tensors of the unet.*keep this model as a folder"):
        convert_model(folder, tmp_path / "one.safetensors", "single-file")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_parts_that_nothing_draws_with_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    change(folder / "model_index.json", requires_safety_checker=True)
    convert_files(str(folder), tmp_path / "copy", "diffusers", {})
    assert "left out, as nothing draws with it: 1 (safety_checker)" in capsys.readouterr().out
    assert DiffusionPipeline.from_pretrained(tmp_path / "copy").safety_checker is None


def test_the_moving_average(tmp_path: Path) -> None:
    file = foreign("sd1", tmp_path / "one.safetensors")
    plain = load_file(file)
    save_file(with_average(plain), file, metadata=header(file))
    convert_model(file, tmp_path / "ema.safetensors", "single-file", Loading(ema=True))
    unet = "model.diffusion_model."
    expected = {name: -value if name.startswith(unet) else value for name, value in plain.items()}
    assert_same(load_file(tmp_path / "ema.safetensors"), expected)


def test_another_autoencoder(tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    other = vae(3)
    write_single_file({"vae": Part(describe(other), dict(other.state_dict()))}, tmp_path / "vae.safetensors")
    convert_model(folder, tmp_path / "new", "diffusers", Loading(vae=tmp_path / "vae.safetensors"))
    found, before = tensors_of(tmp_path / "new"), tensors_of(folder)
    assert_same(found["vae"], dict(other.state_dict()))
    assert_same(found["unet"], before["unet"])
    config = json.loads((tmp_path / "new" / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]


@pytest.mark.parametrize("form", ["diffusers", "single-file"])
def test_another_prediction_type(form: Any, tmp_path: Path) -> None:
    target = tmp_path / ("v" if form == "diffusers" else "v.safetensors")
    convert_model(folder_of("sd1", tmp_path / "model"), target, form, Loading(prediction="v"))
    assert open_model(target, Loading()).prediction == "v"
    if form == "single-file":
        assert header(target)["modelspec.prediction_type"] == "v"


def test_a_lora_is_merged(tmp_path: Path) -> None:
    folder = folder_of("sd1", tmp_path / "model")
    model = load_model(folder)
    lora = made_lora(lora_targets(model))
    save_lora(lora, tmp_path / "style.safetensors")
    options = {"loras": (f"{tmp_path / 'style.safetensors'}:0.5",), "dtype": "fp16"}
    convert_files(str(folder), tmp_path / "merged", "diffusers", options)
    live = Loading(loras=((tmp_path / "style.safetensors", 0.5),), live=True)
    refused(lambda: convert_model(folder, tmp_path / "live", "diffusers", live), tmp_path, "live LoRAs are for drawing")
    merge_loras(lora_targets(model), [(lora, 0.5)])
    expected = {key: value.half() for key, value in model.net.state_dict().items()}
    assert_same(tensors_of(tmp_path / "merged")["unet"], expected)  # rounded once, after the merge


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_loras_change_their_names_alone(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    targets = lora_targets(model)
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    save_lora(made_lora(targets, dtype), files[0], "peft")
    convert_lora(files[0], files[1], "kohya", model)
    done = convert_lora(files[1], files[2], "peft", model)
    assert_same(load_file(files[2]), load_file(files[0]))
    assert set(done.parts) == targets.keys()
    first, second = (read_lora(file, targets) for file in files[:2])
    for target, layers in first.layers.items():
        for name, layer in layers.items():
            other = second.layers[target][name]
            assert (other.alpha, other.rank) == (layer.alpha, layer.rank)
            assert_same({"down": other.down, "up": other.up}, {"down": layer.down, "up": layer.up})


def test_one_line_says_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder_of("sd1", tmp_path / "model")
    convert_files(str(model), tmp_path / "one.safetensors", "single-file", {"dtype": "fp16"})
    shown = capsys.readouterr()
    megabytes = sum(value.numel() * 2 for value in load_file(tmp_path / "one.safetensors").values()) / 1e6
    first, note = shown.out.splitlines()
    assert first.startswith(f"{tmp_path / 'one.safetensors'}: unet, vae, text_encoder, {megabytes:,.1f} MB, float16, ")
    assert first.endswith(" s")
    assert note.startswith("its tokenizer is not CLIP's own")
    assert shown.err == ""


def test_which_tokenizers_are_clips_own() -> None:
    for config in ({"hidden_act": "quick_gelu"}, {"hidden_act": "gelu"}):
        tokenizer = usual_tokenizer(config)
        assert is_usual(tokenizer, config)
        tokenizer.add_tokens(["<cat>"])
        assert not is_usual(tokenizer, config)
    assert not is_usual(usual_tokenizer({"hidden_act": "gelu"}), {"hidden_act": "quick_gelu"})
