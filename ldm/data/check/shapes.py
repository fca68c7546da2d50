"""How large pictures are, of what proportions, and which buckets they come to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
import torch

from ldm.data.check.facts import Facts
from ldm.data.check.kinds import Problem
from ldm.data.check.names import Names
from ldm.data.framing import Buckets, FrameConfig

_LEAST_KEPT = 0.5  # of a picture


class Shapes:
    """The sizes of pictures, 16 bytes for each.

    Args:
        frame: how pictures come to the shapes of training; None where that is not known.
        batch: pictures of a batch; None where that is not known.
    """

    def __init__(self, frame: FrameConfig | None, batch: int | None) -> None:
        self.frame, self.batch = frame, batch
        self._sides, self._numbers = array("i"), array("q")
        self._least = min(frame.sides) if frame else 0

    def see(self, number: int, facts: Facts) -> Iterator[Problem]:
        """The problem of a picture that has to be enlarged."""
        if facts.faults:
            return
        self._sides.extend(facts.size)
        self._numbers.append(number)
        height, width = facts.size
        if height * width < self._least**2:
            told = f"{facts.key} has {width} x {height} pixels, fewer than {self._least} x {self._least}"
            yield Problem("small", number, facts.part, facts.key, told)

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, the height and width of every picture that can be used."""
        return np.array(self._sides, np.int32).reshape(-1, 2)

    def buckets(self) -> dict[tuple[int, int], int]:
        """How many pictures come to each (height, width), in the order of ``Buckets``; empty without a frame."""
        if self.frame is None:
            return {}
        buckets = Buckets(self.frame)
        found = buckets.assign(torch.from_numpy(self.sizes))
        counts = torch.bincount(found, minlength=len(buckets.shapes)).tolist()
        return dict(zip(buckets.shapes, counts, strict=True))

    def end(self, names: Names) -> Iterator[Problem]:
        """The problems of pictures that fit no bucket, and of buckets, once all pictures were seen."""
        if self.frame is not None:
            yield from self._cropped(Buckets(self.frame), names)
            yield from self._sparse()

    def _cropped(self, buckets: Buckets, names: Names) -> Iterator[Problem]:
        sizes = self.sizes
        shapes = np.array(buckets.shapes)[buckets.assign(torch.from_numpy(sizes)).numpy()]
        change = (sizes[:, 0] / sizes[:, 1]) / (shapes[:, 0] / shapes[:, 1])
        kept = np.minimum(change, 1 / change)
        for place in np.flatnonzero(kept < _LEAST_KEPT).tolist():
            number = self._numbers[place]
            part, key = names[number]
            (height, width), (tall, wide) = sizes[place].tolist(), shapes[place].tolist()
            share = f"{kept[place]:.0%} of {key}, {width} x {height}, is in the nearest bucket, {wide} x {tall}"
            yield Problem("cropped", number, part, key, share)

    def _sparse(self) -> Iterator[Problem]:
        for (height, width), count in self.buckets().items():
            if self.batch is not None and 0 < count < self.batch:
                name = f"{width} x {height}"
                told = f"the bucket {name} has {count} pictures, fewer than the {self.batch} of a batch"
                yield Problem("sparse", None, 0, name, told)
