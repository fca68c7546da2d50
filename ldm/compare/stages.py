"""The stages of a comparison: each is done once, and what it found is kept.

A stage is known by its name and by all that it depends on, so that after an interruption, or a change of the
configuration, only what is missing or would come out otherwise is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole

Found = dict[str, Any]


class Stages:
    """What was found, in a folder.

    Args:
        folder: of the comparison.
        total: stages that there are to be; shown beside each that is worked on.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self._total, self._number = folder, total, 0

    def name(self, title: str, of: Mapping[str, Any]) -> str:
        """A name for files: a title and a digest of what the stage depends on."""
        told = json.dumps(of, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(told.encode()).hexdigest()[:10]
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', title).strip('-').lower()}-{digest}"

    def find(self, title: str, of: Mapping[str, Any], work: Callable[[str], Found]) -> Found:
        """What a stage found, now or earlier.

        Args:
            title: for people.
            of: all that it depends on, as JSON has it.
            work: does it, given a name for its files; not called where that was done.

        Raises:
            UserError: what ``work`` raises; or what is kept was written over.
        """
        self._number += 1
        name = self.name(title, of)
        place = self.folder / "stages" / f"{name}.json"
        if place.is_file():
            return _read(place)
        print(f"[{self._number}/{self._total}] {title}", flush=True)
        found = work(name)
        text = json.dumps({"stage": title, "of": of, "found": found}, indent=1, default=str, ensure_ascii=False)
        with disk_trouble(str(place)):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        return json.loads(text)["found"]  # as it is read the next time


def _read(place: Path) -> Found:
    try:
        return json.loads(place.read_text(encoding="utf-8"))["found"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} holds no result of a comparison: delete it, and it is found again") from error
