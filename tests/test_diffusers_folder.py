"""diffusers on our folders and we on its: one set of files, one start noise, one picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (  # type: ignore[attr-defined]
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from tiny_models import text_model, written
from torch import Tensor

import ldm
from ldm.pipeline import Pipeline
from ldm.weights.embedded import DEFAULT, as_path
from ldm.weights.files import write_json
from ldm.weights.model import load_vae, save_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPT, NEGATIVE, STEPS, SCALE = "a thick two", "three", 6, 2.5
SAVED_AS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16", "rgb", "mnist_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of random weights, and the trained one that comes with the package."""
    if request.param == "mnist_text":
        return as_path(DEFAULT)
    place = tmp_path_factory.mktemp("model") / request.param
    if request.param == "rgb":
        model = text_model(channels=3)
        model.process = model.process.model_copy(update={"set_alpha_to_one": True})
        save_model(model, place)
        return place
    return written("text", place, SAVED_AS[request.param])


@pytest.fixture(scope="module")
def ours(folder: Path) -> Pipeline:
    return ldm.load(folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return opened(folder)


def opened(folder: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start_noise(seed: int = 0) -> Tensor:
    """What the pipeline starts a picture of this seed from."""
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))[None]


def drawn_by_diffusers(pipe: Any, **options: Any) -> Any:
    options = {"output_type": "pt", "num_inference_steps": STEPS, "guidance_scale": SCALE} | options
    return pipe(height=32, width=32, latents=start_noise(), **options).images


def drawn_by_us(pipe: Pipeline, negative: str | None = None, sampler: str = "ddim") -> tuple[Tensor, Tensor]:
    """(picture in 0..1, latents at the end of the walk)."""
    states: list[Tensor] = []
    picture = pipe.generate(
        [PROMPT],
        [0],
        steps=STEPS,
        guidance=SCALE,
        negative=negative,
        sampler=sampler,
        progress=lambda done, steps, step: states.append(step.x),
    )
    return picture / 2 + 0.5, states[-1]


