"""Hashes that tell models and what is put into them from others; a model's is that of the file with its U-Net."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ldm.metadata.record import InputFile
from ldm.publishing import write_whole
from ldm.weights.absent import check_file
from ldm.weights.variants import STEMS, find_weights

_BASE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
# A user without a home, as in some containers, keeps the ~, and then hashes are not remembered.
_CACHE = None if _BASE.startswith("~") else Path(_BASE) / "ldm" / "hashes.json"


def fingerprint(place: Path, variant: str | None = None, allow_pickle: bool = False) -> str:
    """SHA-256 of a single file, or of the weights of a folder's U-Net or of the folder itself.

    Of several files it is that of their hashes. Hashing gigabytes takes seconds, so hashes are remembered in the
    user's cache, by path, size and time of change.

    Raises:
        UserError: there is no such file or folder, or no weights in the folder.
    """
    if not place.is_dir():
        check_file(place)
        return _hash(place)
    folder = place / "unet" if (place / "unet").is_dir() else place
    digests = [_hash(path) for path in find_weights(folder, STEMS[0], variant, allow_pickle)]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode("ascii")).hexdigest()


def _hash(path: Path) -> str:
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    known = _read()
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write(known)
    return known[key]


def fingerprints(
    files: Mapping[str, Path], variant: str | None = None, allow_pickle: bool = False
) -> dict[str, InputFile]:
    """Name and hash of every file or folder of weights."""
    hashes = {name: fingerprint(path, variant, allow_pickle) for name, path in files.items()}
    return {name: InputFile(name=str(path), sha256=hashes[name]) for name, path in files.items()}


def _read() -> dict[str, str]:
    if _CACHE is None:
        return {}
    try:
        found = json.loads(_CACHE.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: it is only a cache
        return {}
    return found if isinstance(found, dict) else {}


def _write(known: dict[str, str]) -> None:
    if _CACHE is None:
        return
    try:
        _CACHE.parent.mkdir(parents=True, exist_ok=True)
        write_whole(_CACHE, lambda path: path.write_text(json.dumps(known), encoding="utf-8"))
    except OSError:  # a home that cannot be written: the hash is computed again next time
        return
