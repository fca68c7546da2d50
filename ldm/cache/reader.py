"""What training reads from a cache, in place of pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldm.cache.cuts import Cutting
from ldm.cache.fingerprint import picture_ids
from ldm.cache.latents import Latents
from ldm.cache.shards import Places, Shard
from ldm.cache.texts import Texts
from ldm.data.example import Source
from ldm.data.framing import Frame
from ldm.data.plan import parts_of
from ldm.data.samples import Skipped
from ldm.diffusion.context import Context
from ldm.errors import UserError


class Made(NamedTuple):
    """What was done to bring a cache up to date.

    Attributes:
        pictures, texts: how many were encoded.
        seconds: how long it took.
    """

    pictures: int
    texts: int
    seconds: float


class Cache:
    """A complete cache of a run.

    Attributes:
        folder: where it is.
        left_out: pictures of the run that could not be used.
        bytes: of all files.
        made: what was done to bring it up to date.
    """

    def __init__(
        self,
        folder: Path,
        cutting: Cutting,
        latents: Sequence[Shard] | None,
        texts: Sequence[Shard] | None,
        left_out: list[Skipped],
        made: Made,
    ) -> None:
        self.folder, self.cutting, self.left_out, self.made = folder, cutting, left_out, made
        self._latents = None if latents is None else Latents(latents, cutting)
        self._places = None if latents is None else Places(list(latents))
        self._texts = None if texts is None else Texts(texts)

    def of(self, source: Source) -> KeptRows:
        """The rows of a source: the one that the cache was opened for, or a part of it.

        Raises:
            UserError: there is a picture in it that the cache has no row of.
        """
        places = None
        if self._places is not None:
            found = self._places.find(picture_ids(source))
            if (found < 0).any():
                lacking = int((found[:, 0] < 0).argmax())
                raise UserError(
                    f"{self.folder} has no row of {source.key(lacking)}: `ldm data cache` adds what is missing"
                )
            firsts = np.cumsum([len(part) for part in parts_of(source)[0]])[:-1]
            places = np.split(found, firsts)
        return KeptRows(self.cutting.crops, self._latents, places, self._texts)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*"))


class KeptRows:
    """The rows of one source; see :class:`ldm.data.samples.Kept`.

    Attributes:
        latents: whether moments are kept.
        texts: whether contexts are.
    """

    def __init__(
        self, crops: int, latents: Latents | None, places: list[np.ndarray] | None, texts: Texts | None
    ) -> None:
        self.crops, self._latents, self._places, self._texts = crops, latents, places, texts
        self.latents, self.texts = latents is not None, texts is not None

    def moments(self, part: int, index: int, crop: int, mirrored: bool) -> tuple[Tensor, Frame]:
        """What the codec's ``encode`` gave for a picture, (2c, h, w) in the cache's dtype, and how it was cut.

        Raises:
            BadExample: the picture could not be used.
        """
        assert self._latents is not None
        assert self._places is not None
        return self._latents.read(self._places[part][index].tolist(), crop, mirrored)

    def context(self, caption: str | None) -> Context:
        """The context of a text, or of the dropped condition, batch size 1, on the CPU, float32."""
        assert self._texts is not None
        return self._texts.read(caption)
