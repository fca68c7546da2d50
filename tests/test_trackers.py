"""Trackers: what TensorBoard's own reader finds, and what is said of those that are not there."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import command, config_file, trained

from ldm.training.journal import read_log

TOY = {"train__steps": 2, "train__trackers": ["tensorboard"]}


def test_tensorboard_has_the_numbers_of_the_log_and_no_event(tmp_path):
    trained("toy", tmp_path / "run", **TOY)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "event": "stopped", "signal": "SIGTERM"}\n')
    trained("toy", tmp_path / "run", **{**TOY, "train__steps": 4}, resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "ldm"))
    events.Reload()
    records = [record for record in read_log(tmp_path / "run" / "log.jsonl") if "event" not in record]
    assert set(events.Tags()["scalars"]) == {name for record in records for name in record} - {"step"}
    for name in ("loss", "data_wait"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(record["step"], pytest.approx(record[name])) for record in records]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_one_that_is_not_installed_is_named_with_its_cure(name, tmp_path, monkeypatch, capsys):
    real = importlib.import_module

    def without(module: str) -> Any:
        if module in (name, f"torch.utils.{name}"):
            raise ImportError(f"No module named {name!r}")
        return real(module)

    monkeypatch.setattr(importlib, "import_module", without)
    file = config_file("toy", tmp_path / "run.yaml", tmp_path / "run", train__trackers=[name])
    assert command("train", str(file)) == 2
    assert f"pip install 'ldm[{name}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 4):
        trained("toy", tmp_path / "run", train__steps=steps, train__trackers=["wandb"], resume=steps > 2)
    folders = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert len({name.partition("-run-")[2].split("-", 2)[2] for name in folders}) == 1
