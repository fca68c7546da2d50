"""What a source of training data gives, and what a source is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from ldm.errors import UserError
from ldm.open_picture import PictureFault


@dataclass(frozen=True)
class Example:
    """One picture and what is known of it.

    Attributes:
        image: uint8 (C, H, W), upright; maybe decoded at a smaller size than it is stored at.
        label: the class, or None where the source has no classes.
        captions: all captions that are true of the picture; training draws one per sample.
        key: names the example in messages, lists and caches: stable, and unique in its source.
        original: (height, width) as it is stored, upright, in pixels.
    """

    image: Tensor
    label: int | None
    captions: tuple[str, ...]
    key: str
    original: tuple[int, int]


class Words(NamedTuple):
    """What is known of a picture without opening it: as in ``Example``."""

    label: int | None
    captions: tuple[str, ...]


class BadExample(UserError):
    """A picture or caption that cannot be used; the message names its file.

    Attributes:
        key: of the example.
        fault: of its picture; None where that is not what is wrong.
    """

    def __init__(self, key: str, message: str, fault: PictureFault | None = None) -> None:
        super().__init__(message)
        self.key, self.fault = key, fault


class Source(Protocol):
    """Examples by number, or, for a stream, in an order of its own.

    Attributes:
        name: what to call it in logs and reports.
        channels: channels of every picture, 1 or 3.
        num_classes: labels are 0 .. num_classes - 1; None without labels.
        captioned: whether the examples have captions.
        sizes: (N, 2) int32, the height and width of every picture, upright; None for a stream.
        stream: it is a ``StreamSource``.
    """

    name: str
    channels: int
    num_classes: int | None
    captioned: bool
    sizes: Tensor | None
    stream: bool

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The ``key`` of an example, without opening its picture."""
        ...

    def words(self, index: int) -> Words:
        """Label and captions of an example, without opening its picture.

        Raises:
            BadExample: they cannot be used.
        """
        ...

    def stamp(self, index: int) -> str:
        """What changes when the picture of an example does, found without opening it."""
        ...

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        """Open an example.

        Args:
            index: 0 .. len - 1.
            least: (height, width); the picture may be decoded at a smaller size, where that is faster, but not below
                this one.

        Raises:
            BadExample: it cannot be used.
        """
        ...


class StreamSource(Source, Protocol):
    """Samples in an order of their own; ``len`` is their number in an epoch, and ``read`` alone opens them."""

    def arrange(self, per_step: int, seed: int) -> None:
        """Say how many samples a step has, over all processes, and the run's seed: what the order depends on."""
        ...

    def read(self, index: int, least: tuple[int, int] | None = None, turn: int = 0) -> Example:
        """Open sample number ``index`` of an endless series; the numbers should rise from call to call.

        Args:
            index: 0, 1, 2, ...
            least: as in ``Source``.
            turn: above 0: what stands in its place after so many that cannot be used.

        Raises:
            BadExample: it cannot be used; the next ``turn`` may be.
        """
        ...
