"""LoRAs in whole pictures: against diffusers with the same file, merged and live, and through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline  # type: ignore[attr-defined]
from PIL import Image
from tiny_families import Folders, drawn_by_diffusers, drawn_by_us, sdxl
from tiny_loras import FILES, write_kohya, write_peft

import ldm
from ldm.cli import app
from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.read import read_record
from ldm.recorded import draw_again
from ldm.weights.model import save_model

LIMIT = 2 / 255


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    found = Folders(tmp_path_factory.mktemp("folders"))
    save_model(sdxl(layers_per_block=2), found.place / "sdxl")  # CompVis counts its blocks by two
    return found


@pytest.fixture(scope="module")
def loras(folders: Folders) -> list[Path]:
    """Two for the family sd1, with an opinion on the text encoder too."""
    found = []
    for name, write in (("first", write_peft), ("second", write_kohya)):
        folder = folders.place / name
        folder.mkdir()
        torch.manual_seed(len(name))
        write(folder, theirs_of(folders.folder("sd1")))
        found.append((folder / "style.safetensors").rename(folder / f"{name}.safetensors"))
    return found


def theirs_of(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folders: Folders, family: str = "sd1", dtype: str = "fp32", **weights: Any) -> ldm.studio.Studio:
    return ldm.load(folders.folder(family), device="cpu", dtype=dtype, **weights)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("naming", FILES)
def test_pictures_are_those_of_diffusers_with_the_same_file(
    folders: Folders, tmp_path: Path, naming: str, live: bool
) -> None:
    write, xl = FILES[naming]
    family = "sdxl" if xl else "sd1"
    write(tmp_path, theirs_of(folders.folder(family)))
    theirs = theirs_of(folders.folder(family))
    plain = drawn_by_diffusers(theirs, "ddim")
    theirs.load_lora_weights(str(tmp_path), weight_name="style.safetensors", adapter_name="style")
    theirs.set_adapters(["style"], [0.8])
    expected = drawn_by_diffusers(theirs, "ddim")
    assert (expected - plain).abs().max() > 5 * LIMIT
    ours = load(folders, family, loras=[(tmp_path / "style.safetensors", 0.8)], live=live)
    assert (drawn_by_us(ours, "ddim") - expected).abs().max() < LIMIT


def test_several_weighed_anew_between_pictures(folders: Folders, loras: list[Path]) -> None:
    theirs, ours = theirs_of(folders.folder("sd1")), load(folders, live=True)
    for lora in loras:
        theirs.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name=lora.stem)
    for weights in ((0.3, 0.2), (0.0, 0.4), (-0.2, 0.1)):
        theirs.set_adapters(["first", "second"], list(weights))
        ours.set_loras(list(zip(loras, weights, strict=True)))
        expected = drawn_by_diffusers(theirs, "euler")
        assert (drawn_by_us(ours, "euler") - expected).abs().max() < LIMIT
    ours.set_loras([])
    assert torch.equal(drawn_by_us(ours, "euler"), drawn_by_us(folders.ours("sd1"), "euler"))


def test_a_file_that_is_named_twice_has_the_sum(folders: Folders, loras: list[Path]) -> None:
    twice, once = load(folders, live=True), load(folders, live=True, loras=[(loras[0], 0.3)])
    twice.set_loras([(loras[0], 0.1), (str(loras[0]), 0.2)])
    assert (drawn_by_us(twice, "ddim") - drawn_by_us(once, "ddim")).abs().max() < 1e-4


def test_live_in_bf16_is_near_to_fp32(folders: Folders, loras: list[Path]) -> None:
    exact = load(folders, live=True, loras=[(loras[0], 0.3)])
    half = load(folders, dtype="bf16", live=True, loras=[(loras[0], 0.3)])
    assert (drawn_by_us(half, "ddim") - drawn_by_us(exact, "ddim")).abs().mean() < 0.02
    half.set_loras([])
    assert (drawn_by_us(half, "ddim") - drawn_by_us(folders.ours("sd1"), "ddim")).abs().mean() < 0.02


def test_what_is_wrong_leaves_the_loras_as_they_were(folders: Folders, loras: list[Path], tmp_path: Path) -> None:
    ours = load(folders, live=True, loras=[(loras[0], 0.3)])
    before = drawn_by_us(ours, "ddim")
    other = tmp_path / "other.safetensors"
    other.write_bytes((folders.folder("sd1") / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    for bad, message in ((tmp_path / "none.safetensors", "none.safetensors"), (other, "other.safetensors")):
        with pytest.raises(UserError, match=message):
            ours.set_loras([(loras[1], 0.5), (bad, 1.0)])
        assert torch.equal(drawn_by_us(ours, "ddim"), before)
    with pytest.raises(UserError, match=r"merged into this model, if any; ldm.load\(..., live=True\)"):
        folders.ours("sd1").set_loras([])


def test_a_picture_with_live_loras_is_drawn_again(folders: Folders, loras: list[Path], tmp_path: Path) -> None:
    ours = load(folders, live=True)
    ours.set_loras([(loras[0], 0.1)])
    ours.set_loras([(loras[1], 0.2), (loras[0], 0.3)])  # the order of a sum shows in its last bits
    image = ours("two", steps=3)[0]
    save_image(image, tmp_path / "two.png", image.info["record"])
    record = read_record(tmp_path / "two.png")
    assert record is not None
    again, fresh = draw_again(record)
    assert again.tobytes() == image.tobytes()
    assert fresh.loading == record.loading


# ------------------------------------------------------------------------------ the command line


def generate(folders: Folders, *words: object) -> None:
    common = ["generate", "--model", folders.folder("sd1"), "--dtype", "fp32", "--device", "cpu", "--steps", 3]
    app([str(word) for word in (*common, *words)], standalone_mode=False)


def test_each_prompt_has_the_loras_that_it_names(folders: Folders, loras: list[Path], tmp_path: Path) -> None:
    first, second = loras
    prompts = [f"two <lora:{first}:0.3>", f"two<lora:{first}:-0.3> ", "two", f"two <lora:{second.with_suffix('')}:0.2>"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    generate(folders, "--from-file", tmp_path / "prompts.txt", "--seed", 4, "-o", tmp_path / "out.png")
    found = [Image.open(tmp_path / f"out_{k:04d}.png") for k in range(1, 5)]
    for k, sets in enumerate(([(first, 0.3)], [(first, -0.3)], [], [(second, 0.2)])):
        ours = load(folders, live=True, loras=sets)
        text = "two " if k in (0, 1, 3) else "two"
        assert found[k].tobytes() == ours(text, seed=4 + k, steps=3)[0].tobytes(), k
    assert len({image.tobytes() for image in found}) == 4


def test_loras_that_all_prompts_share_are_merged(folders: Folders, loras: list[Path], tmp_path: Path) -> None:
    first, second = loras
    out = tmp_path / "out.png"
    generate(folders, f"two <lora:{second}:0.2>", "--lora", f"{first}:0.3", "--seed", 4, "-o", out)
    ours = load(folders, loras=[(first, 0.3), (second, 0.2)])
    assert Image.open(out).tobytes() == ours("two ", seed=4, steps=3)[0].tobytes()
    record = read_record(out)
    assert record is not None
    assert record.loading["loras"] == [[str(first), 0.3], [str(second), 0.2]]
    assert "live" not in record.loading
    # other programs find them in the prompt, as they write them there
    assert f"<lora:{first.stem}:0.3> <lora:{second.stem}:0.2>" in Image.open(out).text["parameters"].splitlines()[0]
    assert json.loads(record.to_json())["inputs"]["lora 1"]["name"] == str(first)


def test_another_file_under_the_same_name_is_found_out(folders: Folders, loras: list[Path], tmp_path: Path) -> None:
    changing = tmp_path / "changing.safetensors"
    changing.write_bytes(loras[0].read_bytes())
    image = load(folders, loras=[(changing, 0.3)])("two", steps=3)[0]
    changing.write_bytes(loras[1].read_bytes())
    with pytest.raises(UserError, match=r"lora 1 \(.*changing.safetensors\) is not the file that the picture was"):
        draw_again(image.info["record"])


def test_a_lora_that_is_wrong_is_known_before_the_first_picture(
    folders: Folders, loras: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors"):
        generate(folders, "two", f"two <lora:{tmp_path / 'none'}>", "-o", tmp_path / "out.png")
    assert not list(tmp_path.glob("*.png"))


def test_a_live_lora_that_changes_in_its_place_is_read_again_and_none_is_kept(
    folders: Folders, loras: list[Path], tmp_path: Path
) -> None:
    changing, ours = tmp_path / "changing.safetensors", load(folders, live=True)
    before = sum(parameter.numel() for parameter in ours.model.net.parameters())
    expected = []
    for lora in loras:
        changing.write_bytes(lora.read_bytes())
        ours.set_loras([(changing, 0.3)])
        expected.append(drawn_by_us(load(folders, live=True, loras=[(lora, 0.3)]), "ddim"))
        assert torch.equal(drawn_by_us(ours, "ddim"), expected[-1])
    assert not torch.equal(*expected)
    ours.set_loras([])
    assert sum(parameter.numel() for parameter in ours.model.net.parameters()) == before
