"""Several processes, on one host or two, with whole networks or shares of them: the losses of one process alone."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from picture_folders import put
from several_runs import ENVIRONMENT, train_on_two_hosts
from tiny_runs import command, config_file, digits, log_of, trained

from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.split import hold_out
from ldm.weights.files import read_tensors
from ldm.weights.model import latest_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_test.py"
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="compares processes on the CPU")


def launched(launcher: list[str], file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, "-m", "ldm", "train", str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def same(one: Path, other: Path, steps: int) -> None:
    """The logs of two runs agree, and so do the models that they leave."""
    records = log_of(one)
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    for record, alone in zip(records, log_of(other), strict=True):
        assert record == pytest.approx(alone, rel=1e-5, abs=1e-5)
    found, wanted = latest_checkpoint(one), latest_checkpoint(other)
    assert found is not None
    assert wanted is not None
    files = [path.relative_to(wanted) for path in wanted.rglob("*.safetensors") if path.parent.name != "training"]
    assert files
    for file in files:
        weights, alone = read_tensors(found / file), read_tensors(wanted / file)
        assert weights.keys() == alone.keys()
        assert max(float((weights[k].float() - alone[k].float()).abs().max()) for k in weights) < 1e-3


def test_all_stop_where_one_cannot_measure(tmp_path):
    """A picture that is held out and damaged falls to one process; the other waits for no answer."""
    data = {"source": "folder", "path": str(tmp_path / "pictures"), "colours": "grey"}
    for k in range(6):
        put(tmp_path / "pictures" / f"{k}.png", k, (28, 28))
    _, held = hold_out(FolderSource(FolderConfig(**data)), 2, 0)
    damaged = tmp_path / "pictures" / held.key(1)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    changes = {"data": data, "validation": {"count": 2, "times": 1, "every": 1}, "train__batch_size": 1}
    file = config_file("toy", tmp_path / "run.yaml", tmp_path / "run", **changes)
    done = launched(["torch.distributed.run", "--standalone", "--nproc-per-node", "2"], file)
    assert done.returncode != 0
    assert "error: 1 held-out examples cannot be used" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert "RuntimeError" not in done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run of six steps of four samples each, alone; on two hosts; and alone, on two hosts, and alone again."""
    base = tmp_path_factory.mktemp("runs")
    halves = {"train__batch_size": 2}
    trained("label", base / "alone", train__gradient_accumulation=2, **halves)
    files = []
    for parallel in ("ddp", "fsdp"):
        how = {"train__parallel": parallel}
        moved = base / f"moved_{parallel}"
        trained("label", moved, train__steps=2, train__batch_size=4, **how)
        for output, steps in ((base / parallel, 6), (moved, 4)):
            file = base / f"{output.name}.yaml"
            files.append(config_file("label", file, output, train__steps=steps, **halves, **how))
    train_on_two_hosts(*files, port=free_port())
    for parallel in ("ddp", "fsdp"):
        trained("label", base / f"moved_{parallel}", resume=True, train__parallel=parallel, train__batch_size=4)
    return base


@pytest.mark.parametrize("name", ["ddp", "fsdp", "moved_ddp", "moved_fsdp"])
def test_processes_and_shares_change_nothing(name, runs):
    same(runs / name, runs / "alone", steps=6)


def test_sheets_do_not_depend_on_who_draws_them(runs):
    """Each process draws its share; the weights agree to a few parts in a million, so the pixels do."""
    from PIL import Image, ImageChops

    wanted = Image.open(runs / "alone" / "samples" / "step_00000006.png").convert("L")
    for name in ("ddp", "fsdp"):
        found = Image.open(runs / name / "samples" / "step_00000006.png").convert("L")
        assert found.size == wanted.size
        assert ImageChops.difference(found, wanted).getextrema()[1] <= 2
    assert len(wanted.getcolors() or []) > 20


def test_shares_are_written_by_those_who_have_them(runs):
    checkpoint = latest_checkpoint(runs / "fsdp")
    assert checkpoint is not None
    names = sorted(path.name for path in (checkpoint / "training" / "shards").iterdir())
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp"]


def test_another_number_of_samples_in_a_step_is_refused_with_what_would_do(runs, tmp_path, capsys):
    file = config_file("label", tmp_path / "run.yaml", runs / "alone", train__batch_size=3)
    assert command("train", str(file), "--resume") == 2
    message = capsys.readouterr().err
    assert "a step of this run has 4 samples, and 1 process with train.batch_size 3" in message
    assert "train.batch_size=2 train.gradient_accumulation=2 or train.batch_size=4" in message


def test_clip_contrasts_with_the_whole_step(tmp_path):
    """CLIP's loss contrasts every picture with all captions of the step, so it must gather them with gradients."""
    settings = {"train__steps": 4}
    file = config_file("clip", tmp_path / "run.yaml", tmp_path / "two", **settings, train__batch_size=2)
    done = launched([*ACCELERATE, "--multi_gpu"], file)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained: ") == 1
    trained("clip", tmp_path / "one", **settings, train__batch_size=4)
    same(tmp_path / "two", tmp_path / "one", steps=4)


def test_a_launcher_that_starts_one_process_in_place_of_two_is_named(tmp_path):
    """Without GPUs and mpirun, accelerate launch does so: half the batch, and nothing says it."""
    done = launched([*ACCELERATE, "--cpu"], config_file("label", tmp_path / "run.yaml", tmp_path / "run"))
    assert done.returncode != 0
    assert "error: accelerate launch was asked for several processes" in done.stderr
    assert "torchrun --standalone --nproc-per-node 2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    """The short form of ``scripts/kill_test.py``, with two kills, one of them while a checkpoint is written."""
    settings = {"train__steps": 12, "train__checkpoint_every": 2}
    file = config_file("label", tmp_path / "run.yaml", tmp_path / "unused", **settings)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), "--kills", "2", "--in-save", "1", "--seed", "3"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 resumed runs are the undisturbed run, bit for bit; 1 was killed in a save" in done.stdout
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
    state = torch.load(file, weights_only=True)
    moment = state["optimizers"]["net"]["state"][3]["exp_avg"].view(-1)
    moment[:1] = torch.nextafter(moment[:1], torch.tensor(1.0))
    torch.save(state, file)
    assert script.differences(whole, other) == ["net optimizer 3 exp_avg"]
