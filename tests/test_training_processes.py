"""Several processes: the losses of one with as large a batch; and runs that are killed and resumed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import config_file, digits, log_of, trained

from ldm.weights.files import read_tensors
from ldm.weights.model import latest_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_test.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def launched(launcher: list[str], file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, "-m", "ldm", "train", str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.mark.parametrize(("kind", "launcher"), [("label", TORCHRUN), ("clip", [*ACCELERATE, "--multi_gpu"])])
@pytest.mark.skipif(torch.accelerator.is_available(), reason="compares processes on the CPU")
def test_two_processes_are_one_with_twice_the_batch(kind, launcher, tmp_path):
    """CLIP's loss contrasts every picture with all captions of the step, so it must gather them with gradients."""
    settings = {"train__steps": 4, "train__gradient_accumulation": 2 if kind == "label" else 1}
    file = config_file(kind, tmp_path / "run.yaml", tmp_path / "two", **settings, train__batch_size=2)
    done = launched(launcher, file)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained: ") == 1
    one = trained(kind, tmp_path / "one", **settings, train__batch_size=4)
    records = log_of(tmp_path / "two")
    assert len(records) == 4
    for record, alone in zip(records, log_of(tmp_path / "one"), strict=True):
        assert record == pytest.approx(alone, rel=1e-5, abs=1e-5)
    two = latest_checkpoint(tmp_path / "two")
    assert two is not None
    for name in ("average", next(iter(p.stem for p in (one / "training").glob("[nc]*.safetensors")))):
        weights, alone = (read_tensors(f / "training" / f"{name}.safetensors") for f in (two, one))
        assert weights.keys() == alone.keys()
        assert max(float((weights[k].float() - alone[k].float()).abs().max()) for k in weights) < 1e-3


def test_a_launcher_that_starts_one_process_in_place_of_two_is_named(tmp_path):
    """Without GPUs and mpirun, accelerate launch does so: half the batch, and nothing says it."""
    done = launched([*ACCELERATE, "--cpu"], config_file("label", tmp_path / "run.yaml", tmp_path / "run"))
    assert done.returncode != 0
    assert "error: accelerate launch was asked for several processes" in done.stderr
    assert "torchrun --standalone --nproc-per-node 2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    """The short form of ``scripts/kill_test.py``, with two kills."""
    settings = {"train__steps": 12, "train__checkpoint_every": 2}
    file = config_file("label", tmp_path / "run.yaml", tmp_path / "unused", **settings)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), "--kills", "2", "--seed", "3"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 resumed runs are the undisturbed run, bit for bit" in done.stdout
    assert digits().is_dir()


def test_the_kill_test_sees_a_difference_of_one_bit(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    whole, other = (trained("label", tmp_path / name, train__steps=2) for name in "ab")
    assert script.differences(whole, other) == []
    file = other / "training" / "state.pt"
    import torch

    state = torch.load(file, weights_only=True)
    moment = state["optimizers"]["net"]["state"][3]["exp_avg"].view(-1)
    moment[:1] = torch.nextafter(moment[:1], torch.tensor(1.0))
    torch.save(state, file)
    assert script.differences(whole, other) == ["net optimizer 3 exp_avg"]
