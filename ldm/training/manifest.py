"""What a checkpoint holds, with a checksum of every file, so that damage is found before anything goes on from it.

``training/manifest.json`` is written last. It lists every other file with its size in bytes and its SHA-256, and ends
in the SHA-256 of that list, so that damage to itself shows as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.weights.files import read_json, write_json

MANIFEST = Path("training") / "manifest.json"


def write_manifest(folder: Path) -> None:
    """List what is in a checkpoint's folder; the last file to be written."""
    (folder / MANIFEST).parent.mkdir(exist_ok=True)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = _checksums(paths)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
        for path, found in zip(paths, sums, strict=True)
    }
    write_json(folder / MANIFEST, {"files": files, "sha256": _sum_of(files)})


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, with the name of the first file that is damaged; None where it is whole."""
    try:
        told = read_json(folder / MANIFEST)
        files = told["files"]
        if told["sha256"] != _sum_of(files):
            return f"{folder / MANIFEST} is damaged: its checksum is another"
        paths = [folder / name for name in files]
        for path, (size, _) in zip(paths, map(dict.values, files.values()), strict=True):
            if not path.is_file():
                return f"{path} is missing"
            if (found := path.stat().st_size) != size:
                return f"{path} is damaged: it has {found} bytes and was written with {size}"
        for path, found, entry in zip(paths, _checksums(paths), files.values(), strict=True):
            if found != entry["sha256"]:
                return f"{path} is damaged: its checksum is another"
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError) as error:
        return f"{folder / MANIFEST} is damaged: {error!r}"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def _sum_of(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _checksums(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of files, several at once, as hashing leaves Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_checksum, paths))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
