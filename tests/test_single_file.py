"""Models in one file: there and back bit by bit, in diffusers' own readers, and files that do not fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import (
    SCHEDULER,
    SMALL,
    SMALL_VAE,
    assert_same,
    clip_state,
    file_of,
    full_size,
    rewritten,
    shapes_of,
    small,
    stored,
    theirs,
    with_average,
)
from tiny_models import tokenizer_of_words
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.families import FAMILIES, Part
from ldm.weights.files import read_tensors
from ldm.weights.modelspec import CONFIGS
from ldm.weights.outline import outline_of
from ldm.weights.single_file import joined, read_single_file, write_single_file

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_return_as_they_were(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    parts, path = small(kind, dtype), tmp_path / "model.safetensors"
    write_single_file(parts, path)
    found = read_single_file(path)
    assert found.parts.keys() == parts.keys()
    assert not found.unused
    for name, part in parts.items():
        assert found.parts[name].config == part.config
        assert_same(found.parts[name].tensors, part.tensors)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_returns_as_it_was(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_single_file(small(kind, dtype), first)
    write_single_file(read_single_file(first).parts, second)
    assert_same(load_file(second), load_file(first))


PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def their_pipeline(kind: str, parts: dict[str, Part]) -> Any:
    """A pipeline of diffusers with these weights."""
    models: dict[str, Any] = {}
    for name, part in parts.items():
        if part.tensors:
            models[name] = theirs(part.config)
            mine = {key.removeprefix("text_model."): value for key, value in part.tensors.items()}
            wrapped = any(key.startswith("text_model.") for key in models[name].state_dict())
            models[name].load_state_dict(part.tensors if wrapped or "_class_name" in part.config else mine)
    models |= {"scheduler": DDIMScheduler(prediction_type="v_prediction"), "tokenizer": tokenizer_of_words()}
    if kind == "sdxl":
        return StableDiffusionXLPipeline(**models, tokenizer_2=tokenizer_of_words())
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**models, **more)


@pytest.mark.parametrize("kind", SMALL)
def test_diffusers_opens_ours(kind: str, tmp_path: Path) -> None:
    """Their pipeline's own way in, offline: they look for the configurations in a folder."""
    parts, path = small(kind), tmp_path / "model.safetensors"
    write_single_file(parts, path)
    their_pipeline(kind, parts).save_pretrained(tmp_path / "configs")
    extra = {} if kind == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    opened = PIPELINES[kind].from_single_file(
        str(path), config=str(tmp_path / "configs"), local_files_only=True, **extra
    )
    for name, part in parts.items():
        if part.tensors:
            model = getattr(opened, name)
            found = clip_state(model) if name.startswith("text") else dict(model.state_dict())
            assert_same(found, part.tensors)


def test_the_moving_average_is_taken_on_request(tmp_path: Path) -> None:
    path, parts = rewritten(file_of("sd1", tmp_path), with_average), small("sd1")
    plain, averaged = read_single_file(path), read_single_file(path, ema=True)
    assert_same(plain.parts["unet"].tensors, parts["unet"].tensors)
    assert_same(averaged.parts["unet"].tensors, {key: -value for key, value in parts["unet"].tensors.items()})
    assert_same(averaged.parts["vae"].tensors, parts["vae"].tensors)
    assert {"betas", "model_ema.decay"} <= set(plain.unused)


def test_diffusers_takes_the_same_average(tmp_path: Path) -> None:
    tensors = with_average(joined(full_size(FAMILIES[0])))  # they look for a hundred tensors of an average
    average = convert_ldm_unet_checkpoint(tensors, FAMILIES[0].unet_config(512), extract_ema=True)
    found = outline_of(stored(shapes_of(tensors)), ema=True)
    for key, source in found.sources["unet"].items():
        assert average[key] is tensors[source.name]


def test_without_an_average_the_request_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: it holds no moving average"):
        read_single_file(file_of("sd1", tmp_path), ema=True)


def test_names_of_an_older_transformers(tmp_path: Path) -> None:
    def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("transformer.text_model.", "transformer."): value for name, value in tensors.items()}

    found = read_single_file(rewritten(file_of("sd1", tmp_path), older))
    assert_same(found.parts["text_encoder"].tensors, small("sd1")["text_encoder"].tensors)


