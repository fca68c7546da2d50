"""The scripts of the base cases: their flags, what they write, and how they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_calls import ROOT, call, files, shown
from tiny_models import written

import ldm
from ldm.images import grid, to_pil


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


# ------------------------------------------------------------------------------- sample_mnist


def test_sample_mnist_draws_a_row_for_each_label(place: Path, models: Path) -> None:
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


def test_sample_mnist_draws_all_labels_of_the_model_in_the_package(place: Path) -> None:
    assert call("sample_mnist", "--count", "1", "--steps", "2") == 0
    assert Image.open("digits.png").size == (2 * (28 + 4), 2 * (10 * 30 + 2))


def test_sample_mnist_without_labels(place: Path, models: Path) -> None:
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
    place: Path, models: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert call("sample_mnist", "--model", models / flags[0], *flags[1:]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == []


# -------------------------------------------------------------------------------------- train

FEW = ["train.batch_size=2", "train.checkpoint_every=2", "train.mixed_precision=no", "data.limit=20", "sample.count=2"]


def test_train_resumes_with_the_flag_before_or_behind_the_overrides(
    place: Path, capsys: pytest.CaptureFixture[str]
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
