"""Samples that are copies of training pictures, found early (cf. Carlini et al. 2023, https://arxiv.org/abs/2301.13188).

Every picture is a vector: the mean of its latents, averaged over 16 x 16 places, or without an autoencoder its
brightness over as many. The distance of two is the root of the mean square difference. How near is too near, the data
say: each training picture has a distance to the nearest other one, and the limit is a low quantile of these. A sample
below it is nearer to a training picture than all but that share of the training pictures are to each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.codec import Codec, VAECodec
from ldm.data.example import BadExample, Source
from ldm.data.framing import cut, least_to_decode
from ldm.data.samples import Kept, TrainingSamples
from ldm.errors import UserError
from ldm.images import save_image, to_signed
from ldm.sheet import labelled_sheet
from ldm.training.drawn import enlarged
from ldm.training.tune_settings import MemorisedConfig

_PLACES = 16
_AT_ONCE = 32
_ROWS_AT_ONCE = 1024
_MOST_SHOWN = 20


class Place(NamedTuple):
    """A training picture: which part of the source, and which of its examples."""

    part: int
    index: int


class Neighbours(NamedTuple):
    """The nearest training picture of each sample.

    Attributes:
        distances: (N,).
        rows: (N,) of ``Memory.places``.
    """

    distances: Tensor
    rows: Tensor


def distinct_places(samples: TrainingSamples, leave_out: Callable[[Source], bool]) -> list[Place]:
    """Where each picture is, once; of no source to leave out."""
    parts = samples.plan.parts
    own = [Place(p, i) for p, part in enumerate(parts) if not leave_out(part) for i in range(len(part))]
    return list({(place.part, parts[place.part].key(place.index)): place for place in own}.values())


def check_enough(places: Sequence[Place]) -> None:
    """Refuse to compare a picture with none.

    Raises:
        UserError: there are fewer than two.
    """
    if len(places) < 2:
        told = "memorised compares training pictures with each other, and there are fewer than two"
        raise UserError(f"{told}: memorised=null does without")


class Memory:
    """The training pictures that samples are compared with.

    Args:
        samples: of the run, none of them from a stream.
        config: how many pictures, and the quantile.
        encoder: the codec on its device; called where it is needed, and let go.
        leave_out: sources that are not what is learned.

    Attributes:
        places: of the pictures.
        limit: distance below which a sample is taken for a copy.

    Raises:
        UserError: there are fewer than two that can be used.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        config: MemorisedConfig,
        encoder: Callable[[], Codec],
        leave_out: Callable[[Source], bool] = lambda _: False,
    ) -> None:
        self._samples, self._encoder = samples, encoder
        distinct = distinct_places(samples, leave_out)
        step = max(1.0, len(distinct) / config.pictures)
        self.places = [distinct[int(k * step)] for k in range(min(len(distinct), config.pictures))]
        self._features, self.places = self._all_features()
        check_enough(self.places)
        nearest = _nearest(self._features, self._features, apart=True).distances
        self.limit = float(nearest.quantile(config.quantile))

    def _all_features(self) -> tuple[Tensor, list[Place]]:
        codec, found, kept = self._encoder(), [], []
        kept_rows = self._samples.kept if isinstance(codec, VAECodec) else None
        bar = tqdm(total=len(self.places), desc="looking at the training pictures", unit="picture", disable=None)
        with bar:
            for start in range(0, len(self.places), _AT_ONCE):
                rows = list(self._opened(self.places[start : start + _AT_ONCE], kept_rows))
                kept += [place for place, _ in rows]
                groups = _alike([picture for _, picture in rows])
                found += [_vectors(torch.stack(group), codec, kept_rows) for group in groups]
                bar.update(len(self.places[start : start + _AT_ONCE]))
        return torch.cat(found) if found else torch.empty(0, 1), kept

    def _opened(self, places: Sequence[Place], kept: Kept | None) -> Iterator[tuple[Place, Tensor]]:
        """Places and what is to be compared: moments where a cache has them, else pictures in -1..1."""
        for place in places:
            try:
                yield place, self.picture(place) if kept is None else self._moments(kept, place)
            except BadExample:  # told where it comes up in training
                continue

    def _moments(self, kept: Kept, place: Place) -> Tensor:
        return kept.moments(*place, 0, False)[0].float()

    def picture(self, place: Place) -> Tensor:
        """A training picture (C, H, W) in -1..1, cut as the run's sheets are."""
        part, samples = self._samples.plan.parts[place.part], self._samples
        assert part.sizes is not None
        height, width = part.sizes[place.index].tolist()
        least = None if samples.frame is None else least_to_decode((height, width), samples.size)
        example = part.read(place.index, least)
        return to_signed(cut(example.image, example.original, samples.size, 0.5, 0.5, False)[0])

    def look(self, pictures: Sequence[Tensor]) -> Neighbours:
        """The nearest training pictures of samples (C, H, W) in -1..1."""
        codec = self._encoder()
        parts = [_vectors(torch.stack(group), codec, None) for group in _alike(list(pictures))]
        return _nearest(torch.cat(parts), self._features, apart=False)

    def report(self, pictures: Sequence[Tensor], path: Path) -> dict[str, float]:
        """Write samples beside their nearest training pictures, nearest first, and warn of copies.

        Args:
            pictures: samples.
            path: of the sheet.

        Returns:
            For the log.
        """
        found = self.look(pictures)
        copies = int((found.distances < self.limit).sum())
        self._write_sheet(pictures, found, path)
        if copies:
            print(
                f"{copies} of {len(pictures)} samples are nearer to a training picture than training pictures are to "
                f"each other (limit {self.limit:.3f}): they may be copies; see {path}",
                file=sys.stderr,
            )
        return {
            "nearest_distance": float(found.distances.min()),
            "nearest_distance_median": float(found.distances.median()),
            "nearest_limit": self.limit,
            "copies": copies,
        }

    def _write_sheet(self, pictures: Sequence[Tensor], found: Neighbours, path: Path) -> None:
        shown = found.distances.argsort()[:_MOST_SHOWN].tolist()
        rows, labels = [], []
        for k in shown:
            place = self.places[int(found.rows[k])]
            rows += [enlarged(pictures[k]), enlarged(self.picture(place))]
            told = "a copy? " if found.distances[k] < self.limit else ""
            key = self._samples.plan.parts[place.part].key(place.index)
            labels.append(f"{told}{found.distances[k]:.3f} {key}")
        title = f"Distance to the nearest training picture; nearly all of these are {self.limit:.3f} apart or more"
        save_image(labelled_sheet(rows, 2, ["sample", "training"], labels, title), path)


