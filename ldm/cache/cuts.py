"""Pictures cut as training would cut them, in the order in which a cache encodes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.cache.shards import rows_per_shard
from ldm.data.example import BadExample, Source
from ldm.data.framing import Buckets, FrameConfig, cut, least_to_decode
from ldm.data.order import mix
from ldm.data.plan import common_size
from ldm.data.samples import Skipped

_CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut and how many parts of each are kept.

    Attributes:
        frame: the shapes they come to; None where all have one size and keep it.
        crops: parts of each.
        flip: each part mirrored too, after the one that is not.
        seed: of the run; places of random crops depend on it.
    """

    frame: FrameConfig | None
    crops: int
    flip: bool
    seed: int

    @property
    def random(self) -> bool:
        return self.frame is not None and self.frame.crop == "random"

    @property
    def variants(self) -> int:
        return self.crops * (1 + self.flip)

    def places(self, key: int) -> list[tuple[float, float]]:
        """Where each part lies in the picture whose key has this hash, down and across, from 0 to 1."""
        if not self.random:
            return [_CENTRE]
        generators = [torch.Generator().manual_seed(mix(self.seed, 9, key, crop)) for crop in range(self.crops)]
        return [tuple(torch.rand(2, generator=generator).tolist()) for generator in generators]

    def shapes(self, source: Source) -> tuple[list[tuple[int, int]], Tensor]:
        """The shapes that pictures come to, and for each picture the number of its own (N,)."""
        assert source.sizes is not None
        if self.frame is None:
            return [common_size(source)], torch.zeros(len(source), dtype=torch.int64)
        buckets = Buckets(self.frame)
        return list(buckets.shapes), buckets.assign(source.sizes)


class Piece(NamedTuple):
    """The pictures of one shard: of one shape, by their numbers in the source."""

    shape: tuple[int, int]
    indices: list[int]


def pieces(cutting: Cutting, source: Source, missing: np.ndarray, row_bytes: Callable[[int], int]) -> list[Piece]:
    """What is to be encoded, shard by shard; the same for whoever asks.

    Args:
        cutting: how pictures are cut.
        source: the pictures.
        missing: numbers of those that have no row, rising.
        row_bytes: bytes of a picture's row, by the pixels of its shape.
    """
    shapes, of = cutting.shapes(source)
    chosen = of[torch.from_numpy(missing)].numpy()
    found = []
    for number, shape in enumerate(shapes):
        own = missing[chosen == number].tolist()
        size = rows_per_shard(row_bytes(shape[0] * shape[1]), len(source))
        found += [Piece(shape, own[first : first + size]) for first in range(0, len(own), size)]
    return found


class Cut(NamedTuple):
    """A picture ready to be encoded: uint8 (V, C, h, w), and the frames (V, 7) int32; or why it is left out."""

    index: int
    images: Tensor | None
    frames: Tensor | None
    left_out: Skipped | None


class Cuts(Dataset[Cut]):
    """Cut pictures, asked for by (shape, number)."""

    def __init__(self, source: Source, ids: np.ndarray, cutting: Cutting) -> None:
        self.source, self.ids, self.cutting = source, ids, cutting

    def __getitem__(self, asked: tuple[tuple[int, int], int]) -> Cut:
        shape, index = asked
        try:
            images, frames = self._cut(shape, index)
        except BadExample as error:
            return Cut(index, None, None, Skipped(error.key, str(error)))
        return Cut(index, images, frames, None)

    def _cut(self, shape: tuple[int, int], index: int) -> tuple[Tensor, Tensor]:
        assert self.source.sizes is not None
        cutting = self.cutting
        height, width = self.source.sizes[index].tolist()
        least = None if cutting.frame is None else least_to_decode((height, width), shape)
        example = self.source.read(index, least)
        images, frames = [], []
        for place in cutting.places(int(self.ids[index, 0])):
            for mirrored in (False, True)[: 1 + cutting.flip]:
                image, frame = cut(example.image, example.original, shape, *place, mirrored)
                images.append(image)
                frames.append([*frame.sizes(), int(frame.mirrored)])
        return torch.stack(images), torch.tensor(frames, dtype=torch.int32)


class CutBatch(NamedTuple):
    """Pictures to encode and what is known of them.

    Attributes:
        indices: of the pictures that can be used.
        images: uint8 (B V, C, h, w), then moments (B, V, 2c, h, w); None where there is no picture.
        frames: (B, V, 7).
        unusable: indices of the others.
        left_out: why each of them is.
    """

    indices: list[int]
    images: Tensor | None
    frames: Tensor | None
    unusable: list[int]
    left_out: list[Skipped]


def collate_cuts(cuts: list[Cut]) -> CutBatch:
    """Pictures of one shape as a batch."""
    images = [cut.images for cut in cuts if cut.images is not None]
    frames = [cut.frames for cut in cuts if cut.frames is not None]
    return CutBatch(
        [cut.index for cut in cuts if cut.left_out is None],
        torch.cat(images) if images else None,
        torch.stack(frames) if frames else None,
        [cut.index for cut in cuts if cut.left_out is not None],
        [cut.left_out for cut in cuts if cut.left_out is not None],
    )
