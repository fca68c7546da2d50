"""The stages of a comparison: each is done once, and what it found is kept.

A stage is known by its name and by what it depends on, so that after an interruption, or a change of the
configuration, only what is missing or would come out otherwise is done. Versions of programs are not part of that: an
upgrade does not undo an hour's work. Each file tells what was installed when it was written.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole

Found = dict[str, Any]
_WIDTH = 20  # characters of a bar


class Stages:
    """What was found, in a folder.

    Args:
        folder: of the comparison.
        totals: stages that there are to be, by the row that they belong to, or of all rows together.
    """

    def __init__(self, folder: Path, totals: Mapping[str, int] | int) -> None:
        self.folder = folder
        self._totals = {"": totals} if isinstance(totals, int) else totals
        self._done: Counter[str] = Counter()
        self._began = time.monotonic()

    def name(self, title: str, of: Mapping[str, Any]) -> str:
        """A name for files: a title and a digest of what the stage depends on."""
        told = json.dumps(of, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(told.encode()).hexdigest()[:10]
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', title).strip('-').lower()}-{digest}"

    def find(
        self,
        title: str,
        of: Mapping[str, Any],
        work: Callable[[str], Found],
        *,
        row: str = "",
        needs: Callable[[Found], Iterable[Path]] = lambda found: (),
    ) -> Found:
        """What a stage found, now or earlier.

        Args:
            title: for people.
            of: what it depends on, as JSON has it.
            work: does it, given a name for its files; not called where that was done.
            row: that it belongs to.
            needs: the files or folders that something found earlier is of no use without.

        Raises:
            UserError: what ``work`` raises; or what is kept was written over.
        """
        name = self.name(title, of)
        place = self.folder / "stages" / f"{name}.json"
        if place.is_file():
            found = _read(place)
            if all(path.exists() for path in needs(found)):
                self._done[row] += 1
                return found
        self._tell(row, title)
        found = work(name)
        made = {"ldm": ldm.__version__, "torch": str(torch.__version__), "threads": torch.get_num_threads()}
        text = json.dumps({"stage": title, "of": of, "made": made, "found": found}, indent=1, ensure_ascii=False)
        with disk_trouble(str(place)):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, lambda path: path.write_text(text + "\n", encoding="utf-8"))
        self._done[row] += 1
        return json.loads(text)["found"]  # as it is read the next time

    def _tell(self, row: str, title: str) -> None:
        """A bar for the row, and what is worked on now."""
        done, total = self._done[row], self._totals.get(row, 0)
        full = _WIDTH * done // max(1, total)
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        bar = f"{row or 'all'} |{'█' * full}{'·' * (_WIDTH - full)}| {done}/{total}"
        print(f"{bar} [{minutes}:{seconds:02}] {title}", file=sys.stderr, flush=True)


def _read(place: Path) -> Found:
    try:
        return json.loads(place.read_text(encoding="utf-8"))["found"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} holds no result of a comparison: delete it, and it is found again") from error
