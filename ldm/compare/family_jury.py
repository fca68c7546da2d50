"""Judging pictures that were drawn, whatever drew them, beside real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.accel import pick_device
from ldm.compare.material import Material
from ldm.compare.quality import ALONE
from ldm.compare.stages import Found
from ldm.evaluate.evaluation import Evaluator
from ldm.evaluate.features import JudgeFeatures
from ldm.evaluate.gathering import AT_ONCE, exact_float32
from ldm.evaluate.judged import judge_classes
from ldm.evaluate.metric import Metric
from ldm.evaluate.reference import RealPictures
from ldm.evaluate.sets import ReferenceSet, compare, judged
from ldm.evaluate.settings import EvaluateConfig
from ldm.publishing import disk_trouble, write_whole
from ldm.weights.files import read_tensors, write_tensors


def keep_pictures(place: Path, pictures: Tensor) -> None:
    """Write pictures uint8 (N, C, H, W) to a file.

    Raises:
        UserError: the disk is full or refuses.
    """
    with disk_trouble(str(place)):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda path: write_tensors(path, {"pictures": pictures}))


class FamilyJury:
    """Networks and real pictures that all rows are judged by.

    Args:
        material: the pictures.
        features: the networks.
        count: pictures that are judged at a time.
    """

    def __init__(self, material: Material, features: Sequence[str], count: int) -> None:
        held_out: Any = material.held_out
        self._config = EvaluateConfig(data=held_out, features=tuple(features), count=count, workers=0)
        self._train, self._size, self._device = material.train, (material.side, material.side), pick_device()
        evaluator = Evaluator(self._config, self._size, ALONE, self._device)
        self._networks, self._reference = evaluator.networks, evaluator.reference
        known = self._reference.features(self._networks, self._device, ALONE)
        assert known is not None
        self._known = [ReferenceSet(features, self._config) for features in known]

    def real(self, seed: int, place: Path) -> Found:
        """What as many training pictures come to: the best that there is to be had.

        The first of them are written to ``place``.
        """
        pictures = RealPictures.at(self._train, self._size, self._config.count, seed)
        own = pictures.features(self._networks, self._device, ALONE)
        assert own is not None
        _, first = next(pictures.pictures.batches(ALONE, 0, pictures.name))
        keep_pictures(place, first)
        told = {"name": pictures.told, "against": self._reference.told, "pictures": place.name}
        return {**self._measured(own), **told}

    def drawn(self, place: Path) -> Found:
        """What drawn pictures come to."""
        batches = read_tensors(place)["pictures"].split(AT_ONCE)
        with exact_float32():
            return self._measured([torch.cat([net.describe(some) for some in batches]) for net in self._networks])

    def _measured(self, found: Sequence[Tensor]) -> Found:
        metrics: list[Metric] = []
        for network, own, known in zip(self._networks, found, self._known, strict=True):
            metrics += compare(own, known, network.name, self._config)
            if isinstance(network, JudgeFeatures):
                classes, usual = network.classify(own), network.classify(known.features)
                told = judge_classes(classes, [None] * len(own), usual, network.classes)
                metrics += judged(told, 0, (len(own), len(usual)), network.name)
        return {"metrics": [asdict(metric) for metric in metrics]}
