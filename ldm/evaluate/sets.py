"""All that is measured of a set of pictures by their features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluate.distance import frechet_distance, kernel_distance
from ldm.evaluate.judged import Judged
from ldm.evaluate.manifold import compare_manifolds, radii
from ldm.evaluate.matching import match
from ldm.evaluate.metric import HIGHER, LOWER, Metric
from ldm.evaluate.settings import EvaluateConfig


class ReferenceSet:
    """The features (M, D) of the reference, and what is found out about them once for all settings.

    Attributes:
        features: of all its pictures.
        some: of as many as are drawn: beside more of them, few drawn pictures could not cover any large part.
    """

    def __init__(self, features: Tensor, config: EvaluateConfig) -> None:
        self.features, self._config = features, config
        self.some = _some(features, min(config.count, config.manifold_count), config.seed)

    @functools.cached_property
    def reach(self) -> Tensor:
        """Of the balls around ``some``; see ``ldm.evaluate.manifold``."""
        return radii(self.some, self._config.neighbours)


def compare(drawn: Tensor, reference: ReferenceSet, features: str, config: EvaluateConfig) -> list[Metric]:
    """Distances between two sets, and how they cover each other.

    Args:
        drawn: (N, D) features of the pictures that are measured.
        reference: what they are compared with.
        features: the name of the network.
        config: how.
    """
    counts = len(drawn), len(reference.features)
    kernel = kernel_distance(drawn, reference.features, config.kernel_subsets, config.kernel_size, config.seed)
    metrics = [
        Metric("Fréchet distance", frechet_distance(drawn, reference.features), LOWER, features, *counts),
        Metric(
            "kernel distance",
            kernel.mean,
            LOWER,
            features,
            *counts,
            spread=kernel.spread,
            note=f"mean ± std of {kernel.subsets} subsets of {kernel.size:,}",
        ),
    ]
    some = _some(drawn, config.manifold_count, config.seed)
    found = compare_manifolds(some, reference.some, config.neighbours, reference.reach)
    counts, note = (len(some), len(reference.some)), f"k = {config.neighbours}"
    return metrics + [
        Metric(name, value, HIGHER, features, *counts, note=note) for name, value in found._asdict().items()
    ]


def _some(features: Tensor, most: int, seed: int) -> Tensor:
    """All features, or, of too many, some at random."""
    if len(features) <= most:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:most]]


def judged(told: Judged, asked: int, counts: tuple[int, int], name: str, distances: bool = True) -> list[Metric]:
    """What a judge of classes says.

    Args:
        told: in detail.
        asked: pictures that were asked for with a class.
        counts: pictures, and those of the reference.
        name: of the judge.
        distances: the pictures are not those of the reference themselves.
    """
    metrics = []
    if told.accuracy is not None:
        metrics.append(Metric("class accuracy", told.accuracy, HIGHER, name, asked))
    if distances:
        metrics.append(Metric("class coverage", told.coverage, HIGHER, name, *counts))
        metrics.append(Metric("difference of class shares", told.difference, LOWER, name, *counts))
    return metrics


def matched(pictures: Tensor, captions: Sequence[str], texts: dict[str, Tensor], name: str) -> list[Metric]:
    """What a CLIP says; arguments as of ``match``, and the CLIP's name."""
    found, count = match(pictures, captions, texts), len(pictures)
    note = f"of {found.captions:,} captions"
    return [
        Metric("CLIP score", found.score, HIGHER, name, count),
        Metric("CLIP retrieval, top 1", found.first, HIGHER, name, count, note=note),
        Metric("CLIP retrieval, top 5", found.five, HIGHER, name, count, note=note),
    ]


@dataclass(frozen=True)
class Measured:
    """What was found about a set of pictures.

    Attributes:
        metrics: all of it.
        judged: what each judge of classes says in detail, by its name.
    """

    metrics: tuple[Metric, ...]
    judged: dict[str, Judged]

    def value(self, name: str, features: str) -> Metric:
        """The metric of this name in these features.

        Raises:
            KeyError: there is none.
        """
        for metric in self.metrics:
            if (metric.name, metric.features) == (name, features):
                return metric
        raise KeyError(f"{name} in {features}")
