"""txt2img and img2img: the flags of CompVis's scripts, what they write, and how they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_calls import assert_same, call, drawn, files, picture, shown
from tiny_families import Folders
from tiny_models import written

import ldm
from ldm.commands import replay_picture
from ldm.drawing import Inputs
from ldm.images import grid, to_pil

# The flags of CompVis's scripts, those that mean nothing here, and ours.
_SHARED = (
    *("prompt", "outdir", "skip_grid", "skip_save", "ddim_steps", "plms", "fixed_code", "ddim_eta", "n_iter", "C", "f"),
    *("n_samples", "n_rows", "scale", "from-file", "config", "ckpt", "seed", "precision"),
)
COMPVIS = {
    "txt2img": {*_SHARED, "H", "W", "dpm_solver", "laion400m"},
    "img2img": {*_SHARED, "init-img", "strength"},
    "inpaint": {"indir", "outdir", "steps"},
}
ABSENT = {"txt2img": ["laion400m", "C", "f", "config"], "img2img": ["C", "f", "config"], "inpaint": []}
OURS = {
    "txt2img": {"allow-pickle"},
    "img2img": {"allow-pickle"},
    "inpaint": {"allow-pickle", "ckpt", "precision", "prompt", "scale", "seed"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    written("text", folder / "text")
    Folders(folder).folder("sd1")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMPVIS)
def test_every_flag_of_the_original_is_there_or_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, "--help") == 0
    told, offered = capsys.readouterr().out.split("options:")
    assert set(re.findall(r"--([\w-]+)", offered)) - {"help"} == COMPVIS[name] - set(ABSENT[name]) | OURS[name]
    for flag in ABSENT[name]:
        assert f"--{flag}" in told.split("Left out")[1]
    for flag in OURS[name]:
        assert f"--{flag}" in told


# ------------------------------------------------------------------------------------ txt2img


def test_txt2img_writes_and_numbers_on_as_the_original(place: Path, models: Path) -> None:
    common = ["--ckpt", models / "text", "--prompt", "two", "--outdir", "out", "--ddim_steps", "3"]
    assert call("txt2img", *common, "--n_samples", "2", "--n_iter", "2") == 0
    first = [f"samples/0000{k}.png" for k in range(4)]
    assert files(place / "out") == ["grid-0000.png", *first]
    before = [path.read_bytes() for path in sorted((place / "out" / "samples").iterdir())]
    assert call("txt2img", *common, "--n_samples", "1", "--n_iter", "1", "--seed", "9") == 0
    assert files(place / "out") == ["grid-0000.png", "grid-0001.png", *first, "samples/00004.png"]
    assert [path.read_bytes() for path in sorted((place / "out" / "samples").iterdir())][:4] == before


def test_txt2img_has_the_defaults_of_the_original(place: Path, models: Path) -> None:
    assert call("txt2img", "--ckpt", models / "text", "--prompt", "two") == 0
    folder = place / "outputs" / "txt2img-samples"
    pipe = ldm.load(models / "text")
    seeds = list(range(42, 48))  # two iterations of three
    pictures = pipe.generate(["two"] * 6, seeds, sampler="ddim", steps=50, eta=0, guidance=7.5, batch_size=3)
    assert_same(drawn(folder), to_pil(pictures))
    assert np.abs(shown(folder / "grid-0000.png") - np.asarray(to_pil(grid(pictures, 3)[None])[0])).max() <= 1


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--plms"], {"sampler": "plms"}),
        (["--dpm_solver"], {"sampler": "dpm++_2m"}),
        (["--ddim_eta", "0.7"], {"sampler": "ddim", "eta": 0.7}),
        (["--H", "24", "--W", "40"], {"sampler": "ddim", "height": 24, "width": 40}),
        (["--scale", "2"], {"sampler": "ddim", "guidance": 2.0}),
        (["--scale", "1", "--precision", "full"], {"sampler": "ddim", "guidance": 1.0}),
    ],
)
def test_txt2img_flags(place: Path, models: Path, flags: list[str], options: dict[str, object]) -> None:
    common = ["--ckpt", models / "text", "--prompt", "two", "--outdir", "out", "--n_iter", "1", "--n_samples", "2"]
    assert call("txt2img", *common, "--ddim_steps", "6", "--seed", "3", *flags) == 0
    dtype = "fp32" if "full" in flags else None
    pictures = ldm.load(models / "text", dtype=dtype)(["two"] * 2, seed=3, steps=6, **{"guidance": 7.5, **options})
    assert_same(drawn(place / "out"), pictures)


def test_txt2img_skips(place: Path, models: Path) -> None:
    common = ["--ckpt", models / "text", "--ddim_steps", "2", "--n_iter", "1", "--n_samples", "4"]
    assert call("txt2img", *common, "--outdir", "a", "--skip_grid") == 0
    assert len(files(place / "a")) == 4
    assert call("txt2img", *common, "--outdir", "b", "--skip_save", "--n_rows", "4") == 0
    assert files(place / "b") == ["grid-0000.png"]
    assert Image.open("b/grid-0000.png").size == (4 * 34 + 2, 34 + 2)  # one row of four


def test_txt2img_with_fixed_code_starts_each_batch_alike(place: Path, models: Path) -> None:
    common = ["--ckpt", models / "text", "--prompt", "two", "--ddim_steps", "3", "--n_samples", "2", "--n_iter", "2"]
    assert call("txt2img", *common, "--outdir", "fixed", "--fixed_code") == 0
    assert call("txt2img", *common, "--outdir", "free") == 0
    a, b, c, d = drawn(place / "fixed")
    assert np.array_equal(a, c)
    assert np.array_equal(b, d)
    assert not np.array_equal(a, b)
    free = drawn(place / "free")
    assert np.array_equal(free[0], a)
    assert not np.array_equal(free[2], a)


def test_txt2img_reads_prompts_from_a_file(place: Path, models: Path) -> None:
    (place / "prompts.txt").write_text("two\nthree\na thick one\n", encoding="utf-8")
    common = ["--ckpt", models / "text", "--from-file", "prompts.txt", "--outdir", "out", "--ddim_steps", "3"]
    assert call("txt2img", *common, "--n_samples", "2", "--n_iter", "2", "--seed", "0") == 0
    prompts = ["two", "three", "a thick one"] * 2
    expected = ldm.load(models / "text")(prompts, seed=0, sampler="ddim", steps=3, guidance=7.5)
    assert_same(drawn(place / "out"), expected)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *[([f"--{flag}", "8"], f"unrecognized arguments: --{flag}") for flag in ABSENT["txt2img"]],
        (["--plms", "--dpm_solver"], "not allowed with argument --plms"),
        (["--precision", "half"], "invalid choice: 'half'"),
        (["--plms", "--ddim_eta", "0.5"], "eta is for the sampler ddim"),
        (["--ddim_eta", "2"], "eta: should be less than or equal to 1, got 2.0"),
        (["--ddim_steps", "0"], "steps: should be greater than or equal to 1, got 0"),
        (["--n_iter", "0"], "count should be 1 or more, got 0"),
        (["--n_samples", "-1"], "count should be 1 or more, got -1"),
        (["--seed", "-1"], "seed should be 0 or more, got -1"),
        (["--H", "33"], "height 33 is not a multiple of 4"),
        (["--from-file", "nothing.txt"], "--from-file nothing.txt cannot be read"),
        (["--from-file", "empty.txt"], "--from-file empty.txt is empty"),
        (["--ckpt", "empty.txt"], "empty.txt is neither a safetensors file nor a pickle"),
        (["--outdir", "empty.txt"], "empty.txt is a file"),
    ],
)
def test_txt2img_mistakes(
    place: Path, models: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (place / "empty.txt").touch()
    assert call("txt2img", "--ckpt", models / "text", *flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == ["empty.txt"]


# ------------------------------------------------------------------------------------ img2img


def redrawn(models: Path, init: torch.Tensor, prompts: list[str], seeds: list[int], **options: object) -> torch.Tensor:
    """What the script should draw, by the pipeline alone."""
    given = {"sampler": "ddim", "steps": 6, "guidance": 5.0, "strength": 0.75, **options}
    pipe = ldm.load(models / "sd1", dtype="fp32")
    return pipe.generate(prompts, seeds, inputs=Inputs(init=init[None]), **given)


def test_img2img_has_the_defaults_of_the_original(place: Path, models: Path) -> None:
    init = picture(place / "a.png")
    common = ["--ckpt", models / "sd1", "--init-img", "a.png", "--prompt", "two", "--precision", "full"]
    assert call("img2img", *common) == 0
    folder = place / "outputs" / "img2img-samples"
    assert files(folder) == ["grid-0000.png", "samples/00000.png", "samples/00001.png"]  # one iteration of two
    pictures = redrawn(models, init, ["two"] * 2, [42, 43], steps=50, eta=0.0)
    assert_same(drawn(folder), to_pil(pictures), 0)
    assert_same([shown(folder / "grid-0000.png")], to_pil(grid(pictures, 2)[None]), 0)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--plms"], {"sampler": "plms"}),
        (["--ddim_eta", "0.7"], {"eta": 0.7}),
        (["--strength", "0.4"], {"strength": 0.4}),
        (["--strength", "1"], {"strength": 1.0}),
        (["--scale", "1"], {"guidance": 1.0}),
    ],
)
def test_img2img_flags(place: Path, models: Path, flags: list[str], options: dict[str, object]) -> None:
    init = picture(place / "a.png", 40, 24)
    common = ["--ckpt", models / "sd1", "--init-img", "a.png", "--prompt", "two", "--precision", "full"]
    assert call("img2img", *common, "--outdir", "out", "--ddim_steps", "6", "--seed", "3", *flags) == 0
    assert_same(drawn(place / "out"), to_pil(redrawn(models, init, ["two"] * 2, [3, 4], **options)), 0)


def test_img2img_reads_prompts_from_a_file_and_numbers_on(place: Path, models: Path) -> None:
    init = picture(place / "a.png")
    (place / "prompts.txt").write_text("two\nthree\na thick one\n", encoding="utf-8")
    common = ["--ckpt", models / "sd1", "--init-img", "a.png", "--outdir", "out", "--ddim_steps", "6", "--seed", "3"]
    common += ["--precision", "full"]
    assert call("img2img", *common, "--from-file", "prompts.txt", "--fixed_code", "--skip_grid") == 0
    first = redrawn(models, init, ["two", "three", "a thick one"], [3, 4, 3])
    assert call("img2img", *common, "--prompt", "four", "--n_samples", "1", "--n_iter", "2", "--n_rows", "2") == 0
    second = redrawn(models, init, ["four"] * 2, [3, 4])
    assert_same(drawn(place / "out"), to_pil(torch.cat([first, second])), 0)
    assert Image.open(place / "out" / "grid-0000.png").size == (2 * 34 + 2, 34 + 2)


def test_img2img_pictures_can_be_drawn_again(place: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(place / "a.png")
    flags = ["--ckpt", models / "sd1", "--init-img", "a.png", "--outdir", "out", "--ddim_steps", "4", "--skip_grid"]
    assert call("img2img", *flags) == 0
    replay_picture(place / "out" / "samples" / "00001.png", None, None, verify=True)
    assert "identical" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *[(["--init-img", "a.png", f"--{x}", "8"], f"unrecognized arguments: --{x}") for x in ABSENT["img2img"]],
        ([], "the following arguments are required: --init-img"),
        (["--init-img", "nothing.png"], "nothing.png"),
        (["--init-img", "a.png", "--strength", "0"], "strength: should be greater than 0"),
        (["--init-img", "a.png", "--strength", "0.1", "--ddim_steps", "5"], "less than one step"),
        (["--init-img", "a.png", "--ddim_steps", "0"], "steps: should be greater than or equal to 1"),
        (["--init-img", "a.png", "--ckpt", "old.ckpt"], "--allow-pickle"),
        (["--init-img", "a.png", "--ckpt", "old.ckpt", "--allow-pickle"], "holds no part of Stable Diffusion"),
        (["--init-img", "a.png", "--ckpt", "nothing.safetensors"], "nothing.safetensors"),
    ],
)
def test_img2img_mistakes(
    place: Path, models: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    picture(place / "a.png")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, place / "old.ckpt")
    assert call("img2img", "--ckpt", models / "sd1", *flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == ["a.png", "old.ckpt"]
