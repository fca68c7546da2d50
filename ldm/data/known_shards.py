"""What is found out about shards once, by many threads, and kept in the user's cache.

It is kept with what tells a shard's present state, so that a shard that changed is another one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ldm.data.shards import is_remote, reaching
from ldm.data.user_cache import cache_file, keep, one_at_a_time, recall
from ldm.errors import UserError

T = TypeVar("T")

_THREADS = 16  # most of the time is waiting for a network


def state_of(place: str) -> str:
    """What changes when a shard does: its length, and the time of its last change or what its server has for that.

    Raises:
        UserError: it cannot be reached.
    """
    if not is_remote(place):
        try:
            status = os.stat(place)
        except OSError as error:
            raise UserError(f"{place} cannot be opened: {error}") from error
        return f"{status.st_size} {status.st_mtime_ns}"
    import fsspec

    with reaching(place):
        system, path = fsspec.core.url_to_fs(place)
        info = system.info(path)
    marks = {name.lower(): str(value) for name, value in info.items()}
    told = ("size", "etag", "lastmodified", "last_modified", "mtime", "md5hash", "oid", "blob_id")
    return " ".join(marks[name] for name in told if name in marks)


def together(function: Callable[[str], T], items: Sequence[str], told: str) -> list[T]:
    """Call a function on many items at once, with a bar when it takes more than a second."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(function, items)
        return list(tqdm(found, told, len(items), unit=" shards", disable=None, leave=False, delay=1))


def remembered(places: Sequence[str], find: Callable[[str], Any], told: str) -> list[Any]:
    """What ``find`` gives for each shard, as JSON has it; from the user's cache where it was asked before.

    Raises:
        UserError: a shard cannot be reached, or whatever ``find`` raises.
    """
    places = [real(place) for place in places]
    cache = cache_of(places)
    states = dict(zip(places, together(state_of, places, "looking at shards"), strict=True))
    known = _current(cache, states)
    if len(known) < len(states):
        with one_at_a_time(cache):
            known = _current(cache, states)  # another process may just have found them
            fresh = [place for place in states if place not in known]
            known |= zip(fresh, together(find, fresh, told), strict=True)
            news = {place: [states[place], known[place]] for place in fresh}
            keep(cache, json.dumps(_load(cache) | news).encode())  # those of other shards in this folder stay
    return [known[place] for place in places]


def real(place: str) -> str:
    """A path or URL by which the same shard is known from everywhere."""
    return place if is_remote(place) else os.path.realpath(place)


def cache_of(places: Sequence[str]) -> Path | None:
    """Where what is found in shards of this folder is kept."""
    found = cache_file("shards", os.path.dirname(places[0]))
    return found and found.with_suffix(".json")


def _load(cache: Path | None) -> dict[str, list[Any]]:
    return json.loads(recall(cache) or b"{}")


def _current(cache: Path | None, states: dict[str, str]) -> dict[str, Any]:
    """What is kept of those shards that are as they were."""
    known = _load(cache)
    return {place: known[place][1] for place, state in states.items() if known.get(place, [None])[0] == state}
