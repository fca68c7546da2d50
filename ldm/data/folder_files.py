"""The files of a folder and the folders below it, found once, with the size and time of each."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path

from ldm.errors import UserError

_PNM = (".ppm", ".pgm", ".pbm", ".pnm")
READABLE = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", *_PNM)
# Pictures that cannot be opened here: each is refused by name, and not passed over.
_UNREADABLE = (
    ".avif",
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".j2k",
    ".psd",
    ".tga",
    ".ico",
    ".exr",
    ".hdr",
    ".dng",
    ".svg",
)
_PICTURES = {*READABLE, *_UNREADABLE}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SHOWN = 3


class FolderFiles:
    """What a folder holds, names with "/" between folders, sorted.

    Names that begin with a dot, and the folder ``__MACOSX`` that archives bring along, are passed over.

    Attributes:
        root: the folder.
        names: of all files, relative to it.
        lists: those of metadata files.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            what = "is a file, and should be a folder" if root.exists() else "does not exist"
            raise UserError(f"the folder of pictures {root} {what}")
        self.root = root
        self._states: dict[str, bytes] = {}
        try:
            self._look_into(root, "", {os.path.realpath(root)})
        except OSError as error:
            raise UserError(f"the folder of pictures {root} cannot be read: {error}") from error
        self._states = dict(sorted(self._states.items()))
        self.names = tuple(self._states)
        self.lists = tuple(
            name for name in self.names if name.endswith(METADATA) and os.path.basename(name) in METADATA
        )

    def _look_into(self, folder: Path, prefix: str, above: set[str]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if not entry.is_dir():
                    self._states[prefix + entry.name] = _state(entry, prefix)
                elif (real := os.path.realpath(entry.path)) not in above:  # else a link to a folder around it
                    self._look_into(Path(entry.path), f"{prefix}{entry.name}/", above | {real})

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def state(self, name: str) -> bytes:
        """What changes when a file does."""
        return self._states[name]

    def pictures(self) -> list[str]:
        """The names that end as those of pictures do."""
        return [name for name in self.names if ending(name) in _PICTURES]

    def told(self) -> str:
        """What there is, for messages."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            kinds[ending(name) or "no ending"].append(name)
        if not kinds:
            return "found no file"
        parts = []
        for kind, names in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{len(names):,} with {kind} ({', '.join(map(printable, names[:_SHOWN]))}{more})")
        return f"found {'; '.join(parts)}"


def ending(name: str) -> str:
    """The ending of a file name in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()


def printable(name: str) -> str:
    """A file name as one line of valid text: what is not is written as an escape."""
    return name if name.isprintable() else "".join(map(_printable_letter, name))


def _printable_letter(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter if letter.isprintable() else f"\\x{code:02x}"


def _state(entry: os.DirEntry[str], prefix: str) -> bytes:
    name = os.fsencode(prefix + entry.name)
    try:
        status = entry.stat()
    except OSError:  # a link to nothing: opening it says so
        return name
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{entry.path} is neither a file nor a folder")
    return b"%s\0%d\0%d" % (name, status.st_size, status.st_mtime_ns)
