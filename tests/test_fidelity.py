"""The comparison with diffusers at full size: that it compares what it says, run here with small parts."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ldm.errors import UserError
from ldm.weights.components import build_empty

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--tiny", "--size", "64", "--steps", "2"]
# as published: parameters of the U-Net and the text encoders
SIZES = {
    "sd1": (859_520_964, 123_060_480),
    "sd1-inpainting": (859_535_364, 123_060_480),
    "sd2": (865_910_724, 340_387_840),
    "sd-turbo": (865_910_724, 340_387_840),
    "lcm": (859_520_964 + 256 * 320, 123_060_480),
    "sdxl": (2_567_463_684, 123_060_480 + 694_659_840),
    "sdxl-turbo": (2_567_463_684, 123_060_480 + 694_659_840),
    "sdxl-inpainting": (2_567_463_684 + 5 * 9 * 320, 123_060_480 + 694_659_840),
}


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("fidelity")


def count(config: dict) -> int:
    return sum(p.numel() for p in build_empty(config, Path("config.json")).parameters())


def test_all_families_are_there_at_full_size(fidelity: ModuleType) -> None:
    kinds = fidelity.KINDS
    assert list(kinds) == list(SIZES)
    for name, (unet, text) in SIZES.items():
        assert count(kinds[name].unet_config()) == unet
        assert sum(count(config) for config in kinds[name].text_configs().values()) == text
        assert count(kinds[name].vae_config()) == 83_653_863
    assert [name for name, kind in kinds.items() if kind.controlnet] == ["sd1", "sdxl"]
    assert count(kinds["sd1"].controlnet_config()) == 361_279_120
    assert [name for name, kind in kinds.items() if kind.turbo] == ["sd-turbo", "sdxl-turbo"]
    assert kinds["sd2"].scheduler_config()["prediction_type"] == "v_prediction"


def test_both_sides_hold_the_same_tensors(fidelity: ModuleType) -> None:
    kind = fidelity.replace(fidelity.KINDS["sd1"], tiny=True)
    ours, theirs = fidelity.twins(kind.unet_config(), 1)
    assert type(ours).__module__.split(".")[0] == "ldm"
    assert type(theirs).__module__.split(".")[0] == "diffusers"
    held = ours.state_dict()
    assert {key: value.data_ptr() for key, value in theirs.state_dict().items()} == {
        key: value.data_ptr() for key, value in held.items()
    }
    assert all(value.std() > 0.01 for value in held.values())
    copy, their_copy = fidelity.twins(kind.controlnet_config(), 2, held)
    assert copy.conv_in.weight.data_ptr() == their_copy.conv_in.weight.data_ptr() == held["conv_in.weight"].data_ptr()


def test_the_table(fidelity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--families", "sd1", "sd-turbo", "sdxl-inpainting", "--samplers", "euler", "lcm"]
    assert fidelity.main([*TINY, *flags, "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    parts = ["U-Net", "VAE, encoding", "VAE, decoding", "text_encoder"]
    assert [(row["family"], row["what"]) for row in found["rows"]] == [
        *(("sd1", part) for part in parts),
        ("sd1", "ControlNet, each of 9 outputs"),
        *(("sd1", f"picture, {name}") for name in ("euler", "lcm", "euler, ControlNet")),
        *(("sd-turbo", part) for part in parts),
        ("sd-turbo", "text_encoder, layer 3 of 4"),
        *(("sd-turbo", f"picture, {name}") for name in ("euler trailing", "lcm")),
        *(("sdxl-inpainting", part) for part in (*parts, "text_encoder_2", "text_encoder_2, pooled")),
        *(("sdxl-inpainting", f"picture, {name}") for name in ("euler", "lcm")),
    ]
    for row in found["rows"]:
        picture = row["what"].startswith("picture")
        assert (row["unit"], row["limit"]) == (("1/255", 2.0) if picture else ("of the largest", 1e-4))
        assert row["ok"]
        assert row["difference"] <= row["limit"]
        assert row["spread"] > 0.05
    assert found["facts"]["tiny"]
    shown = [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("| s")]
    assert shown == [row["what"] for row in found["rows"]]


@pytest.mark.parametrize("family", ["sd2", "lcm", "sdxl"])
def test_other_families(fidelity: ModuleType, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main([*TINY, "--families", family, "--parts", "unet", "pictures", "--samplers", "dpm++_2m"]) == 0
    assert "NO" not in capsys.readouterr().out


def test_a_limit_that_is_broken_is_told(
    fidelity: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fidelity.LIMITS, "1/255", -1.0)
    flags = ["--families", "sd1", "--parts", "text", "pictures", "--samplers", "ddim"]
    assert fidelity.main([*TINY, *flags]) == 1
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| sd1")]
    assert [row[5] for row in rows] == ["yes", "NO", "NO"]


def test_what_a_difference_is(fidelity: ModuleType) -> None:
    output = torch.tensor([-4.0, 1.0, 2.0, 3.0])
    moved = output + torch.tensor([0.0, 0.0, 2e-4, 0.0])
    assert fidelity.measure("sd1", fidelity.Pair("U-Net", [output], [output])).difference == 0
    row = fidelity.measure("sd1", fidelity.Pair("ControlNet", [output, 100 * moved], [output, 100 * output]))
    assert row.difference == pytest.approx(5e-5, rel=1e-2)
    assert row.ok
    # a small output is measured by its own size
    row = fidelity.measure("sd1", fidelity.Pair("ControlNet", [output, moved / 100], [output, output / 100 - 1e-5]))
    assert row.difference == pytest.approx(3e-4, rel=1e-2)
    assert not row.ok
    picture = torch.tensor([0.2, 0.4, 0.9])
    row = fidelity.measure("sd1", fidelity.Pair("picture", [picture + 3 / 255], [picture], "1/255"))
    assert row.difference == pytest.approx(3, rel=1e-4)
    assert not row.ok


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.tensor([1.0, math.nan]), "not finite"),
        (torch.tensor([1.0, math.inf]), "not finite"),
        (torch.tensor([1.0, 1.01, 1.0]), "nearly constant"),
        (torch.zeros(8), "nearly constant"),
        (torch.tensor([0.0, 0.5, 1.0, 1.0]), "more than a quarter of the picture is saturated"),
    ],
)
def test_what_says_nothing_is_refused(fidelity: ModuleType, output: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=f"sd1, picture: .*{message}"):
        fidelity.measure("sd1", fidelity.Pair("picture", [output], [output], "1/255"))


@pytest.mark.parametrize(("flag", "value"), [("--size", "100"), ("--size", "0"), ("--steps", "1"), ("--parts", "clip")])
def test_wrong_flags(fidelity: ModuleType, flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fidelity.main([flag, value])
    assert value in capsys.readouterr().err


def test_a_file_that_cannot_be_written(
    fidelity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "missing" / "found.json"
    assert fidelity.main([*TINY, "--families", "sd1", "--parts", "vae", "--output", str(target)]) == 2
    assert str(target) in capsys.readouterr().err
