"""Evaluating a model: real pictures, drawn ones for every setting, and what is measured of them.

The result is data, the same for any number of processes to the last digit, but for the seconds that it took. All is
computed in the main process from features that were gathered in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.codec import VAECodec
from ldm.errors import UserError
from ldm.evaluate.clip_folder import ClipFolder
from ldm.evaluate.drawn import Request, draw_all, kind_of, requests
from ldm.evaluate.features import Features, JudgeFeatures, open_features
from ldm.evaluate.judged import judge_classes
from ldm.evaluate.reconstruction import Reconstruction, measure_reconstruction
from ldm.evaluate.reference import RealPictures, as_written
from ldm.evaluate.sets import Measured, ReferenceSet, compare, judged, matched
from ldm.evaluate.settings import EvaluateConfig
from ldm.evaluate.sweep import grid
from ldm.pipeline import Pipeline
from ldm.training.parallel import Team


@dataclass(frozen=True)
class Cell:
    """One setting to draw with.

    Attributes:
        sampler, steps, guidance: the setting.
        seconds: that a device worked on a picture; the only number that changes from one time to the next.
        flops: operations of a picture.
        measured: what was found about its pictures.
        first: uint8 (N, C, H, W), the first few of them.
    """

    sampler: str
    steps: int
    guidance: float
    seconds: float
    flops: int
    measured: Measured
    first: Tensor

    @property
    def name(self) -> str:
        return f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}"


@dataclass(frozen=True)
class Evaluation:
    """All that was found.

    Attributes:
        config: what was asked.
        size: (height, width) of all pictures.
        reference: what it is, in words.
        pictures: of the reference.
        conditions: what the model was asked with.
        real: what was found about real pictures: those of the floor, or else of the reference, of which no distance
            to itself is told.
        real_name: which they are.
        cells: the settings.
        reconstruction: of the autoencoder, where it was asked for.
    """

    config: EvaluateConfig
    size: tuple[int, int]
    reference: str
    pictures: int
    conditions: str
    real: Measured
    real_name: str
    cells: tuple[Cell, ...]
    reconstruction: Reconstruction | None


class Evaluator:
    """Networks, real pictures and processes, with which models are evaluated.

    Args:
        config: how.
        size: (height, width) of all pictures.
        team: shares the work.
        device: of this process.

    Raises:
        UserError: a network or source cannot be opened.
    """

    def __init__(self, config: EvaluateConfig, size: tuple[int, int], team: Team, device: torch.device) -> None:
        self.config, self.size, self.team, self.device = config, size, team, device
        self.networks: list[Features] = [open_features(told, device) for told in config.features]
        self.compared = {network.name for network in self.networks}
        if len(self.compared) < len(self.networks):
            raise UserError(f"of the features {', '.join(config.features)} two are the same network")
        self.clip = None if config.clip is None else self._open_clip(config.clip)
        self.reference = RealPictures.at(config.data, size, config.reference_count, config.seed)
        floor = None if config.floor is None else RealPictures.at(config.floor, size, config.count, config.seed)
        self.floor = floor if config.count else None
        if config.count and len(self.reference) <= config.neighbours:
            raise UserError(f"{self.reference.name} has {len(self.reference)} pictures, too few to compare with")
        self.real = self.floor or self.reference

    def _open_clip(self, place: str) -> ClipFolder:
        """The CLIP; where it is one of the networks of features too, that one."""
        clip = open_features(f"clip:{place}", self.device)
        assert isinstance(clip, ClipFolder)
        for network in self.networks:
            if isinstance(network, ClipFolder) and network.name == clip.name:
                return network
        self.networks.append(clip)
        return clip

    def evaluate(self, pipeline: Pipeline | None, codec: VAECodec | None) -> Evaluation | None:
        """Draw, compare, and take the autoencoder's measure; all but the main process get None.

        Args:
            pipeline: the model; None draws nothing.
            codec: the autoencoder; None leaves it out.

        Raises:
            UserError: anything the user can mend; before the first picture is drawn where it can be.
        """
        config, count = self.config, self.config.count if pipeline else 0
        kind = kind_of(pipeline, config.conditions, self.reference) if pipeline and count else "none"
        asked = requests(self.reference, kind, count, config.seed)
        settings = grid(pipeline, config.steps, config.guidance, config.sampler) if pipeline and count else []
        told = self._texts(asked) if self.clip and count else {}
        described = self.reference.features(self.networks, self.device, self.team, config.workers)
        known = None if described is None else [ReferenceSet(features, config) for features in described]
        real = self._real(known, told) if count else Measured((), {})
        cells = [self._cell(pipeline, how, asked, known, told) for how in settings] if pipeline else []
        lost = None
        if codec is not None:
            lost = measure_reconstruction(codec, self.reference, described, self.networks, self.team, config.workers)
        if not self.team.is_main:
            return None
        done = tuple(cell for cell in cells if cell is not None)
        reference = self.reference.told, len(self.reference)
        assert real is not None
        return Evaluation(config, self.size, *reference, kind, real, self.real.name, done, lost)

    def _texts(self, asked: Sequence[Request]) -> dict[str, Tensor]:
        """The embedding of every caption there is to choose from: those of the drawn and of the real pictures.

        Raises:
            UserError: there are none.
        """
        assert self.clip is not None
        own = [self._caption(self.real, i) for i in range(len(self.real))]
        captions = sorted({caption for caption in (*own, *(one.caption for one in asked)) if caption is not None})
        if None in own or any(one.caption is None for one in asked):
            raise UserError(f"a CLIP compares pictures with captions, and {self.real.name} has pictures without")
        return dict(zip(captions, self.clip.read(captions), strict=True))

    def _caption(self, real: RealPictures, number: int) -> str | None:
        captions = real.words(number).captions
        return captions[(self.config.seed + number) % len(captions)] if captions else None

    def _real(self, known: list[ReferenceSet] | None, told: dict[str, Tensor]) -> Measured | None:
        """What real pictures come to."""
        found = None if known is None else [one.features for one in known]
        if self.floor is not None:
            found = self.floor.features(self.networks, self.device, self.team, self.config.workers)
        if found is None or known is None:
            return None
        words = [self.real.words(i) for i in range(len(self.real))]
        captions = [self._caption(self.real, i) for i in range(len(self.real))] if told else []
        own = [Request(None, word.label, caption) for word, caption in itertools.zip_longest(words, captions)]
        return self._measured(found, own, known, told, distances=self.floor is not None)

    def _cell(
        self,
        pipeline: Pipeline,
        how: Mapping[str, Any],
        asked: Sequence[Request],
        known: list[ReferenceSet] | None,
        told: dict[str, Tensor],
    ) -> Cell | None:
        """Draw with one setting, and measure."""
        title = f"{how['steps']} steps, guidance {how['guidance']:g}"
        config = self.config
        drawn = draw_all(
            pipeline,
            asked,
            how,
            self.networks,
            self.team,
            seed=config.seed,
            batch_size=config.batch_size,
            title=title,
        )
        if drawn is None or known is None:
            return None
        measured = self._measured(drawn.features, asked, known, told)
        return Cell(**how, seconds=drawn.seconds, flops=drawn.flops, measured=measured, first=drawn.first)

    def _measured(
        self,
        found: Sequence[Tensor],
        asked: Sequence[Request],
        known: Sequence[ReferenceSet],
        told: dict[str, Tensor],
        distances: bool = True,
    ) -> Measured:
        metrics, judges = [], {}
        for network, own, reference in zip(self.networks, found, known, strict=True):
            if distances and network.name in self.compared:
                metrics += compare(own, reference, network.name, self.config)
            if isinstance(network, JudgeFeatures):
                classes, usual = network.classify(own), network.classify(reference.features)
                same = self.reference.classes == network.classes  # else they are classes of something else
                wanted = [one.label if same else None for one in asked]
                judges[network.name] = judge_classes(classes, wanted, usual, network.classes)
                count = sum(label is not None for label in wanted)
                metrics += judged(judges[network.name], count, (len(own), len(usual)), network.name, distances)
            if network is self.clip:
                captions = [one.caption for one in asked if one.caption is not None]
                metrics += matched(own, captions, told, network.name)
        return Measured(tuple(metrics), judges)


def written(config: EvaluateConfig) -> dict[str, Any]:
    """What was asked, as plain data."""
    sources = {name: as_written(data) for name in ("data", "floor") if (data := getattr(config, name)) is not None}
    return {**config.model_dump(mode="json", exclude={"data", "floor", "workers"}), **sources}
