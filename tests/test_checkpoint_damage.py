"""Every file of a checkpoint cut short, lost, or with one bit flipped: found before anything goes on from it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import config_file, differences, log_of, trained

from ldm.errors import UserError
from ldm.training.checkpoint import newest_good
from ldm.training.journal import read_log
from ldm.training.manifest import MANIFEST, damage, write_manifest
from ldm.weights.model import latest_checkpoint

CASES = 50


def cut(content: bytes, moments: random.Random) -> bytes:
    return content[: moments.randrange(len(content))]


def flipped(content: bytes, moments: random.Random) -> bytes:
    place, bit = moments.randrange(len(content)), 1 << moments.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Runs of four steps with checkpoints at two and four: whole networks, and shares of one."""
    base = tmp_path_factory.mktemp("runs")
    every = {"train__steps": 4, "train__checkpoint_every": 2}
    for parallel in ("ddp", "fsdp"):
        trained("label", base / parallel, **every, train__parallel=parallel)
    return {parallel: base / parallel for parallel in ("ddp", "fsdp")}


def damaged(checkpoint: Path, seed: int) -> Iterator[Path]:
    """Damage file after file, again and again, and mend it afterwards."""
    moments = random.Random(seed)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for case in range(CASES):
        file, content = files[case % len(files)], b""
        content = file.read_bytes()
        file.write_bytes((cut, flipped)[case // len(files) % 2](content, moments))
        yield file
        file.write_bytes(content)
    file = moments.choice(files)
    content = file.read_bytes()
    file.unlink()
    yield file
    file.write_bytes(content)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_of_it_is_found_and_named(parallel, runs):
    newest = latest_checkpoint(runs[parallel])
    assert newest is not None
    seen = set()
    for file in damaged(newest, seed=len(parallel)):
        seen.add(file)
        found, faults = newest_good(runs[parallel])
        assert found == newest.with_name("step_00000002")
        assert list(faults) == [newest]
        assert str(file) in faults[newest]
    assert len(seen) >= 10
    assert damage(newest) is None  # mended, it is whole again
    assert newest_good(runs[parallel]) == (newest, {})


@given(st.binary(min_size=1, max_size=64), st.data())
@settings(max_examples=60, deadline=None)
def test_no_other_content_passes(tmp_path_factory, content, data):
    """Not the same length, and not any other bytes of the same length; nor any other manifest."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "file").write_bytes(content)
    write_manifest(folder)
    assert damage(folder) is None
    other = data.draw(st.binary(max_size=64).filter(lambda found: found != content))
    (folder / "file").write_bytes(other)
    assert str(folder / "file") in (damage(folder) or "")
    (folder / "file").write_bytes(content)
    manifest = (folder / MANIFEST).read_bytes()
    place = data.draw(st.integers(0, len(manifest) - 1))
    (folder / MANIFEST).write_bytes(manifest[:place] + bytes([manifest[place] ^ 1]) + manifest[place + 1 :])
    found = damage(folder)
    # white space between the words of JSON means nothing, whichever it is
    assert str(folder / MANIFEST) in (found or "") if not manifest[place : place + 1].isspace() else True


def test_resuming_takes_the_one_before_and_says_so(runs, tmp_path, capsys):
    run = shutil.copytree(runs["ddp"], tmp_path / "run")
    file = run / "checkpoints" / "step_00000004" / "training" / "state.pt"
    file.write_bytes(flipped(file.read_bytes(), random.Random(0)))
    last = trained("label", run, resume=True, train__steps=4, train__checkpoint_every=2)
    assert differences(last, runs["ddp"] / "checkpoints" / "step_00000004") == []
    said = capsys.readouterr().err
    assert f"{file} is damaged: its checksum is another; going on from step 2" in said
    events = [record for record in read_log(run / "log.jsonl") if "event" in record]
    assert [(event["step"], event["event"]) for event in events] == [(2, "damaged")]
    assert str(file) in events[0]["message"]
    assert [record for record in log_of(run) if "event" not in record] == log_of(runs["ddp"])
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged_step_00000004", "step_00000002", "step_00000004"]


def test_with_none_left_nothing_is_done(runs, tmp_path):
    run = shutil.copytree(runs["ddp"], tmp_path / "run")
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "unet" / "config.json").write_text("{}")
    before = sorted(path for path in run.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint of .* can be resumed") as caught:
        trained("label", run, resume=True, train__steps=4, train__checkpoint_every=2)
    assert str(caught.value).count("config.json is damaged: it has 2 bytes") == 2
    assert sorted(path for path in run.rglob("*")) == before
    assert config_file("label", tmp_path / "run.yaml", run).is_file()
