"""What kept rows depend on, in words and in hashes: which picture or text a row is of, and how rows were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ldm.cache.shards import identity
from ldm.data.example import Source
from ldm.data.plan import parts_of


class Trait(NamedTuple):
    """One thing that rows depend on.

    Attributes:
        words: for people.
        value: what is compared.
    """

    words: str
    value: str


Recipe = Mapping[str, Trait]  # name of each thing -> how it was


def plain(name: str, value: object) -> dict[str, Trait]:
    """A trait that is its own description."""
    words = value if isinstance(value, str) else json.dumps(value)
    return {name: Trait(words, words)}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What has changed between two recipes, a phrase for each."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if before is None or now is None:
            found.append(f"{name} was {before.words if before else 'not told'}")
        elif before.value != now.value:
            same = before.words == now.words
            found.append(f"{name} has changed since" if same else f"{name} was {before.words} and is {now.words}")
    return found


def read_recipe(told: object) -> Recipe:
    """A recipe as a shard tells it."""
    assert isinstance(told, dict)
    return {name: Trait(*trait) for name, trait in told.items()}


def picture_ids(source: Source) -> np.ndarray:
    """Identities of a source's pictures (N, 2) int64: the first number is of the key alone, the second of all else too.

    A picture is told by its key, its size and its stamp, which changes with its file.
    """
    assert source.sizes is not None
    found = np.empty((len(source), 2), np.int64)
    row = 0
    for part in parts_of(source)[0]:
        assert part.sizes is not None
        for index, (height, width) in enumerate(part.sizes.tolist()):
            key = part.key(index)
            found[row] = identity(key)[0], identity(key, part.stamp(index), f"{height} {width}")[1]
            row += 1
    return found


def text_id(text: str | None) -> tuple[int, int]:
    """The identity of a text; None is the dropped condition."""
    return identity("none") if text is None else identity("text", text)


def changes_of_pictures(kept: np.ndarray, wanted: np.ndarray) -> list[str]:
    """What has happened to the pictures of a source since their identities were ``kept``, a phrase for each kind."""
    kept, wanted = np.unique(kept, axis=0), np.unique(wanted, axis=0)
    stayed, gone = np.isin(wanted[:, 1], kept[:, 1]), ~np.isin(kept[:, 1], wanted[:, 1])
    changed = int(np.isin(wanted[~stayed, 0], kept[gone, 0]).sum())
    counts = {
        "added": int((~stayed).sum()) - changed,
        "changed": changed,
        "removed": int(gone.sum()) - changed,
    }
    return [f"{n} picture{'s were' if n > 1 else ' was'} {what}" for what, n in counts.items() if n > 0]
