"""Pictures that cannot be used: named once each, counted over interruptions, and too many of them stop a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import trained

from ldm.errors import UserError
from ldm.training.journal import read_log

PICTURES, BAD = 12, (0, 6)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A few pictures of noise, two of them cut short."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = torch.randint(256, (PICTURES, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise.numpy()):
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    for number in BAD:
        file = pictures / f"{number}.png"
        file.write_bytes(file.read_bytes()[:300])
    return pictures


def settings(folder: Path, **changes: object) -> dict[str, object]:
    data = {"source": "folder", "path": str(folder), "colours": "grey", "skip_bad": changes.pop("skip_bad", 0)}
    return {"data": data, "train__checkpoint_every": 3, "train__log_every": 3, **changes}


def skipped(run: Path) -> list[str]:
    return [record["key"] for record in read_log(run / "log.jsonl") if record.get("event") == "skipped"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_stops_a_run_that_allows_none(workers, folder, tmp_path, capsys):
    with pytest.raises(UserError, match=r"data\.skip_bad allows 0") as caught:
        trained("toy", tmp_path / "run", **settings(folder, train__workers=workers))
    assert "Traceback" not in str(caught.value)
    assert f"{folder}" in str(caught.value)
    assert skipped(tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))  # nothing is saved of what follows a bad one
    assert f"skipped: {folder}" in capsys.readouterr().err


def test_who_stops_says_how_to_go_on(folder, tmp_path):
    """Also where a sample finds nothing to stand in for what it cannot open."""
    for number in range(PICTURES):
        file = folder / f"{number}.png"
        file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=r"in a row cannot be used: .*\.png.*`ldm data check` lists .*data\.skip_bad"):
        trained("toy", tmp_path / "run", **settings(folder))


def test_some_may_be_allowed_and_are_counted_once(folder, tmp_path):
    """Six steps of four samples are two epochs: each comes twice, and again after resuming."""
    run = tmp_path / "run"
    trained("toy", run, **settings(folder, skip_bad=2))
    assert sorted(skipped(run)) == ["0.png", "6.png"]
    trained("toy", run, resume=True, **settings(folder, skip_bad=2, train__steps=12))
    assert sorted(skipped(run)) == ["0.png", "6.png"]
    with pytest.raises(UserError, match=r"2 examples cannot be used, and data\.skip_bad allows 1"):
        trained("toy", tmp_path / "other", **settings(folder, skip_bad=1, train__steps=12))
