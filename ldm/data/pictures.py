"""What all sources of picture files share: settings, decoding, sizes, and lists of pictures to leave out."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm.data.decode import Stored, decode, stored_size
from ldm.data.example import BadExample, Example, Words
from ldm.data.size_index import read_sizes
from ldm.errors import UserError
from ldm.schema import Settings

Level = Annotated[int, Field(ge=0, le=255)]
Columns = str | tuple[str, ...] | None


class PictureConfig(Settings):
    """How pictures are read, wherever they are.

    Attributes:
        colours: pictures have three channels, or one.
        background: what transparent parts show: red, green and blue, 0 to 255.
        skip: a file with the keys of examples to leave out, one per line, as ``ldm data check --quarantine`` writes it.
        skip_bad: so many examples that cannot be used are replaced by others; one more, and training stops.
    """

    colours: Literal["rgb", "grey"] = "rgb"
    background: tuple[Level, Level, Level] = (255, 255, 255)
    skip: Path | None = None
    skip_bad: int = Field(default=0, ge=0)


class Pictures(abc.ABC):
    """A source of pictures at random access, whose examples are found but not yet opened.

    A subclass finds its *rows*, one for each picture, and then calls ``_arrange``. An example that comes several times
    has several indices, one row, and one key.

    Args:
        config: the settings.
        name: as in ``Source``.
        home: tells the place of the pictures from all others.

    Attributes:
        sizes: (N, 2) int32, upright heights and widths. Where a header cannot be read, the commonest size stands in,
            so that the example is planned as others are; ``read`` then says what is wrong with it.
        sized: (N,) bool, whether the size is the picture's own.
        orphans: what was found and belongs to no example: captions without a picture, pictures that no list names.
    """

    stream = False
    captioned: bool
    num_classes: int | None
    sizes: Tensor | None
    sized: Tensor
    orphans: tuple[str, ...] = ()

    def __init__(self, config: PictureConfig, name: str, home: str) -> None:
        self.name, self._home = name, home
        self.channels = 3 if config.colours == "rgb" else 1
        self._background, self._skip = config.background, config.skip

    def _arrange(self, keys: Sequence[str], states: Sequence[bytes], times: Sequence[int] | None = None) -> None:
        """Leave out what is to be skipped, put copies far from each other, and find the sizes.

        Args:
            keys, states: of all rows.
            times: how often each comes; once, when not given.
        """
        kept = _without_skipped(self._skip, keys, self.name)
        often = torch.ones(len(keys), dtype=torch.int64) if times is None else torch.tensor(times)
        rounds = range(int(often[kept].max()) if len(kept) else 0)
        self._order = torch.cat([kept[:0], *(kept[often[kept] > done] for done in rounds)])
        found = kept.tolist()
        sizes, sized = read_sizes(self._home, [states[row] for row in found], lambda i: self._size(found[i]))
        position = torch.searchsorted(kept, self._order)
        self.sizes, self.sized = sizes[position], sized[position]

    def __len__(self) -> int:
        return len(self._order)

    def key(self, index: int) -> str:
        """The name of an example."""
        return self._key(int(self._order[index]))

    def words(self, index: int) -> Words:
        """Label and captions of an example, without opening its picture.

        Raises:
            BadExample: they are missing, empty or damaged.
        """
        return self._words(int(self._order[index]))

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        """Open an example; see ``Source.read``."""
        words = self.words(index)
        image, original = self.picture(index, least)
        return Example(image, words.label, words.captions, self.key(index), original)

    def picture(self, index: int, least: tuple[int, int] | None = None) -> tuple[Tensor, tuple[int, int]]:
        """The picture of an example, whatever its words are: what ``decode`` gives.

        Raises:
            BadExample: it cannot be opened.
        """
        row = int(self._order[index])
        return decode(
            self._stored(row),
            self._key(row),
            name=self._called(row),
            channels=self.channels,
            background=self._background,
            least=least,
        )

    def stamp(self, index: int) -> str:
        """What changes when the picture of an example does, or the way in which it is read."""
        told = f"{self.channels} {self._background} ".encode() + self._state(int(self._order[index]))
        return hashlib.blake2b(told, digest_size=16).hexdigest()

    @abc.abstractmethod
    def _key(self, row: int) -> str: ...

    @abc.abstractmethod
    def _words(self, row: int) -> Words: ...

    @abc.abstractmethod
    def _stored(self, row: int) -> Stored:
        """The picture; or ``BadExample`` when there is none."""

    @abc.abstractmethod
    def _state(self, row: int) -> bytes:
        """What changes when the picture does."""

    def _called(self, row: int) -> str:
        """What messages call the picture, where it is no file of its own."""
        return f"{self.name}: {self._key(row)}"

    def _size(self, row: int) -> tuple[int, int]:
        return stored_size(self._stored(row), self._key(row), self._called(row))


def _without_skipped(path: Path | None, keys: Sequence[str], name: str) -> Tensor:
    """The rows that the list at ``path`` does not name, rising.

    Raises:
        UserError: the list cannot be read, or is of other data.
    """
    skipped = read_skipped(path)
    if skipped and skipped.isdisjoint(keys):
        raise UserError(f"skip: no line of {path} is the key of an example of {name}; one is {min(skipped)!r}")
    return torch.tensor([row for row, key in enumerate(keys) if key not in skipped], dtype=torch.int64)


def read_skipped(path: Path | None) -> frozenset[str]:
    """The keys in a list of examples to leave out; none where there is no list.

    Raises:
        UserError: the list cannot be read.
    """
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"skip: the list {path} cannot be read: {error}") from error
    return frozenset(line.rstrip("\r") for line in lines) - {""}


def as_tuple(columns: Columns) -> tuple[str, ...]:
    """A setting that names none, one or several, as a tuple."""
    return () if columns is None else (columns,) if isinstance(columns, str) else columns


def clean_all(values: Sequence[object], key: str, where: str) -> tuple[str, ...]:
    """The captions in the columns of a row, each a text or a list of texts, or null; each once.

    Raises:
        BadExample: there are columns and in none a caption, or one is as ``clean`` refuses it.
    """
    flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
    found = [each for each in flat if each is not None] or [None] * bool(values)
    return tuple(dict.fromkeys(clean(each, key, where) for each in found))


def clean(caption: object, key: str, where: str) -> str:
    """A caption without the white space around it.

    Raises:
        BadExample: it is no text, empty, or was not UTF-8; the message begins with ``where``.
    """
    if not isinstance(caption, str):
        raise BadExample(key, f"{where} is {'missing' if caption is None else f'no text: {shown(caption)}'}")
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise BadExample(key, f"{where} is not valid UTF-8") from error
    if "\0" in caption:
        raise BadExample(key, f"{where} holds zero bytes, and is no text")
    if not (stripped := caption.strip()):
        raise BadExample(key, f"{where} is empty")
    return stripped


def shown(value: object) -> str:
    """A value of any type in a few words."""
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