def _alike(rows: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring rows of one shape, in order."""
    start = 0
    for k in range(1, len(rows) + 1):
        if k == len(rows) or rows[k].shape != rows[start].shape:
            yield rows[start:k]
            start = k


def _vectors(rows: Tensor, codec: Codec, kept: Kept | None) -> Tensor:
    """(B, D) on the CPU, D 256 times the channels."""
    if isinstance(codec, VAECodec):
        device = codec.vae.last_layer.device
        means = codec.mean(rows.to(device) if kept is not None else codec.encode(rows.to(device)))
    else:
        means = rows.mean(1, keepdim=True)
    # smaller ones are enlarged, so that pictures of all shapes have as many numbers
    return F.adaptive_avg_pool2d(means.float(), (_PLACES, _PLACES)).flatten(1).cpu()


def _nearest(queries: Tensor, features: Tensor, apart: bool) -> Neighbours:
    """The nearest of ``features`` (N, D) to each of ``queries`` (M, D); ``apart``: no row is its own neighbour."""
    distances, rows = [], []
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        found = torch.cdist(queries[start : start + _ROWS_AT_ONCE], features) / features.shape[1] ** 0.5
        if apart:
            found[:, start:].fill_diagonal_(torch.inf)
        least = found.min(1)
        distances.append(least.values)
        rows.append(least.indices)
    return Neighbours(torch.cat(distances), torch.cat(rows))
