"""A run that was interrupted ends, bit for bit, as one that was not; and what cannot be resumed is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from picture_folders import put
from tiny_runs import command, config, config_file, differences, judge_file, log_of, trained

from ldm.config import validate
from ldm.errors import UserError
from ldm.training.run import Resume, train
from ldm.weights.files import read_tensors
from ldm.weights.model import latest_checkpoint

SHORT = {"train__checkpoint_every": 2, "train__keep_checkpoints": 9}


def rewound(run: Path, step: int, to: Path) -> Path:
    """A copy of a run, as it would be had it been killed after the checkpoint of ``step``."""
    shutil.copytree(run, to)
    for checkpoint in (to / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    return to


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    """A VAE and a CLIP for the latent model."""
    base = tmp_path_factory.mktemp("parts")
    for kind in ("vae", "clip"):
        trained(kind, base / kind, train__steps=1)
    return {"codec__path": base / "vae", "condition__path": base / "clip"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("label", {}),
        ("label", {"train__gradient_accumulation": 2, "train__mixed_precision": "bf16", "flip": True}),
        ("label", {"train__channels_last": True, "train__gradient_checkpointing": True, "train__ema_decay": 0}),
        ("vae", {"train__lr_schedule": "cosine"}),
        ("vae", {"train__gradient_accumulation": 2, "loss__adversarial_start": 4, "train__mixed_precision": "bf16"}),
        ("clip", {}),
        ("latent", {}),
        ("latent", {"cache": {}, "train__mixed_precision": "bf16"}),
    ],
)
def test_resuming_changes_nothing(kind, changes, parts, tmp_path):
    changes = {**SHORT, **changes, **(parts if kind == "latent" else {})}
    if kind == "vae":
        changes |= {"loss__perceptual": 0.1, "loss__perceptual_path": judge_file(tmp_path / "judge.safetensors")}
    whole = trained(kind, tmp_path / "whole", **changes)
    rewound(tmp_path / "whole", 2, tmp_path / "again")
    again = trained(kind, tmp_path / "again", resume=True, **changes)
    assert again.name == whole.name == "step_00000006"
    assert differences(whole, again) == []
    assert log_of(tmp_path / "again") == log_of(tmp_path / "whole")
    assert [record["step"] for record in log_of(tmp_path / "again")] == [1, 2, 3, 4, 5, 6]
    files = [file.relative_to(whole) for file in whole.rglob("*.safetensors")]
    assert len(files) >= 3
    for file in files:  # the model to draw with, too
        one, other = read_tensors(whole / file), read_tensors(again / file)
        assert all(one[name].equal(other[name]) for name in {*one, *other}), file


def test_two_steps_differ_where_they_should(tmp_path):
    """The comparison of these tests can fail."""
    trained("label", tmp_path / "run", train__steps=2, train__checkpoint_every=1, train__keep_checkpoints=2)
    found = differences(*sorted((tmp_path / "run" / "checkpoints").iterdir()))
    assert any(name.startswith("net net.") for name in found)
    assert any(name.startswith("average ") for name in found)
    assert any("exp_avg_sq" in name for name in found)
    assert differences(trained("label", tmp_path / "a", train__steps=1), trained("label", tmp_path / "b", seed=1)) != []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers, tmp_path):
    alone = trained("label", tmp_path / "alone", flip=True)
    shared = trained("label", tmp_path / "shared", flip=True, train__workers=workers)
    assert differences(alone, shared) == []
    assert log_of(tmp_path / "alone") == log_of(tmp_path / "shared")


def test_a_run_with_a_constant_rate_can_be_prolonged_and_moved(tmp_path):
    whole = trained("label", tmp_path / "whole")
    trained("label", tmp_path / "short", train__steps=3)
    (tmp_path / "short").rename(tmp_path / "moved")
    free = {"train__workers": 1, "train__log_every": 4, "train__trackers": ["tensorboard"], "sample__count": 2}
    assert differences(whole, trained("label", tmp_path / "moved", resume=True, **free)) == []


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    whole = trained("label", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints")
    with (tmp_path / "again" / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    assert differences(whole, trained("label", tmp_path / "again", resume=True)) == []
    assert log_of(tmp_path / "again") == log_of(tmp_path / "whole")


def test_leftovers_of_a_kill_are_cleared_away(tmp_path):
    trained("label", tmp_path / "run", **SHORT)
    run = rewound(tmp_path / "run", 4, tmp_path / "again")
    for name in ("writing_step_00000006", "deleting_step_00000001"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "model_index.json").write_text("{")
    assert latest_checkpoint(run) == run / "checkpoints" / "step_00000004"
    trained("label", run, resume=True, **SHORT)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step_0000000{n}" for n in (2, 4, 6)]


# ------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return trained("label", tmp_path_factory.mktemp("finished") / "run").parents[1]


def test_more_bad_pictures_may_be_allowed_later(tmp_path):
    """Which is what the message of a run that met too many asks for."""
    folder = tmp_path / "pictures"
    for number in range(4):
        put(folder / "3" / f"{number}.png", number, (28, 28))
    data: dict[str, Any] = {
        "source": "folder",
        "layout": "classes",
        "path": str(folder),
        "colours": "grey",
    }
    short = {"data": data, "condition__classes": 1, "sample__conditions": [0]}
    run = validate(config("label", tmp_path / "run", **short, train__steps=2), "here")
    train(run)
    later = validate(config("label", tmp_path / "run", **short, train__steps=3, data__skip_bad=2), "here")
    assert train(later, resume=True).name == "step_00000003"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__batch_size": 8}, "a step of this run has 4 samples"),
        ({"seed": 5}, "seed: was 0, now 5"),
        ({"unet__norm_num_groups": 8}, "unet.norm_num_groups: was 4, now 8"),
        ({"condition__drop": 0.5, "prediction": "v"}, "prediction: was None, now 'v'"),
        ({"train__lr_schedule": "cosine", "train__steps": 9}, "train.steps: was 6, now 9"),
    ],
)
def test_another_configuration_is_named(changes, said, finished, tmp_path, capsys):
    file = config_file("label", tmp_path / "other.yaml", finished, **changes)
    assert command("train", str(file), "--resume") == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message


def test_no_run_and_a_run_too_many(finished, tmp_path, capsys):
    nothing = config_file("label", tmp_path / "nothing.yaml", tmp_path / "nothing")
    assert command("train", str(nothing), "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    assert command("train", str(config_file("label", tmp_path / "again.yaml", finished))) == 2
    assert "already holds a run: --resume continues it" in capsys.readouterr().err


def test_a_finished_run_stays_as_it_is(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*")}
    trained("label", finished, resume=True)
    assert {path: path.stat().st_mtime_ns for path in (finished / "checkpoints").rglob("*")} == before


def test_a_checkpoint_of_another_network(finished, tmp_path):
    run = tmp_path / "mixed"
    shutil.copytree(finished, run)
    checkpoint = run / "checkpoints" / "step_00000006"
    shutil.rmtree(checkpoint)
    shutil.copytree(trained("toy", tmp_path / "toy", train__steps=1), checkpoint)
    with pytest.raises(UserError, match="does not fit the run's configuration"):
        trained("label", run, resume=True)


def test_resuming_if_there_is_a_run(tmp_path):
    """One command that starts a run and goes on with it, as a job that is started again and again needs."""
    for steps in (2, 4):
        trained("label", tmp_path / "run", resume=Resume.IF_ANY, train__steps=steps)
    assert [record["step"] for record in log_of(tmp_path / "run")] == [1, 2, 3, 4]
    whole = trained("label", tmp_path / "whole", train__steps=4)
    assert differences(whole, tmp_path / "run" / "checkpoints" / "step_00000004") == []


def test_a_damaged_log_is_named_by_its_line(finished, tmp_path):
    run = tmp_path / "log"
    shutil.copytree(finished, run)
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:], ""]))
    with pytest.raises(UserError, match=r"log\.jsonl, line 2 is damaged"):
        trained("label", run, resume=True)
