"""Pictures that could not be used: named once each, and counted over all processes and resumptions."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ldm.data.example import BadExample
from ldm.data.samples import Skipped
from ldm.errors import UserError
from ldm.training.journal import Journal

WAY_OUT = "`ldm data check` lists all of them, and data.skip_bad says how many may be left out"


def stop_of(error: UserError) -> str:
    """What to say when training stops at a mistake: where it is a picture or caption, with the way out."""
    return f"{error}; {WAY_OUT}" if isinstance(error.__cause__, BadExample) else str(error)


class SkippedList:
    """The examples of a run in whose place others were shown.

    Args:
        allowed: how many there may be.

    Attributes:
        keys: of all of them, in the order in which they were found.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self.keys: list[str] = []

    def add(self, found: Iterable[Skipped], step: int, journal: Journal | None) -> None:
        """Take in what all processes have skipped; the one with the journal names what is new.

        Raises:
            UserError: there are more than are allowed.
        """
        known = set(self.keys)
        fresh = {skipped.key: skipped for skipped in found if skipped.key not in known}
        self.keys += fresh
        if journal is not None:
            for skipped in fresh.values():
                journal.write({"step": step, "event": "skipped", "key": skipped.key, "message": skipped.message})
                print(f"skipped: {skipped.message}", file=sys.stderr)
        if len(self.keys) > self._allowed:
            last = next(reversed(fresh.values())).message if fresh else self.keys[-1]
            raise UserError(
                f"{len(self.keys)} examples cannot be used, and data.skip_bad allows {self._allowed}; such as: {last}; "
                f"{WAY_OUT}"
            )
