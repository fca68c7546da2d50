"""What was found out about data, kept in the user's cache: each file is whole, or is as good as none.

A file begins with a checksum of the rest, as a wrong number in it would be believed. A damaged one does no harm, and a
home that cannot be written none either: what was kept there is found again. Where many processes of a machine need the
same, one finds it and the others wait, then read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ldm.publishing import write_whole

_CHECKSUM = 16  # bytes


def cache_file(kind: str, name: str) -> Path | None:
    """Where what has this name is kept.

    Args:
        kind: the folder of its like.
        name: of any length and any letters.

    Returns:
        None for a user without a home, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        return None
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return Path(base) / "ldm" / kind / digest


def recall(place: Path | None) -> bytes | None:
    """What is kept at a place; None where there is nothing, or it is damaged."""
    try:
        held = place.read_bytes() if place else b""
    except OSError:  # none yet
        return None
    checksum, content = held[:_CHECKSUM], held[_CHECKSUM:]
    return content if checksum == _sum(content) else None


def keep(place: Path | None, content: bytes) -> None:
    """Keep something at a place, if that can be written."""
    if place is None:
        return
    own = place.with_name(f"{place.name}.{os.getpid()}")  # processes of several machines may come here at once
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(own, lambda path: path.write_bytes(_sum(content) + content))
        os.replace(own, place)


def _sum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()


@contextlib.contextmanager
def one_at_a_time(place: Path | None) -> Iterator[None]:
    """While the block runs, other processes wait to enter theirs for the same place; look at the place once inside.

    Where nothing can be kept, nobody could read what another found, and nobody waits.
    """
    lock = _acquired(place)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(place: Path | None) -> FileLock | None:
    if place is None:
        return None
    path = place.parent.with_name("locks") / f"{place.parent.name}-{place.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except (OSError, NotImplementedError):  # it cannot be written, or its disk knows no locks
        return None
    return lock
