"""``ldm cost``: what it prints and writes, and what it says to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs

from ldm.cost_command import Asked, cost_file
from ldm.errors import UserError

ROOT = Path(__file__).parent.parent


def config(tmp_path: Path, **changes: object) -> Path:
    return tiny_runs.config_file("label", tmp_path / "config.yaml", tmp_path / "run", **changes)


def test_a_run_on_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is trained, no picture is looked for, and the figures are those that are printed."""
    path, out = config(tmp_path, data__path="nowhere"), tmp_path / "costs" / "cost.json"
    found = cost_file(path, ["train.steps=100"], Asked(devices=4, tflops="2", mfu=0.5, price=3.0, json=out))
    told, data = capsys.readouterr().out, json.loads(out.read_text())
    (stage,) = data["stages"]
    step = stage["step"]["U-Net"]
    assert stage["flops_per_step_and_device"] == step["forward"] + step["backward"]
    assert data["flops"] == 4 * 100 * stage["flops_per_step_and_device"] == found.flops
    assert data["device_hours"] == pytest.approx(data["flops"] / 1e12 / 3600)  # half of two TFLOP/s
    assert data["money"] == pytest.approx(3 * data["device_hours"])
    assert data["hours"] == pytest.approx(data["device_hours"] / 4)
    memory = stage["memory_per_device"]
    assert memory.pop("total") == sum(memory.values())
    assert "100 steps of 16 pictures" in told
    assert "label tokens" in told
    assert "not in it: waiting for data" in told
    assert not (tmp_path / "run").exists()


def test_without_a_device_there_is_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cost_file(config(tmp_path), [], Asked())
    assert (found.device_hours, found.hours, found.money) == (None, None, None)
    assert "no time: --device-tflops" in capsys.readouterr().out


def test_an_autoencoder_has_two_kinds_of_steps(tmp_path: Path) -> None:
    path = tiny_runs.config_file("vae", tmp_path / "config.yaml", tmp_path / "run")
    first, second = cost_file(path, [], Asked()).stages
    assert (first.steps, second.steps) == (2, 4)
    assert list(first.counted.parts) == ["VAE"]
    assert list(second.counted.parts) == ["VAE", "adversary"]
    assert second.counted.parts["VAE"].forward > first.counted.parts["VAE"].forward  # the adversary is asked


def test_a_measured_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cost_file(config(tmp_path), [], Asked(measure=True))
    told = capsys.readouterr().out
    assert "measured: " in told
    assert found.device_hours is not None
    assert found.stages[0].seconds > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(devices=0), "--devices should be 1 or more, got 0"),
        (Asked(tflops="A1000"), "unknown device 'A1000'; did you mean 'A100'"),
        (Asked(tflops="-1"), "--device-tflops should be above 0"),
        (Asked(tflops="A100", mfu=1.5), "--mfu should be above 0 and at most 1"),
        (Asked(mfu=0.3), "--mfu needs --device-tflops, or --measure"),
        (Asked(price=2.0), "--price needs --device-tflops, or --measure"),
        (Asked(tflops="A100", price=-1.0), "--price should be"),
        (Asked(measure=True, mfu=0.3), "leave out --device-tflops and --mfu"),
        (Asked(json=ROOT), "it is a folder"),
    ],
)
def test_wrong_flags(tmp_path: Path, asked: Asked, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost_file(config(tmp_path), [], asked)


@pytest.mark.parametrize(
    ("file", "overrides", "asked", "message"),
    [
        ("sd1.yaml", ["family=sd3"], Asked(), "unknown family 'sd3'; did you mean 'sd"),
        ("sd1.yaml", [], Asked(measure=True), "not a plan"),
        ("sd1.yaml", ["mfu=2"], Asked(), "mfu: should be less than or equal to 1"),
        ("sd1.yaml", ["stages=[{side: 100, pictures: 1, batch_size: 1}]"], Asked(), "no multiple of 64"),
        ("sd1.yaml", ["speed=1"], Asked(), r"speed: unknown key.*allowed: task, family"),
        ("sd1.yaml", ["source=''"], Asked(), "go together"),
        ("missing.yaml", [], Asked(), "cannot be read"),
    ],
)
def test_wrong_plans(file: str, overrides: list[str], asked: Asked, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost_file(ROOT / "configs" / "cost" / file, overrides, asked)


def test_a_configuration_without_its_model_says_what_is_missing(tmp_path: Path) -> None:
    path = tiny_runs.config_file("latent", tmp_path / "config.yaml", tmp_path / "run", codec__path="no/vae")
    with pytest.raises(UserError, match="no/vae"):
        cost_file(path, ["condition={kind: none}", "unet.cross_attention_dim=null"], Asked())
