"""The benchmarks run at a tiny size and print what they promise; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURED = ["median_s", "min_s", "max_s", "of_rival", "speedup", "tflop_per_s"]


def run(script: str, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), "--device", "cpu", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_table(text: str) -> list[dict[str, str]]:
    """The rows of the Markdown table in ``text``."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    header, rule, *rows = lines
    assert set(rule) == {"---"}
    return [dict(zip(header, row, strict=True)) for row in rows]


def check_measured(rows: list[dict]) -> None:
    """What holds of the rows of one piece of work, whatever the times are."""
    first = rows[0]
    by_name = {row["who"]: row for row in rows}
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        rival = next(by_name[who] for who in by_name if who.startswith("diffusers " + row["who"].split()[1]))
        assert row["of_rival"] == pytest.approx(row["median_s"] / rival["median_s"])
        assert row["speedup"] == pytest.approx(first["median_s"] / row["median_s"])
        assert row["tflop_per_s"] * row["median_s"] == pytest.approx(first["tflop_per_s"] * first["median_s"])


def test_generation(tmp_path):
    parts = ["unet", "vae-decode", "vae-encode", "text"]
    flags = ["--model", "tiny", "--size", 64, "--repeats", 2, "--parts", *parts, "--json", tmp_path / "found.json"]
    done = run("generation.py", *flags)
    assert done.returncode == 0, done.stderr
    shown, found = read_table(done.stdout), json.loads((tmp_path / "found.json").read_text())
    contestants = ["diffusers fp32", "ours fp32", "ours bf16", "diffusers bf16 channels_last"]
    assert [(row["work"], row["who"]) for row in shown] == [(part, who) for part in parts for who in contestants]
    assert list(shown[0]) == ["work", "who", *MEASURED, "error"]
    assert found["facts"]["model"] == "tiny"
    assert all(fact in done.stdout for fact in ("device cpu", "size 64", "repeats 2", "malloc tuned"))
    for part in parts:
        rows = [row for row in found["rows"] if row["work"] == part]
        check_measured(rows)
        errors = {row["who"]: row["error"] for row in rows}
        assert errors["diffusers fp32"] == 0
        assert errors["ours fp32"] < 1e-4
        assert 1e-4 < errors["ours bf16"] <= 1.2 * errors["diffusers bf16 channels_last"]


def test_training_step(tmp_path):
    flags = ["--model", "tiny", "--size", 64, "--batch-size", 2, "--repeats", 2, "--json", tmp_path / "found.json"]
    done = run("training_step.py", *flags)
    assert done.returncode == 0, done.stderr
    shown, found = read_table(done.stdout), json.loads((tmp_path / "found.json").read_text())
    assert [row["who"] for row in shown] == ["diffusers fp32", "ours fp32", "diffusers bf16", "ours bf16"]
    assert list(shown[0]) == ["who", *MEASURED, "samples_per_s", "first_loss", "last_loss"]
    check_measured(found["rows"])
    theirs, ours, theirs_bf16, ours_bf16 = (row["last_loss"] for row in found["rows"])
    assert ours == pytest.approx(theirs, rel=1e-3)  # the same steps were taken
    assert ours_bf16 == pytest.approx(theirs_bf16, rel=0.02)
    assert theirs != found["rows"][0]["first_loss"]


def test_a_wrong_flag_is_told_without_a_traceback():
    done = run("generation.py", "--dtypes", "fp16")
    assert done.returncode == 2
    assert "dtype fp16 is for GPUs" in done.stderr
    assert "Traceback" not in done.stderr
