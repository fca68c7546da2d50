"""Composed pictures as a source of training data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.data.example import Example, Words
from ldm.data.order import mix
from ldm.starter.composing import draw
from ldm.starter.draws import Draws
from ldm.starter.english import english
from ldm.starter.korean import korean
from ldm.starter.prepared import Prepared
from ldm.starter.scene import Scene
from ldm.starter.scenes import Scenes
from ldm.starter.settings import Language, StarterConfig

_TELLERS: tuple[tuple[Language, Callable[[Prepared, Scene, Draws], str]], ...] = (("en", english), ("ko", korean))


class StarterSource:
    """Scenes of a prepared folder by number; see ``Source``.

    Args:
        config: the settings.

    Attributes:
        prepared: the folder.
        captioned: whether its pictures have captions; parts of pictures have none.
        sizes: (N, 2) int32, all the same.

    Raises:
        UserError: the folder is missing or damaged, or lacks what a kind of scene needs.
    """

    channels: int = 3
    num_classes: int | None = None
    stream: bool = False

    def __init__(self, config: StarterConfig) -> None:
        self.config = config
        self.prepared = Prepared(config.path.expanduser())
        self.name = f"starter {config.split} ({config.path})"
        self.captioned = config.crop is None
        self._side = config.crop or config.size
        self.sizes: Tensor | None = torch.tensor([[self._side] * 2], dtype=torch.int32).expand(config.length, 2)
        self._scenes = Scenes(
            self.prepared, config.split, config.kinds, config.seed, config.groups, config.least_styles
        )
        told = config.model_dump_json(exclude={"path", "length", "captions"})
        self._stamp = f"{self.prepared.fingerprint} {told}"

    def __len__(self) -> int:
        return self.config.length

    def key(self, index: int) -> str:
        """A name that says from which series the picture is."""
        return f"{self.config.split}-{self.config.seed}-{index}"

    def scene(self, index: int) -> Scene:
        """What a picture holds: what judges compare with."""
        return self._scenes(index)

    def words(self, index: int) -> Words:
        """Captions of a picture, without drawing it."""
        return self._words(self.scene(index), index)

    def stamp(self, index: int) -> str:
        """Changes with the folder and with what decides which scenes there are."""
        return hashlib.blake2b(f"{self._stamp} {index}".encode(), digest_size=16).hexdigest()

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        """Compose a picture. It is never smaller than asked for: ``least`` has no use here."""
        scene = self.scene(index)
        picture = self._part(scene, index) if self.config.crop else draw(self.prepared, scene, self.config.size)
        words = self._words(scene, index)
        return Example(picture, None, words.captions, self.key(index), (self._side, self._side))

    def _part(self, scene: Scene, index: int) -> Tensor:
        """A part around a place on one of the things: flat grounds alone teach little."""
        draws, part = Draws(mix(self.config.seed, 13, index)), self._side
        side = round(draws.between(part, self.config.size))
        item = draws.one(scene.items)
        spot = (draws.between(at - item.size / 2, at + item.size / 2) for at in item.centre)
        left, top = (min(max(0, round(at * side - part / 2)), side - part) for at in spot)
        return draw(self.prepared, scene, side)[:, top : top + part, left : left + part].contiguous()

    def _words(self, scene: Scene, index: int) -> Words:
        if not self.captioned:
            return Words(None, ())
        captions = [
            tell(self.prepared, scene, Draws(mix(self.config.seed, 12, index, number, turn)))
            for number, (language, tell) in enumerate(_TELLERS)
            for turn in range(self.config.captions.get(language, 0))
        ]
        return Words(None, tuple(dict.fromkeys(captions)))
