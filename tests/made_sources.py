"""Sources for tests whose pictures are made up: each tells by its colours which one it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.example import BadExample, Example, Words


class Made:
    """Pictures of given sizes; picture i has all its red at i, and left and right halves that differ in green.

    Attributes:
        bad: indices that cannot be read.
        opened: indices that were.
    """

    stream = False
    channels = 3
    num_classes = None

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        name: str = "made",
        captions: Sequence[str] = (),
        bad: Sequence[int] = (),
    ) -> None:
        self.name, self.bad, self.captioned = name, set(bad), bool(captions)
        self.sizes: Tensor | None = torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2)
        self._captions = tuple(captions)
        self.opened: list[int] = []

    def __len__(self) -> int:
        assert self.sizes is not None
        return len(self.sizes)

    def key(self, index: int) -> str:
        return f"{self.name}/{index}.png"

    def stamp(self, index: int) -> str:
        return ""

    def words(self, index: int) -> Words:
        return Words(None, self._captions)

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        self.opened.append(index)
        if index in self.bad:
            raise BadExample(self.key(index), f"{self.key(index)} is cut off")
        assert self.sizes is not None
        height, width = self.sizes[index].tolist()
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        image[0] = index % 256
        image[1, :, : width // 2] = 200
        return Example(image, *self.words(index), self.key(index), (height, width))
