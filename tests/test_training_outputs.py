"""What a run leaves beside its checkpoints: log, plots, sheets, TensorBoard, and its configuration."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import command, config, config_file, trained

from ldm.config import load_config, validate
from ldm.errors import UserError
from ldm.training.journal import Journal, read_log

SETTINGS = {"train__trackers": ["tensorboard"], "train__sample_every": 2, "train__log_every": 2, "train__steps": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained("label", tmp_path_factory.mktemp("outputs") / "run", **SETTINGS, train__batch_size=8).parents[1]


def test_the_log_is_json_line_by_line_with_the_loss_by_quarter_of_the_time(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 5]
    for record in records:
        assert {"loss", "lr", "grad_norm", "images_per_second"} <= record.keys()
        quarters = [record[f"loss_q{i}"] for i in range(1, 5) if f"loss_q{i}" in record]
        assert min(quarters) <= record["loss"] <= max(quarters)  # a mean of theirs
        assert all(math.isfinite(value) for value in record.values())
    first = [record["loss_q1"] for record in records if "loss_q1" in record]
    assert first  # a picture almost without noise tells little of it: epsilon is hardest there
    assert max(first) > records[-1]["loss_q4"]


def test_tensorboard_reads_what_the_log_says(run):
    events = EventAccumulator(str(run / "tensorboard" / "ldm"))
    events.Reload()
    records = read_log(run / "log.jsonl")
    assert set(events.Tags()["scalars"]) == {name for record in records for name in record} - {"step"}
    for name in ("loss", "lr", "grad_norm"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(record["step"], pytest.approx(record[name])) for record in records]


def test_tensorboard_goes_on_where_the_run_does(tmp_path):
    settings = {"train__trackers": ["tensorboard"]}
    trained("toy", tmp_path / "run", train__steps=2, **settings)
    trained("toy", tmp_path / "run", train__steps=4, resume=True, **settings)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "ldm"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_sheets_and_plot_are_pictures(run):
    sheets = sorted((run / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == [f"step_0000000{n}.png" for n in (2, 4, 5)]
    for sheet in sheets:
        with Image.open(sheet) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.size == (2 * (2 * 30 + 2),) * 2  # four pictures of 28, borders of 2, twice enlarged
            assert len(picture.getcolors() or []) > 20
    with Image.open(run / "loss.png") as plot:
        plot.load()
        assert plot.format == "PNG"
        assert min(plot.size) > 300


@pytest.mark.parametrize("kind", ["vae", "clip"])
def test_every_task_draws_its_sheet(kind, tmp_path):
    trained(kind, tmp_path / "run", train__steps=1)
    with Image.open(tmp_path / "run" / "samples" / "step_00000001.png") as picture:
        picture.load()
        assert picture.width == 2 * (10 * 34 + 2)


def test_the_resolved_configuration_reads_back(run, tmp_path):
    found = load_config(run / "config.yaml")
    assert found == validate(config("label", run, **SETTINGS, train__batch_size=8), "tiny")
    text = (run / "config.yaml").read_text()
    assert "adam_beta2: 0.999" in text  # defaults included
    again = load_config(run / "config.yaml", [f"output={tmp_path / 'again'}"])
    assert again.train == found.train


def test_overrides_of_the_command_line_are_resolved_and_stored(tmp_path, capsys):
    file = config_file("toy", tmp_path / "run.yaml", tmp_path / "run")
    assert command("train", str(file), "train.steps=1", "train.learning_rate=1e-3", "seed=4") == 0
    assert str(tmp_path / "run" / "checkpoints" / "step_00000001") in capsys.readouterr().out
    stored = load_config(tmp_path / "run" / "config.yaml")
    assert (stored.train.steps, stored.train.learning_rate, stored.seed) == (1, 0.001, 4)


def test_the_provenance_tells_of_the_training_and_not_of_the_disk(run):
    index = (run / "checkpoints" / "step_00000005" / "model_index.json").read_text()
    provenance = json.loads(index)["_ldm"]["provenance"]
    assert provenance["steps"] == 5
    assert provenance["config"]["train"]["batch_size"] == 8
    assert str(run.parent) not in index
    assert "path" not in provenance["config"]["data"]


def test_a_journal_drops_what_will_be_done_again(tmp_path):
    first = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": 0.5 * step})
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # killed while writing
    again = Journal(tmp_path, 2)
    again.write({"step": 3, "loss": 9.0})
    assert read_log(tmp_path / "log.jsonl") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]


@pytest.mark.parametrize("line", ['{"loss": 1.0}', '{"step": 2, "lo', "[2]", "\\xff", '{"step": "2"}', ""])
def test_a_damaged_line_of_the_log_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    lines = ['{"step": 1}', line, '{"step": 3}']
    path.write_bytes("\n".join(lines).encode().replace(b"\\xff", b"\xff") + b"\n")
    with pytest.raises(UserError, match=rf"^{path}, line 2 is damaged: .*delete the line"):
        Journal(tmp_path, 3)


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ldm.training.progress._EVERY", 0.0)
    trained("label", tmp_path / "run", train__log_every=2, train__steps=5)
    said = capsys.readouterr().err.splitlines()
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in log] == [2, 4, 5]
    assert len(said) == 3
    for line, record in zip(said, log, strict=True):
        rate = f"{record['images_per_second']:.0f}"
        told = f"step {record['step']} of 5: loss {record['loss']:.4f}, img/s {rate}, "
        assert re.fullmatch(re.escape(told) + r"\d\d:\d\d left", line)
    assert said[-1].endswith(" 00:00 left")


def test_nothing_but_the_result_is_printed(tmp_path, capfd):
    """No progress bars of other programs, and no warnings, on the way to a checkpoint."""
    for kind in ("vae", "clip"):
        assert command("train", str(config_file(kind, tmp_path / "c.yaml", tmp_path / kind, train__steps=2))) == 0
    places = {"codec__path": tmp_path / "vae", "condition__path": tmp_path / "clip"}
    file = config_file("latent", tmp_path / "c.yaml", tmp_path / "latent", train__steps=2, **places)
    assert command("train", str(file)) == 0
    printed, said = capfd.readouterr()
    assert [line.partition(" ")[0] for line in printed.splitlines()] == ["trained:"] * 3
    assert said == ""
