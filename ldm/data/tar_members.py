"""The samples of a tar: consecutive members whose names are alike up to the first dot.

Python's own ``tarfile`` reads the headers, but for those of plain files, which are read here in less time.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # a sample's name, and what tells its members apart
_LARGEST = 2**50  # bytes of a file


def samples_of(file: BinaryIO) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Name and members of each sample of a tar.

    Raises:
        tarfile.ReadError: where the tar is damaged, after the samples before that.
    """
    found = _members(file)
    name, members = "", []
    while isinstance(member := _next_member(found), tarfile.TarInfo):
        parts = _NAME.fullmatch(member.name)
        if parts is None or not member.isreg():
            continue
        if members and parts[1] != name:
            yield name, members
            members = []
        name = parts[1]
        members.append(member)
    if members:
        yield name, members
    if member is not None:
        raise member


def _next_member(found: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | tarfile.ReadError | None:
    """The next member; None at the end; what is wrong where the tar is damaged."""
    try:
        return next(found, None)
    except tarfile.ReadError as error:
        return error


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    # A name that is no UTF-8 has to go into lists and logs that are.
    tar: Any = tarfile.TarFile(fileobj=file, mode="r", tarinfo=Member, errors="backslashreplace")
    while (member := tar.next()) is not None:
        tar.members.clear()  # it would keep all of them
        if not 0 <= member.size < _LARGEST:  # with which tarfile would go backwards, or beyond what a place can be
            raise tarfile.ReadError(f"byte {member.offset:,} begins a file of {member.size:,} bytes, which none has")
        yield member
    # Where tarfile does not know a header, it takes the tar to end.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        what = "damaged" if any(block) else "missing"
        raise tarfile.ReadError(f"byte {tar.offset:,} should begin a file or the mark of the end, which is {what}")


class Member(tarfile.TarInfo):
    """A member without the owner, mode and times that nobody asks for and that take most of the time of a header."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        """A plain file with a short name, read here; all else, damage too, is left to ``tarfile``."""
        plain = len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE and not buf[345]
        try:
            size, checksum = int(buf[124:136].strip(b" \0"), 8), int(buf[148:156].strip(b" \0"), 8)
        except ValueError:
            plain, size, checksum = False, 0, 0
        if not plain or checksum != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        member = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        member.size = size
        return member


def ending_of(member: tarfile.TarInfo) -> str:
    """What tells a member apart from the others of its sample, in small letters."""
    return member.name.rpartition("/")[2].partition(".")[2].lower()
