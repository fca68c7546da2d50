"""The scripts people start by hand: their flags, what they write, and how they refuse."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tiny_models import written

import ldm
from ldm.images import grid, to_pil

ROOT = Path(__file__).parent.parent
# The flags of CompVis's scripts/txt2img.py, and those that mean nothing here.
COMPVIS = (
    *("prompt", "from-file", "outdir", "skip_grid", "skip_save", "ddim_steps", "plms", "dpm_solver", "fixed_code"),
    *("ddim_eta", "n_iter", "H", "W", "C", "f", "n_samples", "n_rows", "scale", "config", "ckpt", "seed", "precision"),
    "laion400m",
)
ABSENT = ["laion400m", "C", "f", "config"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: script(name) for name in ("txt2img", "sample_mnist", "train")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("text", "label", "unconditional"):
        written(kind, folder / kind)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Run a script with these arguments in this process; its exit code."""

    def started(name: str, *arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            SCRIPTS[name].main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return started


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shown(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawn(folder: Path) -> list[np.ndarray]:
    return [shown(path) for path in sorted((folder / "samples").iterdir())]


def assert_same(found: list[np.ndarray], expected: list[Image.Image]) -> None:
    """Alike but for rounding, which may go another way in another batch."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - np.asarray(b)).max() <= 1


# ------------------------------------------------------------------------------------ txt2img


def test_txt2img_writes_and_numbers_on_as_the_original(call, place: Path, models: Path) -> None:
    common = ["--ckpt", models / "text", "--prompt", "two", "--outdir", "out", "--ddim_steps", "3"]
    assert call("txt2img", *common, "--n_samples", "2", "--n_iter", "2") == 0
    first = [f"samples/0000{k}.png" for k in range(4)]
    assert files(place / "out") == ["grid-0000.png", *first]
    before = [path.read_bytes() for path in sorted((place / "out" / "samples").iterdir())]
    assert call("txt2img", *common, "--n_samples", "1", "--n_iter", "1", "--seed", "9") == 0
    assert files(place / "out") == ["grid-0000.png", "grid-0001.png", *first, "samples/00004.png"]
    assert [path.read_bytes() for path in sorted((place / "out" / "samples").iterdir())][:4] == before


def test_txt2img_has_the_defaults_of_the_original(call, place: Path, models: Path) -> None:
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
def test_txt2img_flags(call, place: Path, models: Path, flags: list[str], options: dict[str, object]) -> None:
    common = ["--ckpt", models / "text", "--prompt", "two", "--outdir", "out", "--n_iter", "1", "--n_samples", "2"]
    assert call("txt2img", *common, "--ddim_steps", "6", "--seed", "3", *flags) == 0
    dtype = "fp32" if "full" in flags else None
    pictures = ldm.load(models / "text", dtype=dtype)(["two"] * 2, seed=3, steps=6, **{"guidance": 7.5, **options})
    assert_same(drawn(place / "out"), pictures)


def test_txt2img_skips(call, place: Path, models: Path) -> None:
    common = ["--ckpt", models / "text", "--ddim_steps", "2", "--n_iter", "1", "--n_samples", "4"]
    assert call("txt2img", *common, "--outdir", "a", "--skip_grid") == 0
    assert len(files(place / "a")) == 4
    assert call("txt2img", *common, "--outdir", "b", "--skip_save", "--n_rows", "4") == 0
    assert files(place / "b") == ["grid-0000.png"]
    assert Image.open("b/grid-0000.png").size == (4 * 34 + 2, 34 + 2)  # one row of four


def test_txt2img_with_fixed_code_starts_each_batch_alike(call, place: Path, models: Path) -> None:
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


def test_txt2img_reads_prompts_from_a_file(call, place: Path, models: Path) -> None:
    (place / "prompts.txt").write_text("two\nthree\na thick one\n", encoding="utf-8")
    common = ["--ckpt", models / "text", "--from-file", "prompts.txt", "--outdir", "out", "--ddim_steps", "3"]
    assert call("txt2img", *common, "--n_samples", "2", "--n_iter", "2", "--seed", "0") == 0
    prompts = ["two", "three", "a thick one"] * 2
    expected = ldm.load(models / "text")(prompts, seed=0, sampler="ddim", steps=3, guidance=7.5)
    assert_same(drawn(place / "out"), expected)


def test_txt2img_has_or_explains_every_flag_of_the_original(call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("txt2img", "--help") == 0
    help_text = capsys.readouterr().out
    listed, offered = help_text.split("options:")
    assert set(re.findall(r"--([\w-]+)", offered)) - {"help"} == set(COMPVIS) - set(ABSENT)
    for flag in ABSENT:
        assert f"--{flag}" in listed.split("Left out")[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *[([f"--{flag}", "8"], f"unrecognized arguments: --{flag}") for flag in ABSENT],
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
    call, place: Path, models: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (place / "empty.txt").touch()
    assert call("txt2img", "--ckpt", models / "text", *flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == ["empty.txt"]


# ------------------------------------------------------------------------------- sample_mnist


def test_sample_mnist_draws_a_row_for_each_label(call, place: Path, models: Path) -> None:
    flags = [
        "--labels",
        "3",
        "1",
        "--count",
        "4",
        "--guidance",
        "3",
        "--sampler",
        "ddim",
        "--steps",
        "5",
        "--seed",
        "7",
    ]
    assert call("sample_mnist", "--model", models / "label", "--out", "sheet.png", *flags) == 0
    pictures = ldm.load(models / "label").generate(
        [3] * 4 + [1] * 4, list(range(7, 15)), guidance=3, sampler="ddim", steps=5
    )
    expected = np.asarray(to_pil(grid(pictures, 4)[None])[0]).repeat(2, 0).repeat(2, 1)
    assert np.abs(shown(place / "sheet.png") - expected).max() <= 1


def test_sample_mnist_draws_all_labels_of_the_model_in_the_package(call, place: Path) -> None:
    assert call("sample_mnist", "--count", "1", "--steps", "2") == 0
    assert Image.open("digits.png").size == (2 * (28 + 4), 2 * (10 * 30 + 2))


def test_sample_mnist_without_labels(call, place: Path, models: Path) -> None:
    assert call("sample_mnist", "--model", models / "unconditional", "--count", "12", "--steps", "2") == 0
    assert Image.open("digits.png").size == (2 * (10 * 10 + 2), 2 * (2 * 10 + 2))  # ten in a row


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["label", "--labels", "3", "10"], "a label from 0 to 9, or nothing; got 10"),
        (["label", "--labels", "three"], "invalid int value: 'three'"),
        (["label", "--count", "0"], "count should be 1 or more, got 0"),
        (["label", "--seed", "-2"], "seed should be 0 or more, got -2"),
        (["label", "--sampler", "dimm"], "did you mean 'ddim'?"),
        (["label", "--out", "missing/a.png"], "there is no folder missing"),
        (["unconditional", "--labels", "3"], "the model is unconditional and cannot be asked for 3"),
        (["text"], "is no pixel model of digits"),
        (["nothing"], "no such folder"),
    ],
)
def test_sample_mnist_mistakes(
    call, place: Path, models: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert call("sample_mnist", "--model", models / flags[0], *flags[1:]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == []


# -------------------------------------------------------------------------------------- train

FEW = ["train.batch_size=2", "train.checkpoint_every=2", "train.mixed_precision=no", "data.limit=20", "sample.count=2"]


def test_train_resumes_with_the_flag_before_or_behind_the_overrides(
    call, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ROOT / "configs" / "mnist_toy.yaml"
    assert call("train", config, "output=run", "train.steps=2", *FEW) == 0
    assert "trained: run/checkpoints/step_00000002" in capsys.readouterr().out
    assert call("train", config, "output=run", "train.steps=4", *FEW) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert call("train", config, "output=run", "train.steps=4", *FEW, "--resume") == 0
    assert call("train", config, "--resume", "output=run", "train.steps=6", *FEW) == 0
    assert ldm.load("run").generate([None], [0], steps=1).isfinite().all()


def test_train_on_two_processes_tells_once(place: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    config = ROOT / "configs" / "mnist_toy.yaml"
    done = subprocess.run(
        [*command, ROOT / "scripts" / "train.py", config, "output=run", "train.steps=2", *FEW],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: run/checkpoints/step_00000002") == 1
    assert (place / "run" / "checkpoints" / "step_00000002" / "model_index.json").is_file()
