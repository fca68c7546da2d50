"""Publishing a checkpoint: whole or not at all, and the old one stays until the new one is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.training.checkpoint import checkpoint_folder, publishing, sweep
from ldm.weights.model import latest_checkpoint


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def publish(run: Path, step: int, text: str, keep: int = 1) -> None:
    with publishing(run, step, keep) as folder:
        (folder / "file").write_text(text)


def broken_off(run: Path, error: BaseException) -> None:
    with publishing(run, 3, keep=1) as folder:
        (folder / "half").write_text("ha")
        raise error


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(keep, tmp_path):
    for step in (5, 10, 99_999_999, 15):  # names sort as numbers
        publish(tmp_path, step, str(step), keep=9)
    publish(tmp_path, 20, "20", keep)
    assert names(tmp_path) == [f"step_{n:08d}" for n in (5, 10, 15, 20, 99_999_999)][-keep:]
    assert latest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 99_999_999)


def test_the_old_one_goes_only_after_the_new_one_is_published(tmp_path):
    """The write itself sees the old checkpoint; a write that fails leaves it, and nothing else."""
    publish(tmp_path, 1, "old")
    with publishing(tmp_path, 2, keep=1) as folder:
        assert names(tmp_path) == ["step_00000001", "writing_step_00000002"]
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("new")
    assert names(tmp_path) == ["step_00000002"]

    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            broken_off(tmp_path, error)
        assert names(tmp_path) == ["step_00000002"]
        if isinstance(error, OSError):
            assert "step_00000003 cannot be written: " in str(caught.value)
            assert "No space left on device; the last one is intact" in str(caught.value)


def test_a_folder_under_its_own_name_is_whole_at_any_moment(tmp_path):
    """A process stopped dead at any moment of publishing: forked, and ended at the n-th system call it makes."""
    publish(tmp_path, 1, "whole")
    calls = ("mkdir", "replace", "rename", "open", "fsync", "close", "rmdir", "unlink")
    stops, finished = 0, False
    while not finished:
        sweep(tmp_path)
        pid = os.fork()
        if pid == 0:
            _end_at(calls, stops)
            publish(tmp_path, stops + 2, "whole")
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        newest = latest_checkpoint(tmp_path)
        assert newest is not None
        for folder in (tmp_path / "checkpoints").glob("step_*"):
            assert (folder / "file").read_text() == "whole"
        stops += 1
    assert stops > 8
    sweep(tmp_path)
    assert names(tmp_path) == [f"step_{stops + 1:08d}"]


def _end_at(calls: tuple[str, ...], count: int) -> None:
    """End this process, without any clearing up, instead of the call number ``count`` of ``os.*``."""
    import sys

    seen = 0

    def watch(frame, event, function):
        nonlocal seen
        if event == "c_call" and function.__name__ in calls:
            if seen == count:
                os._exit(9)
            seen += 1

    sys.setprofile(watch)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.txt"
    write_whole(file, lambda path: path.write_text("one"))

    def fail(path: Path) -> None:
        path.write_text("tw")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(file, fail)
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_only_trouble_with_the_disk_is_reworded():
    with (
        pytest.raises(UserError, match=r"^that cannot be written: .*No space.*; all is well$"),
        disk_trouble("that", "; all is well"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="shapes differ"), disk_trouble("that"):
        raise RuntimeError("shapes differ")
