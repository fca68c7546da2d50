"""Every family of Stable Diffusion against diffusers: the same folder, the same start noise, the same picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler  # type: ignore[attr-defined]
from tiny_families import (
    DRAWING,
    FAMILIES,
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    STEPS,
    Folders,
    assert_near,
    drawn_by_diffusers,
    drawn_by_us,
    generators,
    opened,
    sd1,
)
from tiny_models import label_model, pipeline, unconditional_model

import ldm
from ldm.errors import UserError
from ldm.models.unet_config import UNetConfig
from ldm.weights.model import load_model, save_model

LONG = "a thick tall one slanted to the right and " * 4
WEIGHED = "a (thick:1.4) [two] BREAK three"
PROMPTS = [PROMPT, LONG, None, WEIGHED]
SEEDS = [5, 900, 6, 2**64 - 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


# -------------------------------------------------------------------------------- whole pictures


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++_2m", "lcm"])
@pytest.mark.parametrize("family", DRAWING)
def test_whole_pictures(folders: Folders, family: str, sampler: str) -> None:
    found = drawn_by_us(folders.ours(family), sampler)
    assert_near(found, drawn_by_diffusers(folders.theirs(family), sampler))


@pytest.mark.parametrize("family", [name for name in DRAWING if name != "lcm"])
def test_negative_prompts_and_no_guidance(folders: Folders, family: str) -> None:
    ours, theirs = folders.ours(family), folders.theirs(family)
    away = drawn_by_us(ours, "ddim", negative=NEGATIVE)
    assert_near(away, drawn_by_diffusers(theirs, "ddim", negative_prompt=NEGATIVE))
    # the empty prompt is not always what "no prompt" is
    empty = drawn_by_us(ours, "ddim", negative="")
    assert_near(empty, drawn_by_diffusers(theirs, "ddim", negative_prompt=""))
    assert torch.equal(empty, drawn_by_us(ours, "ddim")) == (family != "sdxl")
    unguided = drawn_by_us(ours, "ddim", guidance=1.0)
    assert_near(unguided, drawn_by_diffusers(theirs, "ddim", guidance_scale=1.0))
    assert (away - empty).abs().max() > 0.01
    assert (away - unguided).abs().max() > 0.01


@pytest.mark.parametrize("size", [(24, 40), (48, 16)], ids=["wide", "tall"])
@pytest.mark.parametrize("family", DRAWING)
def test_sizes_that_are_not_square(folders: Folders, family: str, size: tuple[int, int]) -> None:
    found = drawn_by_us(folders.ours(family), "dpm++_2m", size=size)
    assert found.shape[-2:] == size
    assert_near(found, drawn_by_diffusers(folders.theirs(family), "dpm++_2m", size=size))


def test_several_prompts(folders: Folders) -> None:
    prompts, seeds = [PROMPT, "four", "three"], [7, 8, 2**40]
    expected = drawn_by_diffusers(folders.theirs("sdxl"), "ddim", prompts, seeds)
    assert_near(drawn_by_us(folders.ours("sdxl"), "ddim", prompts, seeds), expected)


NUMBERS = [
    {"original_size": (1024, 64)},
    {"crop_top_left": (100, 30)},
    {"target_size": (64, 999)},
    {"original_size": (33, 64), "crop_top_left": (5, 0), "target_size": (16, 800)},
]


@pytest.mark.parametrize("told", NUMBERS, ids=["original", "crop", "target", "all"])
def test_what_sdxl_is_told(folders: Folders, told: dict[str, Any]) -> None:
    ours, names = folders.ours("sdxl"), {"crop_top_left": "crops_coords_top_left"}
    found = drawn_by_us(ours, "ddim", size=(24, 40), **told)
    theirs = {names.get(key, key): value for key, value in told.items()}
    assert_near(found, drawn_by_diffusers(folders.theirs("sdxl"), "ddim", size=(24, 40), **theirs))
    assert (found - drawn_by_us(ours, "ddim", size=(24, 40))).abs().max() > 0.01


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_turbo(folders: Folders, family: str, steps: int) -> None:
    found = drawn_by_us(folders.ours(family), "euler_a trailing", steps=steps, guidance=1.0)
    options = {"num_inference_steps": steps, "guidance_scale": 0.0}  # how diffusers is told to leave it out
    assert_near(found, drawn_by_diffusers(folders.theirs(family), "euler_a trailing", **options))


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 4), (8.0, 4), (2.5, 1)])
def test_latent_consistency_models_are_told_the_scale(folders: Folders, guidance: float, steps: int) -> None:
    theirs = folders.theirs("lcm", "LatentConsistencyModelPipeline")
    expected = drawn_by_diffusers(theirs, "lcm", guidance_scale=guidance, num_inference_steps=steps)
    found = drawn_by_us(folders.ours("lcm"), "lcm", guidance=guidance, steps=steps)
    assert_near(found, expected)
    assert (found - drawn_by_us(folders.ours("lcm"), "lcm", guidance=30.0, steps=steps)).abs().max() > 0.01


def test_zero_terminal_snr_with_rescaled_guidance(folders: Folders, tmp_path: Path) -> None:
    model = load_model(folders.folder("sd2"))
    model.process = model.process.model_copy(update={"zero_snr": True, "set_alpha_to_one": True})
    save_model(model, tmp_path / "zero")
    theirs = opened(tmp_path / "zero")
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, timestep_spacing="trailing")
    expected = drawn_by_diffusers_from(theirs, prompt=PROMPT, guidance_rescale=0.7)
    ours = ldm.load(tmp_path / "zero", device="cpu", dtype="fp32")
    found = drawn_by_us(ours, "ddim trailing", guidance_rescale=0.7)
    assert_near(found, expected)
    assert (found - drawn_by_us(ours, "ddim trailing")).abs().max() > 0.01


@pytest.mark.parametrize("skip", [2, 3])
def test_clip_skip(folders: Folders, skip: int) -> None:
    found = drawn_by_us(folders.ours("sd1"), "ddim", guidance=1.0, clip_skip=skip)
    assert_near(found, drawn_by_diffusers(folders.theirs("sd1"), "ddim", guidance_scale=1.0, clip_skip=skip - 1))
    assert (found - drawn_by_us(folders.ours("sd1"), "ddim", guidance=1.0)).abs().max() > 0.01


def test_clip_skip_of_sdxl(folders: Folders) -> None:
    found = drawn_by_us(folders.ours("sdxl"), "ddim", guidance=1.0, clip_skip=2)
    assert_near(found, drawn_by_diffusers(folders.theirs("sdxl"), "ddim", guidance_scale=1.0, clip_skip=1))


def test_clip_skip_is_for_the_negative_prompt_too(folders: Folders) -> None:
    """As in A1111; diffusers reads its last layer whatever it was asked for, so it is handed both here."""
    theirs = folders.theirs("sd1")
    asked, away = (
        theirs.encode_prompt(text, torch.device("cpu"), 1, False, clip_skip=1)[0] for text in (PROMPT, NEGATIVE)
    )
    expected = drawn_by_diffusers_from(theirs, prompt_embeds=asked, negative_prompt_embeds=away)
    assert_near(drawn_by_us(folders.ours("sd1"), "ddim", negative=NEGATIVE, clip_skip=2), expected)


def drawn_by_diffusers_from(pipe: Any, **asked: Any) -> torch.Tensor:
    """With the scheduler that the pipeline has."""
    noise = torch.randn(1, 4, 8, 8, generator=generators([0])[0])
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt", "latents": noise}
    return pipe(height=32, width=32, **options, **asked).images


# --------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_diffusers_hold_the_same_model(folders: Folders, family: str, tmp_path: Path) -> None:
    opened(folders.folder(family)).save_pretrained(tmp_path)
    ours, back = load_model(folders.folder(family)), load_model(tmp_path)
    assert (back.process, back.prediction, back.size, back.net.config) == (
        ours.process,
        ours.prediction,
        ours.size,
        ours.net.config,
    )
    assert back.inpaints == ours.inpaints == ("inpaint" in family)
    save_model(back, tmp_path / "again")
    assert_same_files(folders.folder(family), tmp_path / "again", "*.safetensors")


def test_a_folder_of_diffusers_draws_the_same(folders: Folders, tmp_path: Path) -> None:
    opened(folders.folder("sdxl")).save_pretrained(tmp_path)
    back = ldm.load(tmp_path, device="cpu", dtype="fp32")
    assert torch.equal(drawn_by_us(back, "ddim"), drawn_by_us(folders.ours("sdxl"), "ddim"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_changes_nothing(folders: Folders, family: str, tmp_path: Path) -> None:
    save_model(load_model(folders.folder(family)), tmp_path / "again")
    assert_same_files(folders.folder(family), tmp_path / "again", "*")


def assert_same_files(first: Path, second: Path, pattern: str) -> None:
    def held(folder: Path) -> dict[str, Any]:
        found = [path for path in folder.rglob(pattern) if path.is_file()]
        return {str(path.relative_to(folder)): content(path) for path in found}

    def content(path: Path) -> Any:
        return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()

    assert len(held(first)) > 2
    assert held(first).keys() == held(second).keys()
    assert [name for name, content in held(first).items() if held(second)[name] != content] == []


PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpaint": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-inpaint": "StableDiffusionXLInpaintPipeline",
}


@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_opens_a_folder_with_the_right_pipeline(folders: Folders, family: str) -> None:
    assert type(folders.theirs(family)).__name__ == PIPELINES[family]
    assert folders.theirs(family).unet.config.in_channels == (9 if "inpaint" in family else 4)


# ---------------------------------------------------------------------------- what a picture depends on


@pytest.mark.parametrize("family", DRAWING)
def test_a_picture_does_not_depend_on_its_batch_by_a_bit(folders: Folders, family: str) -> None:
    ours = folders.ours(family)
    options = {"steps": 3} if family == "lcm" else {"steps": 3, "negative": NEGATIVE}
    together = drawn_by_us(ours, "euler_a", PROMPTS, SEEDS, **options)
    for k in reversed(range(len(PROMPTS))):
        assert torch.equal(
            together[k], drawn_by_us(ours, "euler_a", PROMPTS[k : k + 1], SEEDS[k : k + 1], **options)[0]
        )
    fresh = ldm.load(folders.folder(family), device="cpu", dtype="fp32")  # with no prompt remembered
    assert torch.equal(together[1:2], drawn_by_us(fresh, "euler_a", PROMPTS[1:2], SEEDS[1:2], **options))


def test_a_variation_seed_turns_the_start_noise(folders: Folders) -> None:
    ours = folders.ours("sd1")
    starts = {part: start_of(ours, variation_seed=9, variation_strength=part) for part in (0.0, 0.3, 0.7, 1.0)}
    own, other = start_of(ours), start_of(ours, seed=9)
    assert torch.equal(starts[0.0], own)
    torch.testing.assert_close(starts[1.0], other, rtol=0, atol=1e-5)
    norms = sorted([float(own.norm()), float(other.norm())])
    for part in (0.3, 0.7):
        assert 0.99 * norms[0] < starts[part].norm() < 1.01 * norms[1]
    closeness = [float(torch.cosine_similarity(x.flatten(), other.flatten(), dim=0)) for x in starts.values()]
    assert closeness == sorted(closeness)
    assert closeness[1] > closeness[0] + 0.1


def start_of(pipe: ldm.pipeline.Pipeline, seed: int = 0, **options: Any) -> torch.Tensor:
    """The noise that a picture starts from: what the network is asked about first."""
    seen: list[torch.Tensor] = []
    handle = pipe.model.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    try:
        pipe.generate([PROMPT], [seed], steps=1, guidance=1.0, sampler="ddim", **options)
    finally:
        handle.remove()
    return seen[0]


def test_variation_of_strength_0_is_the_picture_itself(folders: Folders) -> None:
    ours = folders.ours("sd1")
    plain = drawn_by_us(ours, "euler_a", PROMPTS[:2], SEEDS[:2])
    varied = {"variation_seed": 3}
    assert torch.equal(drawn_by_us(ours, "euler_a", PROMPTS[:2], SEEDS[:2], variation_strength=0.0, **varied), plain)
    assert (drawn_by_us(ours, "euler_a", PROMPTS[:2], SEEDS[:2], variation_strength=0.2, **varied) - plain).any()


# ---------------------------------------------------------------------------------------- mistakes

OUT_OF_RANGE = {
    "clip_skip": 0,
    "variation_strength": 1.5,
    "variation_seed": 2**64,
    "strength": 0,
    "original_size": (0, 8),
    "target_size": (8, -1),
    "crop_top_left": (1,),
    "prompt_syntax": "comfy",
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_options_out_of_range(folders: Folders, name: str) -> None:
    with pytest.raises(UserError, match=name):
        folders.ours("sdxl").generate([PROMPT], [0], **{name: OUT_OF_RANGE[name]})


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("sd1", {"strength": 0.5}, "strength says how much of a picture to redraw: give the picture (init) too"),
        ("sd1", {"variation_strength": 0.1}, "a variation takes a variation_seed to turn towards"),
        ("sd1", {"original_size": (8, 8)}, "original_size is for models that read it (SDXL), and this one does not"),
        ("sd1", {"crop_top_left": (8, 8)}, "crop_top_left is for models that read it (SDXL), and this one does not"),
        ("sd1", {"target_size": (8, 8)}, "target_size is for models that read it (SDXL), and this one does not"),
        ("sd1", {"clip_skip": 4}, "clip_skip should be from 1 (as trained) to 3, the layers to be had; got 4"),
        ("sdxl", {"clip_skip": 3}, "clip_skip should be from 1 (as trained) to 2, the layers to be had; got 3"),
        ("sd1", {"height": 30}, "height 30 is not a multiple of 4, as this model needs; 32 is the nearest"),
        ("sd1", {"guidance": 1.0, "negative": "three"}, "negative 'three' would do nothing: it is"),
        ("lcm", {"guidance": 8.0, "negative": "three"}, "negative 'three' would do nothing: it is"),
        ("sd1", {"variation_seed": 4}, "a variation takes a variation_seed to turn towards, and a variation_strength"),
        ("sd1", {"guidance": 1, "guidance_rescale": 0.5}, "guidance_rescale would do nothing"),
        ("sd1", {"guidance": 1, "guidance_interval": (0, 0.5)}, "guidance_interval would do nothing"),
        ("lcm", {"apg": True}, "apg would do nothing: it changes guidance, and this network is told its scale"),
        ("sd1", {"apg_eta": 0.5}, "apg_eta is a setting of apg, which is off"),
        ("sd1", {"hires_strength": 0.5}, "hires_strength is of the second, larger pass: hires_scale says how much"),
        ("sd1-inpaint", {}, "this model inpaints: give it a picture (init) and a mask"),
    ],
)
def test_options_that_do_not_fit_the_model(
    folders: Folders, family: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        folders.ours(family).generate([PROMPT], [0], **options)


@pytest.mark.parametrize("make", [label_model, unconditional_model])
def test_clip_skip_without_a_text_encoder(make: Any) -> None:
    with pytest.raises(UserError, match="clip_skip is about a text encoder, and this model has none"):
        pipeline(make()).generate([None], [0], clip_skip=2)


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    model = sd1()
    model.conditioner = FAMILIES["sd2"]().conditioner
    save_model(model, tmp_path / "towers")
    with pytest.raises(UserError, match="reads a context 24 wide, but the conditioning is 20 wide"):
        load_model(tmp_path / "towers")
    wide = FAMILIES["sdxl"]()
    assert isinstance(wide.net.config, UNetConfig)
    model = sd1(cross_attention_dim=40)
    model.conditioner = wide.conditioner
    save_model(model, tmp_path / "pooled")
    with pytest.raises(UserError, match="reads a pooled prompt None wide, but the text encoders give one 20 wide"):
        load_model(tmp_path / "pooled")
