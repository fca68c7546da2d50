"""Files and folders that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from ldm.errors import UserError

UNFINISHED, DOOMED = "writing_", "deleting_"  # what the names of folders begin with that are not whole


@contextlib.contextmanager
def disk_trouble(what: str, consequence: str = "") -> Iterator[None]:
    """Turn a full or failing disk into a message that names ``what`` was being written.

    Raises:
        UserError: in place of the system's error, which torch and safetensors wrap in types of their own.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, SafetensorError) and "I/O" not in text:
            raise
        if isinstance(error, RuntimeError):  # torch.save's stream has lost the system's reason
            if "inline_container" not in text and "PytorchStreamWriter" not in text:
                raise
            text = "no more could be written to its file, as when a disk or quota is full"
        raise UserError(f"{what} cannot be written: {text}{consequence}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` write a file beside ``path``, then rename it; when it fails, nothing is left."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # where the folder is none, nothing was written either
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes ``folder`` when the block ends well.

    When it does not, the new folder is deleted and what was at ``folder`` is as before.
    """
    new, old = folder.with_name(UNFINISHED + folder.name), folder.with_name(DOOMED + folder.name)
    for leftover in (new, old):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for path in (*new.rglob("*"), new):
            _fsync(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        _fsync(folder.parent)  # the name is on the disk before anything that it replaces goes
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened, nor a file be flushed that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
