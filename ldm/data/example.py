"""What a source of training data gives, and what a source is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Example:
    """One picture and what is known of it.

    Attributes:
        image: uint8 (C, H, W).
        label: the class, or None where the source has no classes.
        captions: all captions that are true of the picture; training draws one per sample.
    """

    image: torch.Tensor
    label: int | None
    captions: tuple[str, ...]


class Source(Protocol):
    """A sequence of examples, all of one size.

    Attributes:
        name: what to call it in logs and reports.
        channels: channels of every picture.
        size: (height, width) of every picture, in pixels.
        num_classes: labels are 0 .. num_classes - 1; None without labels.
    """

    name: str
    channels: int
    size: tuple[int, int]
    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...
