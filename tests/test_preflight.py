"""A dry run: it leaves nothing, and what it says is what the run then takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import written
from tiny_runs import command, config, config_file, digits, trained

from ldm.config import validate
from ldm.flops import count_flops
from ldm.models.unet import UNet
from ldm.preflight import in_words, preflight
from ldm.training.run import train


def test_it_counts_what_a_step_does_and_leaves_nothing(tmp_path: Path) -> None:
    run = validate(config("label", tmp_path / "run", condition={"kind": "label", "classes": 10, "drop": 0}), "tiny")
    found = preflight(run)
    assert found is not None
    assert list(tmp_path.iterdir()) == []
    inputs = [torch.empty(4, 1, 28, 28), torch.empty(4), torch.empty(4, 1, 8)]
    forward = count_flops(lambda: UNet(run.unet), lambda net, x, t, c: net(x, t, context=c), inputs)
    # Going back costs twice as much; but the picture needs no gradient, and fused attention computes its scores again.
    assert found.rehearsed.flops == pytest.approx(3 * forward, rel=0.06)
    net = UNet(run.unet)
    assert found.rehearsed.trained == sum(p.numel() for p in net.parameters()) + 11 * 8  # the tokens of the labels
    assert found.drawing == found.rehearsed.sheet > 0  # one, at the end
    assert found.hours == pytest.approx((6 * found.rehearsed.seconds + found.drawing) / 3600)
    assert found.rehearsed.samples == 4
    assert found.cache is None


def test_a_cache_is_as_large_as_it_says(tmp_path: Path) -> None:
    vae, clip = trained("vae", tmp_path / "vae"), trained("clip", tmp_path / "clip")
    tree = config("latent", tmp_path / "run", codec__path=vae, condition__path=clip, cache={})
    found = preflight(validate(tree, "tiny"))
    train(validate(tree, "tiny"))
    real = sum(file.stat().st_size for file in (tmp_path / "run" / "cache").iterdir())
    assert found is not None
    assert found.cache == pytest.approx(real, rel=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "run", "vae"]


def test_the_command_tells_time_and_money(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file("toy", tmp_path / "toy.yaml", tmp_path / "run", train__steps=9000)
    assert command("train", str(path), "--dry-run", "--price", "120") == 0
    said = capsys.readouterr().out
    assert "40 pictures, 40 usable" in said
    seconds = float(re.search(r"step: (\S+) s for 4 pictures", said)[1])
    parts = r"whole run: (\S+) minutes: 9,000 steps in (\S+) minutes, and drawing sheets in (\S+) minutes"
    whole, steps, sheets = (float(number.replace(",", "")) for number in re.search(parts, said).groups())
    money = float(re.search(r"money: (\S+), at 120", said)[1].replace(",", ""))
    assert steps == pytest.approx(9000 * seconds / 60, rel=0.02, abs=0.06)
    assert whole == pytest.approx(steps + sheets, abs=0.16)
    assert money == pytest.approx(2 * whole, abs=0.11)


def test_pictures_at_intervals_are_counted(tmp_path: Path) -> None:
    """Sheets of four at steps 40, 80 and 100; at 30, 60, 90 and 100 six pictures of prompts: one and a half."""
    base = written("text", tmp_path / "base")
    validation = {"every": 30, "prompts": ["two", "four"], "pictures": 3}
    train = {**config("label", tmp_path)["train"], "steps": 100, "sample_every": 40}
    data = {"source": "mnist", "path": str(digits()), "size": 32, "captions": True}
    sample = {"count": 4, "conditions": ["two"]}
    own = {"output": str(tmp_path / "run"), "model": str(base), "data": data, "sample": sample}
    run = validate({"task": "diffusion", **own, "validation": validation, "train": train}, "here")
    found = preflight(run)
    assert found is not None
    assert found.drawing == pytest.approx((3 + 4 * 1.5) * found.rehearsed.sheet)


def test_data_that_training_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(6):
        Image.new("RGB", (32, 32), (k * 40, 0, 0)).save(pictures / f"{k}.png")
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[: len(whole) // 2])
    data = {"source": "folder", "path": str(pictures)}
    path = config_file("toy", tmp_path / "toy.yaml", tmp_path / "run", data=data, toy={"in_channels": 3})
    assert command("train", str(path), "--dry-run") == 1
    assert "3.png" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert command("train", str(path), "data.skip_bad=1", "output=.", "--dry-run") == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == ["pictures", "toy.yaml"]
    said = capsys.readouterr().out
    assert re.search(r"skipped: .*3\.png", said)
    assert "1 error" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dry-run", "--price", "-1"], "what a device costs"),
        (["--price", "2"], "with --dry-run only"),
        (["--dry-run", "--resume"], "only one can be given"),
    ],
)
def test_mistakes(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file("toy", tmp_path / "toy.yaml", tmp_path / "run")
    assert command("train", str(path), *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_in_words_hours_are_hours(tmp_path: Path) -> None:
    found = preflight(validate(config("toy", tmp_path / "run", train__steps=10**9), "tiny"))
    assert found is not None
    assert f"{found.hours:,.1f} hours" in in_words(found, None)
