"""Real pictures to compare with, and what networks say of them, which is kept in the user's cache.

What is kept is of certain pictures, cut to a size, in certain features: pictures are told by their keys and stamps,
networks by the hash of their weights. Where any of it has changed, it is found again and takes the place of the old.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ldm.cache.fingerprint import picture_ids
from ldm.config import load_config, parse_yaml, validate
from ldm.data.example import Source, Words
from ldm.data.guess import guess
from ldm.data.sources import SourceConfig, open_source
from ldm.data.streaming import no_stream
from ldm.data.user_cache import cache_file, keep, recall
from ldm.errors import UserError
from ldm.evaluate.features import Features
from ldm.evaluate.gathering import AT_ONCE, Pictures, describe_all, seen_by_all
from ldm.training.parallel import Team

_CONFIGS = (".yaml", ".yml")


def read_data(told: str, flag: str) -> Any:
    """The settings of a source, as people name one.

    Args:
        told: a folder, file or name on the hub; a run's configuration, whose data is meant; or the settings
            themselves, as in ``{source: mnist, path: FOLDER, split: test}``.
        flag: where it was told, for messages.

    Raises:
        UserError: it is none of these.
    """
    if told.lstrip().startswith("{"):
        tree = parse_yaml(told, flag)
        if not isinstance(tree, dict):
            raise UserError(f"{flag} {told!r} should be a group of keys and values")
        return validate(tree, flag, SourceConfig)
    return load_config(Path(told)).data if Path(told).suffix.lower() in _CONFIGS else guess(told)


def as_written(data: Any) -> dict[str, Any]:
    """The settings of a source as plain data, without those that say nothing."""
    return TypeAdapter(SourceConfig).dump_python(data, mode="json", exclude_defaults=True) | {"source": data.source}


class RealPictures:
    """Pictures of a source, all or some, at one size.

    Args:
        source: no stream.
        size: (height, width) that they come to.
        count: so many, drawn at random; None is all, in their order.
        seed: of the drawing.

    Attributes:
        name: of the source.
        pictures: to be opened.

    Raises:
        UserError: it is a stream, or has too few pictures.
    """

    def __init__(self, source: Source, size: tuple[int, int], count: int | None = None, seed: int = 0) -> None:
        if source.stream:
            raise no_stream("evaluation goes through its pictures by number", source, "unpack it into a folder")
        if count is not None and count > len(source):
            raise UserError(f"{source.name} has {len(source):,} pictures, and {count:,} are asked for")
        self.name, self.size, self._source = source.name, size, source
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)) if count else None
        self.chosen: list[int] = list(range(len(source))) if order is None else order[:count].tolist()
        self.pictures = Pictures(source, self.chosen, size)

    @classmethod
    def at(cls, data: Any, size: tuple[int, int], count: int | None = None, seed: int = 0) -> RealPictures:
        """Open a source by its settings; see ``read_data``."""
        return cls(open_source(data), size, count, seed)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def classes(self) -> int | None:
        return self._source.num_classes

    @property
    def captioned(self) -> bool:
        return self._source.captioned

    @property
    def told(self) -> str:
        """What they are, for people: how many, of what, and whether they were resized, which a distance would show."""
        height, width = self.size
        assert self._source.sizes is not None
        sizes = torch.unique(self._source.sizes[self.chosen], dim=0).tolist()
        resized = "" if sizes == [[height, width]] else ", resized and cut from other sizes"
        if resized and len(sizes) == 1:
            resized = f", resized and cut from {sizes[0][1]} x {sizes[0][0]}"
        return f"{self.name}, {len(self):,} pictures at {width} x {height}{resized}"

    def words(self, number: int) -> Words:
        """Label and captions of a picture.

        Raises:
            BadExample: they cannot be used.
        """
        return self._source.words(self.chosen[number])

    def fingerprint(self) -> str:
        """Of the pictures and the size that they come to."""
        state = hashlib.sha256(json.dumps(self.size).encode())
        state.update(np.ascontiguousarray(picture_ids(self._source)[self.chosen]).tobytes())
        return state.hexdigest()[:32]

    def features(
        self, networks: Sequence[Features], device: torch.device, team: Team, workers: int = 0
    ) -> list[Tensor] | None:
        """Features (N, D) in each network, for the main process; None in the others.

        Those that are kept are taken from the user's cache; all others are found, and kept.
        """
        # of another device, number of threads or version of torch, the last digits would be others
        how = f"{device.type} {torch.get_num_threads()} {torch.__version__} {AT_ONCE}"
        print_ = seen_by_all(self.fingerprint, team)
        places = [
            cache_file("features", f"{self.name} {len(self)} {self.size} {network.name} {how}") for network in networks
        ]
        pairs = list(zip(places, networks, strict=True))
        known = [_kept(place, print_, len(self), n.size) for place, n in pairs] if team.is_main else []
        absent = seen_by_all(lambda: [k for k, found in enumerate(known) if found is None], team)
        if absent:
            wanted = [networks[k] for k in absent]
            found = describe_all(self.pictures, wanted, team, workers, f"features of {self.name}")
            for k, features in zip(absent, found or (), strict=team.is_main):
                known[k] = features
                _keep(places[k], print_, features)
        return [found for found in known if found is not None] if team.is_main else None


def _kept(place: Path | None, print_: str, count: int, size: int) -> Tensor | None:
    held = recall(place) or b""
    head, _, numbers = held.partition(b"\n")
    if head.decode("ascii", errors="replace") != _head(print_, count, size) or len(numbers) != 4 * count * size:
        return None
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32).view(count, size)


def _keep(place: Path | None, print_: str, features: Tensor) -> None:
    numbers = features.contiguous().numpy().astype("<f4", copy=False).tobytes()
    keep(place, _head(print_, *features.shape).encode("ascii") + b"\n" + numbers)


def _head(print_: str, count: int, size: int) -> str:
    return f"{print_} {count} {size}"
