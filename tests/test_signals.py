"""Told to stop: a checkpoint within a step, exit code 75, and a run that goes on as if nothing had been."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from several_runs import ENVIRONMENT
from tiny_runs import config_file, differences, log_of, trained

from ldm.training import signals
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.journal import read_log
from ldm.training.run import Resume
from ldm.training.signals import Stopped
from ldm.training.trainer import Trainer
from ldm.weights.model import latest_checkpoint

STEPS = 40
SLURM = Path(__file__).parents[1] / "configs" / "launch" / "slurm.sh"


def steps_of(run: Path) -> int:
    records = read_log(run / "log.jsonl")
    return records[-1]["step"] if records else 0


def wait_for_step(run: Path, step: int, over: Callable[[], bool]) -> bool:
    """Wait until a run has logged a step; False where it was over before."""
    while not run.exists() or steps_of(run) < step:
        if over():
            return False
        time.sleep(0.002)
    return True


@contextmanager
def signalled(number: signal.Signals, run: Path, step: int) -> Iterator[list[int]]:
    """Send this process a signal once a run has logged a step; the steps it had done then."""
    noted: list[int] = []
    over = threading.Event()

    def send() -> None:
        if wait_for_step(run, step, over.is_set):
            noted.append(steps_of(run))
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield noted
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("number", "workers", "code"), [(signal.SIGTERM, 0, 75), (signal.SIGUSR1, 1, 75), (signal.SIGINT, 0, 130)]
)
def test_a_signal_saves_and_ends_the_run_within_a_step(number, workers, code, tmp_path, capsys):
    run, settings = tmp_path / "run", {"train__steps": STEPS, "train__workers": workers}
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, signalled(number, run, 2) as noted:
        trained("label", run, **settings)
    assert stop.value.code == code
    assert signal.getsignal(number) == before
    last = latest_checkpoint(run)
    assert last is not None
    done = int(last.name.removeprefix("step_"))
    # between looking and sending it, a step or two may end
    assert noted[0] + 1 <= done <= noted[0] + 3
    assert read_log(run / "log.jsonl")[-1] == {"step": done, "event": "stopped", "signal": number.name}
    assert f"stopped by {number.name} after step {done}, which is saved" in capsys.readouterr().err
    short = done + 2
    last = trained("label", run, resume=True, **{**settings, "train__steps": short})
    whole = trained("label", tmp_path / "whole", **{**settings, "train__steps": short})
    assert differences(last, whole) == []
    assert [record for record in log_of(run) if "event" not in record] == log_of(tmp_path / "whole")


def endlessly(*_: Any) -> None:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(600)


def test_pictures_are_broken_off_and_drawn_later(tmp_path, monkeypatch):
    """A sheet that would take hours does not keep a signal waiting."""
    settings = {"train__steps": 4, "train__sample_every": 2, "sample__sampler": "ddpm", "sample__steps": 3}
    settings |= {"validation": {"count": 4, "every": 2, "prompts": [3]}, "memorised": {}}
    whole = trained("label", tmp_path / "whole", **settings)
    run = tmp_path / "run"
    # in the loss on what is held out, in the sheet of prompts, in that of samples, and in the search for copies
    for method in ("validation", "draw_validation", "draw", "write_sheet"):
        with monkeypatch.context() as patched:
            patched.setattr(DiffusionTask, method, endlessly)
            with pytest.raises(Stopped):
                trained("label", run, resume=Resume.IF_ANY, **settings)
        assert str(latest_checkpoint(run)).endswith("step_00000002")
        assert not (run / "samples" / "step_00000002.png").exists()
    last = trained("label", run, resume=True, **settings)
    assert differences(last, whole) == []
    assert [record for record in log_of(run) if "event" not in record] == log_of(tmp_path / "whole")
    for folder, step in itertools.product(("samples", "validation"), (2, 4)):
        sheets = [place / folder / f"step_{step:08d}.png" for place in (run, tmp_path / "whole")]
        assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch, capfd):
    """But what comes twice at once is one: torchrun passes on what the terminal has sent to everybody."""

    def twice(*_: Any) -> list[torch.Tensor]:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("was not broken off")

    monkeypatch.setattr(DiffusionTask, "draw", twice)
    monkeypatch.setattr(signals, "_SAME", 600)
    save = Trainer.checkpoint

    def late(self: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        save(self)
        monkeypatch.setattr(signals, "_SAME", 0)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "checkpoint", late)
    with pytest.raises(KeyboardInterrupt):
        trained("label", tmp_path / "run", train__steps=2, train__sample_every=1)
    assert capfd.readouterr().err.count("stopping after this step; Ctrl-C again ends at once") == 1
    assert str(latest_checkpoint(tmp_path / "run")).endswith("step_00000001")


# Stand-ins for the programs of a cluster: a job step on this host, and what is asked of the scheduler.
_CLUSTER = {
    "srun": 'shift; exec setsid --wait bash -c \'echo $$ > "$JOB/step"; exec "$@"\' step "$@"',
    "scancel": 'echo "scancel $*" >> "$JOB/asked"; told() { for p in $(ps -o pid= --ppid "$1"); do told "$p"; done; '
    'kill -s USR1 "$1"; }; told "$(cat "$JOB/step")"',  # every process of the step, whatever its group
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*" >> "$JOB/asked"; fi',
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}


def test_slurm_asks_all_processes_to_stop_and_queues_the_job_again(tmp_path):
    """The real script: USR1 goes to every process of the step, those that prepare samples among them."""
    run = tmp_path / "run"
    halves = {"train__batch_size": 2, "train__parallel": "fsdp", "train__workers": 1}
    file = config_file("label", tmp_path / "run.yaml", run, train__steps=STEPS, **halves)
    for name, body in _CLUSTER.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here", "LDM_PROCESSES": "2"}
    job |= {"JOB": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with (tmp_path / "said.txt").open("w") as said:
        script = subprocess.Popen([SLURM, str(file)], env={**ENVIRONMENT, **job}, stdout=said, stderr=said)
        assert wait_for_step(run, 1, lambda: script.poll() is not None), (tmp_path / "said.txt").read_text()
        noted = steps_of(run)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(200) == 0
    told = (tmp_path / "said.txt").read_text()
    assert "exitcode  : 75" in told
    assert told.count("stopped by SIGUSR1 after step") == 1
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"scancel --signal=USR1 {os.getpid()}", f"scontrol requeue {os.getpid()}"]
    done = int(str(latest_checkpoint(run)).rpartition("_")[2])
    assert noted + 1 <= done <= noted + 4
    assert read_log(run / "log.jsonl")[-1] == {"step": done, "event": "stopped", "signal": "SIGUSR1"}
    whole = {"train__steps": done + 1, "train__batch_size": 4, "train__parallel": "fsdp"}
    trained("label", run, resume=True, **whole)
    trained("label", tmp_path / "whole", **whole)
    for record, other in zip([r for r in log_of(run) if "event" not in r], log_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(other, rel=1e-5, abs=1e-5)
