"""``ldm show``, ``replay``, ``convert`` and ``info`` on what ``ldm generate`` draws with and writes."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generate_lab import PROMPT, furnish, pixels, refused, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from tiny_models import written

from ldm import cli
from ldm.metadata.read import read_record

FLAGS = ["--seed", "3", "--steps", "3", "--dtype", "fp32"]
ENDINGS = ["png", "webp", "jpg"]
UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a picture of each format, of a prompt, a mask and a ControlNet, by ``sd1`` and a LoRA."""
    folder = tmp_path_factory.mktemp("lab")
    with contextlib.chdir(folder):
        furnish(folder)
        written("label", folder / "label")
        for ending in ENDINGS:
            flags = ["-m", "sd1", "--lora", "style.safetensors:0.5", "-i", "init.png", "--mask", "mask.png"]
            assert run("generate", PROMPT, *flags, *FLAGS, "-o", f"r.{ending}") == (0, "")
    return folder


@pytest.fixture(autouse=True)
def place(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab, as a copy that a test may change."""
    folder = shutil.copytree(lab, tmp_path / "lab")
    monkeypatch.chdir(folder)
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``ldm`` prints; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        cli.run(cli.app, list(words))
    said = capsys.readouterr()
    assert (ended.value.code or 0, said.err) == (0, "")
    return said.out


# ------------------------------------------------------------------------------ show and replay


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_picture_of_any_format_is_told_and_drawn_again(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "show", f"r.{ending}")
    for line in (f"prompt: {PROMPT}", "seed: 3", "steps: 3", "model: sd1, from sd1", "mask: mask.png (sha256 "):
        assert f"  {line}" in shown
    assert "style.safetensors" in shown
    assert "identical" in told(capsys, "replay", f"r.{ending}", "--verify", "-o", f"again.{ending}")
    first, again = (Image.open(f"{name}.{ending}") for name in ("r", "again"))
    assert pixels(first) == pixels(again)
    old, new = read_record(f"r.{ending}"), read_record(f"again.{ending}")
    assert old is not None
    assert new is not None
    assert old.model_copy(update={"cost": None}) == new.model_copy(update={"cost": None})


def test_what_is_promised_of_each_format(place: Path) -> None:
    """PNG and WebP hold the pixels that were drawn; a JPEG holds near ones, and the record of those that were."""
    png, webp, jpeg = (Image.open(f"r.{ending}") for ending in ENDINGS)
    assert pixels(png) == pixels(webp)
    away = np.abs(np.asarray(png).astype(int) - np.asarray(jpeg))
    assert 0 < away.mean() < 6
    assert len({record.pixels for record in map(read_record, (f"r.{e}" for e in ENDINGS)) if record}) == 1


def test_another_place_of_the_same_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "sd1").rename(place / "moved")
    assert "sd1" in refused("replay", "r.png", "--verify")
    assert "identical" in told(capsys, "replay", "r.png", "--verify", "--model", "moved")


@pytest.mark.parametrize("flags", [[], ["--verify"], ["-o", "new.png"]])
def test_another_model_is_refused(flags: list[str]) -> None:
    assert "other is not sd1, which drew the picture" in refused("replay", "r.png", "--model", "other", *flags)


def test_another_model_is_refused_where_a_folder_has_variants(capsys: pytest.CaptureFixture[str]) -> None:
    """The same folder, of two models: the hash is that of the weights that were read."""
    for flags, name in (([], "plain.png"), (["--variant", "fp16"], "half.png")):
        assert run("generate", "two", "-m", "varied", *flags, *FLAGS, "-o", name) == (0, "")
        assert "identical" in told(capsys, "replay", name, "--verify")
        assert "  model hash: " in told(capsys, "show", name)
    assert "fp16.safetensors is missing" in refused("replay", "half.png", "--model", "sd1")
    assert "other is not varied" in refused("replay", "plain.png", "--model", "other")
    assert "identical" in told(capsys, "replay", "plain.png", "--model", "sd1", "--verify")


def test_weights_that_changed_in_their_place_are_named(place: Path) -> None:
    shutil.copy(Path("other") / UNET, Path("sd1") / UNET)
    assert "is not sd1, which drew the picture" in refused("replay", "r.png", "--verify")
    assert "is not sd1, which drew the picture" in refused("replay", "r.png", "-o", "new.png")


def test_another_part_shows_in_the_pixels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("other/vae", "sd1/vae", dirs_exist_ok=True)
    assert "some pixels differ" in refused("replay", "r.png", "--verify")
    assert "not identical" in told(capsys, "replay", "r.png", "-o", "new.png")
    assert pixels(Image.open("new.png")) != pixels(Image.open("r.png"))


@pytest.mark.parametrize("name", ["init.png", "mask.png", "style.safetensors"])
@pytest.mark.parametrize("gone", [True, False])
def test_an_input_that_is_gone_or_another_is_named(name: str, gone: bool, place: Path) -> None:
    if gone:
        (place / name).unlink()
    elif name.endswith("png"):
        Image.new("RGB", (48, 40)).save(name)
    else:
        tensors = load_file(name)
        save_file({key: -value for key, value in tensors.items()}, name)
    assert name in refused("replay", "r.png", "--verify")


def repainted(source: str, target: str) -> None:
    """A picture whose pixels were changed while its record was kept."""
    image = Image.open(source)
    image.load()
    chunks = PngInfo()
    chunks.add_text("ldm", image.text["ldm"], zip=True)  # type: ignore[attr-defined]
    changed = image.copy()
    changed.putpixel((3, 4), (1, 2, 3))
    changed.save(target, pnginfo=chunks)


def test_a_picture_that_was_painted_over_is_not_proved(place: Path) -> None:
    repainted("r.png", "painted.png")
    assert "painted.png" in refused("replay", "painted.png", "--verify")


def test_what_cannot_be_drawn_again(place: Path) -> None:
    assert "init.png holds no record of ldm" in refused("replay", "init.png")
    assert "there is no file none.png" in refused("replay", "none.png")
    assert "unknown picture format '.gif'" in refused("replay", "r.png", "-o", "a.gif")
    assert "there is no folder nowhere" in refused("replay", "r.png", "-o", "nowhere/a.png")
    assert "there is no file none.png" in refused("show", "none.png")


# --------------------------------------------------------------------------- convert and info


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    files = [path for path in folder.rglob("*.safetensors") if ".fp16." not in path.name]
    return {f"{path.parent.name} {key}": value for path in files for key, value in load_file(path).items()}


def assert_bitwise(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)


def test_a_model_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target, form in (
        ("sd1", "a.safetensors", "single-file"),
        ("a.safetensors", "back", "diffusers"),
        ("back", "b.safetensors", "single-file"),
    ):
        assert target in told(capsys, "convert", source, target, "--to", form)
    assert_bitwise(tensors_in(place / "sd1"), tensors_in(place / "back"))
    assert_bitwise(load_file("a.safetensors"), load_file("b.safetensors"))
    for model, name in (("sd1", "1.png"), ("a.safetensors", "2.png"), ("back", "3.png")):
        assert run("generate", "two", "-m", model, *FLAGS, "-o", name) == (0, "")
    assert pixels(Image.open("1.png")) == pixels(Image.open("2.png")) == pixels(Image.open("3.png"))


def test_dtypes_variants_and_what_is_merged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "convert", "sd1", "half", "--to", "diffusers", "--half-variant")
    told(capsys, "convert", "sd1", "half.safetensors", "--to", "single-file", "--dtype", "fp16")
    assert {value.dtype for value in load_file("half.safetensors").values()} == {torch.float16}
    assert sorted(path.name for path in (place / "half/unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    told(capsys, "convert", "sd1", "merged", "--to", "diffusers", "--lora", "style.safetensors:0.5")
    for flags, name in ((["-m", "merged"], "1.png"), (["-m", "sd1", "--lora", "style.safetensors:0.5"], "2.png")):
        assert run("generate", "two", *flags, *FLAGS, "-o", name) == (0, "")
    assert pixels(Image.open("1.png")) == pixels(Image.open("2.png"))


def test_a_lora_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "convert", "style.safetensors", "k.safetensors", "--to", "kohya", "--model", "sd1")
    told(capsys, "convert", "k.safetensors", "p.safetensors", "--to", "peft", "--model", "sd1")
    assert "naming: kohya" in told(capsys, "info", "k.safetensors")
    assert_bitwise(load_file("style.safetensors"), load_file("p.safetensors"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sd1 a.safetensors --to single", "unknown form 'single'; did you mean 'single-file'?"),
        ("sd1 a.ckpt --to single-file", ".safetensors"),
        ("sd1 sd1 --to diffusers", "name another place"),
        ("sd1 label --to diffusers --dtype fp8", "unknown dtype 'fp8'"),
        ("none a.safetensors --to single-file", "none: no such folder"),
        ("init.png a.safetensors --to single-file", "init.png"),
        ("style.safetensors a.safetensors --to single-file", "style.safetensors"),
        ("style.safetensors a.safetensors --to kohya", "give one as model"),
        ("style.safetensors a.safetensors --to kohya --model other --dtype fp16", "dtype"),
        ("sd1 a.safetensors --to kohya --model sd1", "sd1"),
        ("sd1 a.safetensors --to single-file --model sd1", "model"),
        ("sd1 a.safetensors --to single-file --half-variant", "half_variant"),
        ("sd1 a --to diffusers --ema", "ema"),
        ("sd1 a --to diffusers --revision main", "revision"),
        ("sd1 a --to diffusers --lora init.png", "init.png"),
        ("pickled a --to diffusers", "--allow-pickle"),
        ("sd1 prompts.txt/a --to diffusers", "prompts.txt"),
    ],
)
def test_conversions_that_are_refused(line: str, message: str) -> None:
    assert message in refused("convert", *line.split())


KINDS: dict[str, str] = {
    "sd1": "kind: StableDiffusionPipeline",
    "sd1/unet": "kind: UNet2DConditionModel",
    "sd1/vae": "kind: AutoencoderKL",
    "sd1/text_encoder": "kind: CLIPTextModel",
    "label": "sampler dpm++_2m",
    "one.safetensors": "form: single file",
    "averaged.safetensors": "moving average: yes",
    "style.safetensors": "kind: LoRA",
    "zebra.safetensors": "kind: textual inversion",
    "control-sd1-7": "kind: ControlNetModel",
    "control-sd1-7/diffusion_pytorch_model.safetensors": "kind: ControlNet",
    f"sd1/{UNET}": "unet",
    "sd1/vae/diffusion_pytorch_model.safetensors": "kind: vae alone",
    "pickled": "pickle, not opened",
    "pickled/unet/diffusion_pytorch_model.bin": "kind: pickle",
    "r.png": "kind: picture (PNG)",
    "r.jpg": "kind: picture (JPEG)",
    "r.webp": "kind: picture (WebP)",
}


@pytest.mark.parametrize("name", KINDS)
def test_info_names_every_kind_of_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert KINDS[name] in told(capsys, "info", name)


@pytest.mark.parametrize("name", ["prompts.txt", "none", "sd1/scheduler", "sd1/unet/config.json", "sd1/tokenizer"])
def test_info_of_what_is_no_model(name: str) -> None:
    assert name in refused("info", name)


def test_the_record_says_what_was_typed(place: Path) -> None:
    record: dict[str, Any] = json.loads(Image.open("r.png").text["ldm"])  # type: ignore[attr-defined]
    assert record["drawing"]["pictures"] == {"init": "init.png", "mask": "mask.png"}
    assert record["loading"]["loras"] == [["style.safetensors", 0.5]]
    assert record["cost"]["seconds"] > 0
