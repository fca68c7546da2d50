"""Told to stop: a checkpoint within a step, exit code 75, and a run that goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from several_runs import launch
from tiny_runs import config_file, differences, log_of, trained

from ldm.training.journal import read_log
from ldm.training.signals import EXIT_CODE, Stopped
from ldm.weights.model import latest_checkpoint

STEPS = 40


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


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 1)])
def test_a_signal_saves_and_ends_the_run_within_a_step(number, workers, tmp_path, capsys):
    run, settings = tmp_path / "run", {"train__steps": STEPS, "train__workers": workers}
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, signalled(number, run, 2) as noted:
        trained("label", run, **settings)
    assert stop.value.code == EXIT_CODE == 75
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


def test_all_processes_stop_after_the_same_step_whichever_was_told(tmp_path):
    """As with Slurm, which signals one process or all; torchrun stays out of it, as its shell ignores SIGUSR1."""
    run = tmp_path / "run"
    halves = {"train__batch_size": 2, "train__parallel": "fsdp", "train__workers": 1}
    file = config_file("label", tmp_path / "run.yaml", run, train__steps=STEPS, **halves)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # is handed down
    try:
        job = launch("--standalone", "--nproc-per-node", "2", "-m", "ldm", "train", str(file))
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert wait_for_step(run, 1, lambda: job.poll() is not None)
    told = max(int(pid) for pid in _children(job.pid))  # one of the two
    noted = steps_of(run)
    os.kill(told, signal.SIGUSR1)
    said, _ = job.communicate(timeout=200)
    assert job.returncode != 0
    assert said.count("exitcode  : 75") == 2, said[-3000:]
    last = latest_checkpoint(run)
    assert last is not None
    done = int(last.name.removeprefix("step_"))
    assert noted + 1 <= done <= noted + 4
    assert read_log(run / "log.jsonl")[-1] == {"step": done, "event": "stopped", "signal": "SIGUSR1"}
    whole = {"train__steps": done + 1, "train__batch_size": 4, "train__parallel": "fsdp"}
    trained("label", run, resume=True, **whole)
    trained("label", tmp_path / "whole", **whole)
    for record, other in zip([r for r in log_of(run) if "event" not in r], log_of(tmp_path / "whole"), strict=True):
        assert record == pytest.approx(other, rel=1e-5, abs=1e-5)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
