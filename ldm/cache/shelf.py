"""The shards of one kind in a cache's folder: which are there, which are damaged, what the next are called."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.cache.fingerprint import Recipe, differences, read_recipe
from ldm.cache.shards import Shard, is_whole, read_shard, sealed_json, state_of, unsealed_json
from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole

CONTENTS = "cache.json"
KINDS = ("latents", "texts")
_OURS = re.compile(rf"(?:(?:{'|'.join(KINDS)})-\d{{5,}}\.safetensors|{CONTENTS})(?:\.tmp)?")


class Shelf:
    """The shards of one kind.

    Attributes:
        kind: one of ``KINDS``.
        recipe: how rows are to be made.
    """

    def __init__(self, folder: Path, kind: str, recipe: Recipe) -> None:
        self.folder, self.kind, self.recipe = folder, kind, recipe

    def files(self) -> list[Path]:
        """The files there are, by number."""
        return sorted(self.folder.glob(f"{self.kind}-*.safetensors"))

    def discard_stale(self) -> list[str]:
        """Delete what was made by another recipe; return what has changed since, a phrase for each thing."""
        told: dict[str, None] = {}
        for path in self.files():
            shard = read_shard(path)
            if _values(shard.note["recipe"]) != _values(self._told()):
                told |= dict.fromkeys(differences(read_recipe(shard.note["recipe"]), self.recipe))
                _discard(path, "is stale")
        return list(told)

    def discard_empty(self) -> None:
        """Delete shards of which every row was left out, so that these are tried again."""
        for shard in self.shards():
            if not shard.rows:
                _discard(shard.path, "has no picture that could be used")

    def shards(self) -> list[Shard]:
        """What the shards say of themselves."""
        return [read_shard(path) for path in self.files()]

    def fresh(self, count: int) -> list[Path]:
        """Files for new shards, under the lowest numbers that are free."""
        taken = {path.name for path in self.files()}
        names = (f"{self.kind}-{number:05d}.safetensors" for number in range(count + len(taken)))
        return [self.folder / name for name in names if name not in taken][:count]

    def note(self) -> dict[str, Any]:
        """What every new shard says."""
        return {"recipe": self._told()}

    def _told(self) -> dict[str, list[str]]:
        return {name: list(trait) for name, trait in self.recipe.items()}


def _values(told: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What is compared of a recipe, as a shard tells it."""
    return {name: value for name, (_, value) in told.items()}


def discard_damaged(known: Mapping[str, list[int]], files: Sequence[Path]) -> list[str]:
    """Delete shards that are truncated or have a changed byte; return a phrase for each.

    Args:
        known: states in which files were found whole; those that are still in them are not read again.
        files: which to look at.

    Raises:
        UserError: one cannot be deleted.
    """
    told = []
    for path in files:
        if known.get(path.name) != state_of(path) and not is_whole(path):
            _discard(path, "is damaged")
            told.append(f"{path.name} is damaged")
    return told


def _discard(path: Path, fault: str) -> None:
    try:
        path.unlink()
    except OSError as error:
        told = f"{path} {fault}, and {path.parent} cannot be written to, to make it again: {error.strerror}"
        cure = "set cache.path to a folder of your own, or have its owner run `ldm data cache`"
        raise UserError(f"{told}; {cure}") from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something that is no cache.

    Raises:
        UserError: it does.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: cache.path should name one")
    foreign = [path.name for path in folder.glob("*") if not _OURS.fullmatch(path.name)]
    if foreign:
        raise UserError(
            f"{folder} holds {sorted(foreign)[0]}, which is of no cache: set cache.path to a folder of its own"
        )


def sweep(folder: Path) -> None:
    """Delete what a killed process left half written; in a folder that is only read it does no harm."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def read_contents(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What ``cache.json`` says, and what is wrong with it, if anything; a missing one says nothing."""
    path = folder / CONTENTS
    if not path.is_file():
        return {}, []
    found = unsealed_json(path.read_bytes())
    return (found, []) if found is not None else ({}, [f"{CONTENTS} is damaged"])


def write_contents(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write ``cache.json``."""
    path = folder / CONTENTS
    blob = sealed_json(contents)
    with disk_trouble(str(path)):
        write_whole(path, lambda temporary: temporary.write_bytes(blob))