def assert_near(found: Any, expected: Any, atol: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_the_same_picture(ours: Pipeline, theirs: Any, negative: str | None) -> None:
    assert isinstance(theirs.scheduler, DDIMScheduler)
    picture, latents = drawn_by_us(ours, negative)
    assert picture.std() > 0.05  # something is on it
    assert_near(latents, drawn_by_diffusers(theirs, prompt=PROMPT, negative_prompt=negative, output_type="latent"))
    assert_near(picture, drawn_by_diffusers(theirs, prompt=PROMPT, negative_prompt=negative))


def test_the_same_latents_decode_alike(ours: Pipeline, theirs: Any) -> None:
    picture, _ = drawn_by_us(ours)
    latents = drawn_by_diffusers(theirs, prompt=PROMPT, output_type="latent")
    decoded = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    assert_near(ours.model.codec.decode(latents), decoded.clamp(-1, 1), atol=1e-4)
    array = drawn_by_diffusers(theirs, prompt=PROMPT, output_type="np")  # channels last
    assert_near(picture.permute(0, 2, 3, 1), torch.from_numpy(array))


def test_prompts_are_read_alike(ours: Pipeline, theirs: Any) -> None:
    asked, away = theirs.encode_prompt(PROMPT, torch.device("cpu"), 1, True, negative_prompt=NEGATIVE)
    context = ours.model.conditioner.encode([PROMPT, NEGATIVE]).tokens
    assert context is not None
    assert_near(context, torch.cat([asked, away]), atol=1e-5)
    from_ours = drawn_by_diffusers(theirs, prompt_embeds=context[:1], negative_prompt_embeds=context[1:])
    assert_near(from_ours, drawn_by_us(ours, NEGATIVE)[0])


def test_without_guidance(ours: Pipeline, theirs: Any) -> None:
    picture = ours.generate([PROMPT], [0], steps=STEPS, guidance=1, sampler="ddim") / 2 + 0.5
    assert_near(picture, drawn_by_diffusers(theirs, prompt=PROMPT, guidance_scale=1.0))
    assert (picture - drawn_by_us(ours)[0]).abs().max() > 1e-3  # so that guidance above was worth comparing


@pytest.mark.parametrize(
    ("sampler", "scheduler", "options"),
    [
        ("dpm++_2m", DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}),
        # on other times their Euler does not start from unit variance
        ("euler leading", EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
        ("plms", PNDMScheduler, {"timestep_spacing": "leading", "skip_prk_steps": True}),
    ],
)
def test_other_samplers_on_our_scheduler_config(
    folder: Path, ours: Pipeline, sampler: str, scheduler: Any, options: dict[str, Any]
) -> None:
    pipe = opened(folder)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    assert_near(drawn_by_us(ours, sampler=sampler)[0], drawn_by_diffusers(pipe, prompt=PROMPT))


# ----------------------------------------------------------------------- folders that diffusers wrote


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ours that diffusers has read and written again."""
    place = tmp_path_factory.mktemp("foreign")
    opened(written("text", place / "ours")).save_pretrained(place / "theirs")
    return place / "theirs"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_folders_of_diffusers(rewritten: Path, tmp_path: Path, prediction: str) -> None:
    folder = Path(shutil.copytree(rewritten, tmp_path / "model"))
    place = folder / "scheduler" / "scheduler_config.json"
    write_json(place, {**json.loads(place.read_text()), "prediction_type": prediction, "set_alpha_to_one": True})
    pipe = ldm.load(folder, device="cpu", dtype="fp32")
    assert pipe.model.size == (32, 32)
    assert_near(drawn_by_us(pipe)[0], drawn_by_diffusers(opened(folder), prompt=PROMPT))


def test_the_scheduler_of_stable_diffusion_1(rewritten: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rewritten, tmp_path / "model"))
    pipe = opened(folder)
    pipe.scheduler = PNDMScheduler(1000, 0.00085, 0.012, "scaled_linear", skip_prk_steps=True, steps_offset=1)
    shutil.rmtree(folder)
    pipe.save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert ldm.load(folder, device="cpu").model.process == text_model().process
    # what a file leaves out is as in that scheduler, whose runs do not end at clean
    place = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(place.read_text())
    assert config.pop("set_alpha_to_one") is False
    write_json(place, config)
    assert ldm.load(folder, device="cpu").model.process == text_model().process


# ----------------------------------------------------------------------------- old attention names

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder whose VAE names its attention layers as files of before 2023 do."""
    folder = written("text", tmp_path / "model")
    path = folder / "vae" / WEIGHTS
    tensors = {}
    for key, value in load_file(path).items():
        for name, former in OLD_NAMES.items():
            key = key.replace(f"attentions.0.{name}.", f"attentions.0.{former}.")
        tensors[key] = value
    assert sum(".proj_attn." in key for key in tensors) == 4  # weight and bias, encoder and decoder
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_old_attention_names_are_read_as_diffusers_reads_them(old: Path) -> None:
    ours = load_vae(old)
    theirs = AutoencoderKL.from_pretrained(old / "vae")
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert_near(ours.encode(images), theirs.encode(images).latent_dist.parameters, atol=1e-5)
        assert_near(ours.decode(start_noise()), theirs.decode(start_noise()).sample, atol=1e-5)


def test_a_folder_of_old_names_draws_the_same(old: Path, tmp_path: Path) -> None:
    today = written("text", tmp_path / "today")
    expected = drawn_by_us(ldm.load(today, device="cpu", dtype="fp32"))[0]
    assert torch.equal(drawn_by_us(ldm.load(old, device="cpu", dtype="fp32"))[0], expected)
    assert_near(expected, drawn_by_diffusers(opened(old), prompt=PROMPT))
