"""Files that hold many samples each: finding and opening them, on a disk or behind a URL.

URLs are opened by fsspec, which knows the web, the hub and every object store.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ldm.errors import UserError

T = TypeVar("T")

_WAITS = (1, 2, 4, 8)  # seconds before a read over a network is tried again
_BUFFER = 2**17  # bytes; a small sample with the header of the next one
_IN_A_URL = "://"


def find_shards(path: str | Sequence[str], ending: str) -> list[str]:
    """The files that a setting means.

    Args:
        path: a file, a folder, or a pattern with ``*`` or ``{00..99}``, on a disk or behind a URL; or several of these.
        ending: of the names of the files in a folder, such as ``".tar"``.

    Raises:
        UserError: there are none, or what is behind a URL cannot be listed.
    """
    entries = [path] if isinstance(path, str) else path
    for entry in entries:
        if not expand_braces(entry):
            raise UserError(f"{entry} names no file: the numbers in {{first..last}} should rise")
    found = [shard for entry in entries for one in expand_braces(entry) for shard in _matching(one, ending)]
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> list[str]:
    """``a{0..2}`` to ``a0``, ``a1`` and ``a2``, with as many digits as given; ``{x,y}`` to both."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    middle = words.split(",") if words else [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [before + one + rest for one in middle for rest in expand_braces(after)]


def _matching(place: str, ending: str) -> list[str]:
    if is_remote(place):
        with reaching(place):
            return _matching_remote(place, ending)
    place = os.path.expanduser(place)
    if os.path.isfile(place):
        return [place]
    folder = os.path.isdir(place)
    found = sorted(glob.glob(os.path.join(glob.escape(place), f"*{ending}") if folder else place, recursive=True))
    if not found:
        raise UserError(f"{place} holds no {ending} files" if folder else f"there is no file {place}")
    return found


def _matching_remote(url: str, ending: str) -> list[str]:
    pattern = "*" in url  # a question mark begins a query
    if not pattern and url.partition("?")[0].endswith(ending):
        return [url]
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    found = sorted(str(one) for one in system.glob(path if pattern else f"{path.rstrip('/')}/*{ending}"))
    if not found:
        raise UserError(f"{url}: found no {ending} files; where they cannot be listed, name them, as with {{000..123}}")
    return [system.unstrip_protocol(one) for one in found]


def is_remote(place: str) -> bool:
    return _IN_A_URL in place


def short_names(places: Sequence[str]) -> list[str]:
    """What is left of each path behind the folder that all have in common."""
    folders = [re.split(r"[/\\]", place) for place in places]
    common = 0
    while all(common < len(parts) - 1 and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return ["/".join(parts[common:]) for parts in folders]


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what goes wrong behind a URL into a message that names it. Wrap calls of fsspec only.

    Raises:
        UserError: in place of any exception: each protocol has its own kinds.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no {url}") from error
    except ImportError as error:
        raise UserError(f"{url} cannot be opened: {error}; pip install 'ldm[stream]' opens the web and hubs") from error
    except Exception as error:
        raise UserError(f"{url} cannot be read: {str(error) or type(error).__name__}") from error


def open_shard(place: str, *, ahead: bool = True) -> BinaryIO:
    """Open a shard to read from anywhere in it.

    Args:
        place: its path or URL.
        ahead: more is read than asked for, as suits who goes on from there.

    Raises:
        UserError: it cannot be opened.
    """
    if is_remote(place):
        patient: Any = _Patient(place, ahead)
        return io.BufferedReader(patient, _BUFFER) if ahead else patient
    try:
        return open(place, "rb", buffering=_BUFFER if ahead else 0)
    except OSError as error:
        raise UserError(f"{place} cannot be opened: {error}") from error


def read_if_there(place: str) -> bytes | None:
    """A small file, if there is one.

    Raises:
        UserError: whether there is one cannot be told, or it cannot be read.
    """
    if not is_remote(place):
        try:
            return Path(place).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{place} cannot be opened: {error}") from error
    import fsspec

    with reaching(place):
        system, path = fsspec.core.url_to_fs(place)
        try:
            return system.cat_file(path)
        except (FileNotFoundError, PermissionError):  # stores that may not be listed forbid what is not there
            return None
        except Exception as error:
            if getattr(error, "status", None) in (403, 410):
                return None
            raise


class _Patient(io.RawIOBase):
    """A file behind a URL; when the connection is lost, it is opened anew.

    Raises:
        UserError: there is no such file, or the connection is lost for good.
    """

    def __init__(self, url: str, ahead: bool) -> None:
        self._url, self._at = url, 0
        self._how = {} if ahead else {"cache_type": "none"}
        self._file: Any = None
        self._size: int | None = self._try(lambda file: file.size)

    def _try(self, function: Callable[[Any], T]) -> T:
        with reaching(self._url):
            for wait in _WAITS:
                try:
                    return function(self._opened())
                except (FileNotFoundError, PermissionError, ImportError, ValueError):
                    raise  # these stay what they are
                except Exception:
                    self._file = None
                    time.sleep(wait)
            return function(self._opened())

    def _opened(self) -> Any:
        if self._file is None:
            import fsspec

            # A file system belongs to its process, so it is looked up anew: after a fork it is another one.
            system, path = fsspec.core.url_to_fs(self._url)
            self._file = system.open(path, "rb", **self._how)
        return self._file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END and self._size is None:
            raise io.UnsupportedOperation(f"{self._url} does not tell its length")
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size or 0}[whence] + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = self._try(lambda file: (file.seek(self._at), file.read(len(buffer)))[1])
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Around what reads a shard on a disk, which may fail.

    Raises:
        UserError: in place of what the system says.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error}") from error


def length_of(file: BinaryIO, place: str) -> int | None:
    """Bytes of an open shard, which is at its beginning afterwards; None where its server does not tell."""
    with reading(place):
        try:
            end = file.seek(0, io.SEEK_END)
        except io.UnsupportedOperation:
            return None
        file.seek(0)
        return end