def test_a_projection_as_diffusers_script_writes_it(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "conditioner.embedders.1.model.text_projection"
        return {**tensors, f"{name}.weight": tensors.pop(name).T.contiguous()}

    found = read_single_file(rewritten(file_of("sdxl", tmp_path), renamed))
    assert_same(found.parts["text_encoder_2"].tensors, small("sdxl")["text_encoder_2"].tensors)


def test_conversion_while_reading_and_writing(tmp_path: Path) -> None:
    parts, path = small("sdxl"), tmp_path / "half.safetensors"
    write_single_file(parts, path, dtype=torch.float16)
    halved = read_single_file(path).parts
    for found in (halved, read_single_file(file_of("sdxl", tmp_path), dtype=torch.float16).parts):
        for name, part in parts.items():
            assert_same(found[name].tensors, {key: value.half() for key, value in part.tensors.items()})


def test_the_argument_overrides_the_header(tmp_path: Path) -> None:
    path = file_of("sd2", tmp_path)
    told, forced = read_single_file(path), read_single_file(path, prediction="epsilon")
    assert (told.prediction, told.prediction_from) == ("v_prediction", "header")
    assert forced.parts["scheduler"].config == {**SCHEDULER, "prediction_type": "epsilon"}
    with pytest.raises(UserError, match="one of: epsilon, v_prediction"):
        read_single_file(path, prediction="velocity")


@pytest.mark.parametrize(
    ("kind", "architecture"), [("sd1", "stable-diffusion-v1"), ("sdxl", "stable-diffusion-xl-v1-base")]
)
def test_the_header(kind: str, architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(small(kind), path, title="Ein Käfer")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    expected = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "title": "Ein Käfer",
        "prediction_type": "v",
        "resolution": "32x32",
    }
    assert {key: header[f"modelspec.{key}"] for key in expected} == expected
    assert {"modelspec.implementation", "modelspec.date", "format"} <= header.keys()


@pytest.mark.parametrize(
    ("family", "prediction", "expected"),
    [
        ("sd1-inpainting", "epsilon", "stable-diffusion-v1-inpainting"),
        ("sd2", "epsilon", "stable-diffusion-v2-512"),
        ("sd2", "v_prediction", "stable-diffusion-v2-768-v"),
    ],
)
def test_architectures(family: str, prediction: str, expected: str, tmp_path: Path) -> None:
    found = next(known for known in FAMILIES if known.name == family)
    parts = {"unet": Part(found.unet_config(512)), "scheduler": Part({"prediction_type": prediction})}
    write_single_file({**parts, "vae": small("sd1")["vae"]}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == expected


def test_what_the_layout_has_no_place_for(tmp_path: Path) -> None:
    parts = small("sd1")
    parts["unet"].tensors["time_embedding.cond_proj.weight"] = torch.ones(2, 2)
    with pytest.raises(UserError, match=r"no place for 1 tensors of the unet \(time_embedding.cond_proj.weight\)"):
        write_single_file(parts, tmp_path / "lcm.safetensors")
    assert not list(tmp_path.iterdir())
    parts = small("sd2")
    del parts["text_encoder"].tensors["text_model.encoder.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(UserError, match="lacks one of q, k and v"):
        write_single_file(parts, tmp_path / "half.safetensors")


@pytest.mark.parametrize("kind", SMALL)
def test_a_lost_tensor_is_told_or_missing(kind: str, tmp_path: Path) -> None:
    """Never anything but our own error; where the reader cannot know, the part lacks what the file lacks."""
    path, parts = file_of(kind, tmp_path), small(kind)
    whole = load_file(path)
    expected = sum(len(part.tensors) for part in parts.values())
    told = 0
    for name in sorted(whole)[:: len(whole) // 12]:
        rewritten(path, lambda _, name=name: {key: value for key, value in whole.items() if key != name})
        try:
            found = read_single_file(path).parts
        except UserError as error:
            told += str(path) in str(error)
            continue
        told += sum(len(part.tensors) for part in found.values()) < expected
    assert told == len(sorted(whole)[:: len(whole) // 12])


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": 1}', '{"unet": {}}', '{"vae": {"down_block_types": 3}}'])
def test_a_damaged_header(text: str, tmp_path: Path) -> None:
    path = rewritten(file_of("sd1", tmp_path), dict, **{CONFIGS: text})
    with pytest.raises(UserError) as caught:
        read_single_file(path)
    assert str(path) in str(caught.value)


def test_a_scalar_for_a_fused_projection(tmp_path: Path) -> None:
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    path = rewritten(file_of("sd2", tmp_path), lambda tensors: {**tensors, name: torch.tensor(1.0)})
    with pytest.raises(UserError, match="should hold q, k and v"):
        read_single_file(path)


def test_missing_and_cut_files(tmp_path: Path) -> None:
    path = file_of("sd1", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    for wrong in (path, tmp_path / "none.safetensors"):
        with pytest.raises(UserError, match=wrong.name):
            read_single_file(wrong)


def test_reading_maps_and_does_not_copy(tmp_path: Path) -> None:
    def private() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    size = 1 << 26
    save_file({"a": torch.ones(size // 4), "b": torch.ones(3)}, tmp_path / "large.safetensors")
    before = private()
    found = read_tensors(tmp_path / "large.safetensors")
    assert found["a"].sum() == size // 4
    assert private() - before < size // 4
    half = read_tensors(tmp_path / "large.safetensors", torch.float16, {"a"})
    assert half.keys() == {"a"}
    assert private() - before < size // 2 + size // 4


def test_configurations_travel_as_json(tmp_path: Path) -> None:
    with safe_open(file_of("sd1", tmp_path), "pt") as file:
        assert json.loads(file.metadata()[CONFIGS])["vae"] == SMALL_VAE
