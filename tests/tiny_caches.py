"""Caches of a few pictures: a source in memory, and what a run would want kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import text_conditioner, vae
from torch import Tensor

from ldm.cache.build import Maker, Wanted
from ldm.cache.cuts import Cutting
from ldm.cache.fingerprint import plain
from ldm.cache.makers import text_traits, vae_traits
from ldm.cache.settings import CacheConfig
from ldm.codec import VAECodec
from ldm.data.caption_forms import CaptionConfig
from ldm.data.example import BadExample, Example, Words
from ldm.data.framing import FrameConfig

SIZES = [(40, 40), (32, 64), (64, 32), (48, 40)]


class Pile:
    """Pictures of random noise in memory, of ``SIZES`` in turn; those in ``bad`` cannot be used."""

    channels, num_classes, captioned, stream = 1, 3, True, False

    def __init__(
        self,
        count: int,
        *,
        name: str = "a pile",
        bad: Sequence[int] = (),
        stamps: Sequence[str] | None = None,
        sizes: Sequence[tuple[int, int]] = SIZES,
    ) -> None:
        self.name, self.bad = name, bad
        self.stamps = stamps or ["first"] * count
        self.sizes: Tensor | None = torch.tensor([sizes[i % len(sizes)] for i in range(count)], dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.stamps)

    def key(self, index: int) -> str:
        return f"{index:03d}.png"

    def stamp(self, index: int) -> str:
        return self.stamps[index]

    def words(self, index: int) -> Words:
        return Words(index % 3, (f"a {['red', 'blue', 'green'][index % 3]} one", f"thing {index}, small, round"))

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        if index in self.bad:
            raise BadExample(self.key(index), f"{self.key(index)} is truncated")
        assert self.sizes is not None
        height, width = self.sizes[index].tolist()
        seed = sum(f"{index} {self.stamps[index]}".encode())
        pixels = torch.randint(256, (1, height, width), generator=torch.Generator().manual_seed(seed))
        return Example(pixels.to(torch.uint8), *self.words(index), self.key(index), (height, width))


FRAME = FrameConfig(resolution=32, step=8)


def wanted(folder: Path, source: Any, **changes: Any) -> Wanted:
    """What a run wants kept; ``changes`` are fields of ``Wanted``, ``Cutting`` and ``CacheConfig``, and ``vae``."""
    config = CacheConfig(dtype=changes.pop("dtype", "fp32"), crops=changes.get("crops", 1))
    frame, flip = changes.pop("frame", FRAME), changes.pop("flip", False)
    cutting = Cutting(frame, changes.pop("crops", 1), flip, changes.pop("seed", 0))
    codec = VAECodec(changes.pop("vae", None) or vae())
    conditioner = text_conditioner()
    common = {**plain("flip", flip), **plain("frame", str(frame)), **plain("cache.dtype", config.dtype)}
    given: dict[str, Any] = {
        "folder": folder,
        "config": config,
        "source": source,
        "cutting": cutting,
        "captions": CaptionConfig(),
        "vae": Maker({**vae_traits(codec, "vae"), **common}, lambda: codec),
        "text": Maker({**text_traits(conditioner, "clip"), **common}, lambda: conditioner),
        "precision": "no",
        "device": torch.device("cpu"),
        "batch_size": 4,
    }
    return Wanted(**{**given, **changes})
