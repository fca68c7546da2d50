"""Some pictures held out of training, to measure the loss on."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.data.example import Example, Source, Words
from ldm.data.mixture import Mixture
from ldm.data.order import mix
from ldm.data.streaming import no_stream
from ldm.errors import UserError


class Chosen:
    """Some of a source's examples, by their indices (n,) int64."""

    stream = False

    def __init__(self, source: Source, indices: Tensor) -> None:
        assert source.sizes is not None
        self.source, self.indices = source, indices
        self.name, self.channels = source.name, source.channels
        self.num_classes, self.captioned = source.num_classes, source.captioned
        self.sizes: Tensor | None = source.sizes[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def stamp(self, index: int) -> str:
        return self.source.stamp(int(self.indices[index]))

    def words(self, index: int) -> Words:
        return self.source.words(int(self.indices[index]))

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        return self.source.read(int(self.indices[index]), least)


def thin_out(source: Source, count: int) -> Source:
    """``count`` of a source's examples, evenly spread, or all where there are fewer; of a mixture, of every part.

    Raises:
        UserError: the source is a stream.
    """
    if isinstance(source, Mixture):
        parts = [thin_out(part, max(1, n)) for part, n in zip(source.parts, _shares(source, count), strict=True)]
        return Mixture(parts, source.weights)
    if source.stream:
        raise no_stream("limit takes a part of the pictures", source, "leave out limit")
    if count >= len(source):
        return source
    return Chosen(source, torch.arange(count) * len(source) // count)


def _shares(source: Mixture, count: int) -> list[int]:
    """So many examples of each part that they are ``count`` together, in proportion to the parts."""
    shares = [count * len(part) // len(source) for part in source.parts]
    for i in range(count - sum(shares)):
        shares[i % len(shares)] += 1
    return shares


def hold_out(source: Source, count: int, seed: int, key: str = "validation.count") -> tuple[Source, Source]:
    """Split a source by chance, the same way for the same seed: (what is trained on, ``count`` that are not).

    An example that a source holds several times, as kohya's repeats, is on one side only. Of a mixture, every part
    gives in proportion to its size. ``key`` is the setting that said how many.

    Raises:
        UserError: there are not so many, or the source is a stream.
    """
    if isinstance(source, Mixture):
        shares = _shares(source, count)
        halves = [hold_out(part, n, seed, key) for part, n in zip(source.parts, shares, strict=True)]
        kept = Mixture([a for a, _ in halves], source.weights)
        held = [b for _, b in halves if len(b)]
        return kept, held[0] if len(held) == 1 else Mixture(held, [len(part) for part in held])
    if source.stream:
        raise no_stream(f"{key} holds pictures out of training", source, "set it to 0")
    first: dict[str, int] = {}
    same = torch.tensor([first.setdefault(source.key(i), i) for i in range(len(source))])
    distinct = torch.tensor(list(first.values()))
    if not 0 <= count < len(distinct):
        told = f"{source.name} has {len(distinct)} pictures, of which {count} cannot be held out"
        raise UserError(f"{told}: set {key} to less")
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(mix(seed, 8)))
    held = distinct[order[:count]].sort().values
    return Chosen(source, torch.nonzero(~torch.isin(same, held)).flatten()), Chosen(source, held)
