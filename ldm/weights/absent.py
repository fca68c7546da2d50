"""What to say of a place that was asked for and is not there."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

from ldm.errors import UserError

_ENOUGH = 10_000  # names in a folder that are compared
_URL = re.compile(r"(https?):/+")  # pathlib makes one slash of two


def check_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        UserError: it is a folder, an address, or missing; the message has the names that are near.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    if not path.is_file():
        raise UserError(f"{told_address(path) or f'{path} is missing: there is no such file{near(path)}'}")


def told_address(place: Path) -> str | None:
    """What to say where a place is an address on the web; else None."""
    if not _URL.match(str(place)):
        return None
    address = _URL.sub(r"\1://", str(place), count=1)
    return f"{address} is an address: download the file, or give owner/name of a model on the hub"


def near(path: Path) -> str:
    """The names beside a missing file or folder that are like its own, to put into a message."""
    try:
        names = [entry.name for entry in itertools.islice(path.parent.iterdir(), _ENOUGH)]
    except OSError:  # there is no such folder either, or it cannot be read
        return ""
    found = difflib.get_close_matches(path.name, names, n=3)
    return f" (near: {', '.join(found)})" if found else ""
