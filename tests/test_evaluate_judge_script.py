"""scripts/judge_mnist.py: what it counts beside a count by hand, and how it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from script_calls import call, shown
from test_evaluate_numbers import frechet
from tiny_models import written
from tiny_runs import digits, judge_file

import ldm
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.images import grid, to_bytes, to_pil, to_signed
from ldm.models.judge import DigitJudge

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written("text", tmp_path / "model")
    judge_file(tmp_path / "judge.safetensors")
    return tmp_path


def drawn(place: Path, names: list[str]) -> torch.Tensor:
    prompts, settings = [f"a handwritten {name}" for name in names], {"steps": 2, "guidance": 2.0, "batch_size": 7}
    return ldm.load(place / "model").generate(prompts, list(range(5, 5 + len(names))), **settings)


FLAGS = ["--model", "model", "--judge", "judge.safetensors", "--steps", "2", "--guidance", "2", "--seed", "5"]


def test_recognised_digits_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", "found.json", "--grid", "grid.png", "--batch-size", "7"]
    assert call("judge_mnist", *FLAGS, *files, "--mode", "text", "--count", "2") == 0
    images = drawn(place, [*NAMES, *NAMES])
    judged = DigitJudge.load("judge.safetensors").classify(to_signed(to_bytes(images)))
    right = judged == torch.arange(20) % 10
    found = json.loads(Path("found.json").read_text())
    assert found["found"]["recognised"] == pytest.approx(right.double().mean().item())
    assert found["found"]["per_digit"] == {str(k): right[k::10].double().mean().item() for k in range(10)}
    assert found["options"]["mode"] == "text"
    assert "of 20 pictures" in capsys.readouterr().out
    (sheet,) = to_pil(grid(images, 10)[None])
    assert abs(shown(Path("grid.png")) - np.asarray(sheet).astype(int)).max() <= 1


def test_the_distance_stands_beside_its_floor(place: Path) -> None:
    folder = digits()
    for kind in ("images-idx3", "labels-idx1"):  # the test digits are the same ones
        content = gzip.decompress((folder / f"train-{kind}-ubyte.gz").read_bytes())
        (place / f"train-{kind}-ubyte").write_bytes(content)
        (place / f"t10k-{kind}-ubyte").write_bytes(content)
    flags = ["--mode", "distance", "--conditions", "text", "--data", str(place), "--count", "2", "--json", "found.json"]
    assert call("judge_mnist", *FLAGS, *flags, "--batch-size", "7") == 0
    source = MnistSource(MnistConfig(path=folder))
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(5))[:20].tolist()
    images = to_bytes(drawn(place, [NAMES[source.labels[i]] for i in chosen]))
    judge = DigitJudge.load("judge.safetensors")
    sets = [judge.describe(to_signed(x)).double().numpy() for x in (images, source.images[chosen], source.images)]
    found = json.loads(Path("found.json").read_text())["found"]
    assert found["distance"] == pytest.approx(frechet(sets[0], sets[2]), rel=1e-3)
    assert found["floor"] == pytest.approx(frechet(sets[1], sets[2]), rel=1e-3)
    assert found["ratio"] == pytest.approx(found["distance"] / found["floor"])
    assert (found["count"], found["reference_count"]) == (20, 40)


@pytest.mark.parametrize(
    "flags", [["--mode", "distance"], ["--mode", "text", "--conditions", "text"], ["--mode", "text", "--count", "0"]]
)
def test_flags_that_do_not_go_together(place: Path, flags: list[str]) -> None:
    assert call("judge_mnist", *FLAGS, *flags) == 2
