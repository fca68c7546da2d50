"""What a comparison of codecs found, as figures that can be put side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

from ldm.compare.codecs import TRAINING
from ldm.compare.equal import Point, Spread, over_seeds, ratios, spent_for, spread, value_at
from ldm.compare.stages import Found

DISTANCE, PRECISION, RECALL = "Fréchet distance", "precision", "recall"
STEPS, FLOPS, SECONDS = "steps", "FLOPs", "seconds"


class Saved(NamedTuple):
    """How many times less was taken, over the seeds; ``at_least`` so, where it was so when first looked at."""

    times: Spread
    at_least: bool


@dataclass(frozen=True)
class Results:
    """Reads what ``compare_codecs`` returned.

    Attributes:
        data: that.
    """

    data: Found

    @property
    def names(self) -> list[str]:
        """Of the rows."""
        return self.data["rows"]

    @property
    def base(self) -> str:
        """The row that the others are compared with."""
        return self.names[0]

    # ------------------------------------------------------------------- counted

    def counted(self, name: str) -> Found:
        """See ``ldm.compare.counted.count_row``."""
        return self.data["counted"][name]

    def training_flops(self, name: str) -> float:
        """Operations of training with a picture, latents and texts from a cache."""
        return sum(self.counted(name)["training"].values())

    def drawing_flops(self, name: str) -> float:
        """Operations of drawing a picture."""
        return sum(self.counted(name)["drawing"].values())

    @property
    def batch(self) -> int:
        """Pictures of a step."""
        train = self.data["asked"]["train"]
        return train["batch_size"] * train["gradient_accumulation"]

    # --------------------------------------------------------------------- timed

    @property
    def is_timed(self) -> bool:
        """Whether time was taken."""
        return self.data.get("timed") is not None

    @property
    def is_judged(self) -> bool:
        """Whether quality was measured."""
        return self.data.get("quality") is not None

    def turns(self, name: str, kind: str) -> list[Found]:
        """What was measured of a kind of work, turn by turn; empty where nothing was."""
        found = self.data["timed"] or [] if self.is_timed else []
        return [turn["rows"][name][kind] for turn in found if kind in turn["rows"][name]]

    def over_turns(self, name: str, kind: str, find: Callable[[Found], float]) -> Spread | None:
        """Something that each turn found, over the turns."""
        found = [find(turn) for turn in self.turns(name, kind)]
        return spread(found) if found else None

    def times_faster(
        self, name: str, kind: str, base: str | None = None, base_kind: str | None = None
    ) -> Spread | None:
        """How many times as many pictures a second as the base (or another row, or kind of work), within each turn."""
        mine, theirs = self.turns(name, kind), self.turns(base or self.base, base_kind or kind)
        if not mine or not theirs:
            return None
        return ratios([seconds_of_picture(turn) for turn in theirs], [seconds_of_picture(turn) for turn in mine])

    def training_seconds(self, name: str) -> float | None:
        """Seconds of a step, the mean of the turns."""
        found = self.over_turns(name, TRAINING, lambda turn: turn["seconds"])
        return None if found is None else found.mean

    @property
    def others(self) -> float | None:
        """The largest share of the processors that other programs took in a turn."""
        shares = [turn["others"] for turn in self.data["timed"] or [] if turn["others"] is not None]
        return max(shares, default=None)

    # ------------------------------------------------------------------- quality

    @property
    def networks(self) -> list[str]:
        """Those in whose features pictures were compared."""
        return list(dict.fromkeys(metric["features"] for metric in self.data["quality"]["real"]["metrics"]))

    @property
    def features(self) -> str:
        """The first of them, which what is told in short is measured in."""
        return self.networks[0]

    @property
    def marks(self) -> list[int]:
        """The steps at which quality was measured."""
        return [point["step"] for point in self.data["quality"]["points"][self.base][0]]

    def measured(self, name: str, metric: str, mark: int, features: str | None = None) -> Spread:
        """A metric at a mark (its number in ``marks``), over the seeds."""
        seeds = self.data["quality"]["points"][name]
        return spread([value_of(points[mark]["metrics"], metric, features or self.features) for points in seeds])

    def spent(self, name: str, means: str) -> float | None:
        """What a step of training takes: 1 step, or operations, or seconds; None where no time was taken."""
        if means == STEPS:
            return 1.0
        if means == FLOPS:
            return self.training_flops(name) * self.batch
        return self.training_seconds(name)

    def before(self, name: str, means: str) -> float:
        """What a row took before its U-Net was trained: its VAE, and the latents of all pictures."""
        counted, cached = self.counted(name), self.data["caches"].get(name, {})
        if means == FLOPS:
            return counted["vae_training"] + counted["encoding"] * cached.get("pictures", 0)
        if means == SECONDS:
            return self.data["autoencoders"].get(name, {}).get("seconds", 0.0) + (cached.get("seconds") or 0.0)
        return 0.0

    def curves(self, name: str, means: str, metric: str = DISTANCE, all_in: bool = False) -> list[list[Point]] | None:
        """What was spent and reached, for each seed; None where no time was taken.

        Args:
            name: of the row.
            means: what is spent.
            metric: what is reached.
            all_in: with what was spent before, on the VAE and the latents.
        """
        unit, first = self.spent(name, means), self.before(name, means) if all_in else 0.0
        if unit is None:
            return None
        return [
            [Point(first + p["step"] * unit, value_of(p["metrics"], metric, self.features)) for p in seed]
            for seed in self.data["quality"]["points"][name]
        ]

    def base_at(self, name: str, means: str, metric: str = DISTANCE) -> Spread | None:
        """What the base came to with as much as all of a row's training took; None where it was not looked at near."""
        own, base = self.curves(name, means, metric), self.curves(self.base, means, metric)
        if own is None or base is None:
            return None
        return over_seeds(base, lambda points: value_at(points, own[0][-1].spent, power=metric == DISTANCE))

    def saved(self, name: str, means: str, all_in: bool = False) -> Saved | None:
        """How many times less a row took to come to where the base came in the end, seed by seed.

        What the base took is counted to where it first came there, too. None where a seed did not come to that, or no
        time was taken.
        """
        own, base = self.curves(name, means, all_in=all_in), self.curves(self.base, means)
        if own is None or base is None:
            return None
        goals = [points[-1].value for points in base]
        took = [spent_for(points, goal) for points, goal in zip(own, goals, strict=True)]
        theirs = [spent_for(points, goal) for points, goal in zip(base, goals, strict=True)]
        known = [found for found in took if found is not None]
        if len(known) < len(took):
            return None
        early = any(points[0].value <= goal for points, goal in zip(own, goals, strict=True))
        return Saved(ratios([found or 0.0 for found in theirs], known), early and name != self.base)


def seconds_of_picture(turn: Found) -> float:
    """Of training or drawing, from what a turn found.

    A step of training is of as many pictures as its samples; a drawing's seconds are of one picture already.
    """
    return turn["seconds"] / turn.get("samples", 1)


def value_of(metrics: Sequence[dict[str, Any]], name: str, features: str) -> float:
    """A metric by its name, in certain features.

    Raises:
        KeyError: there is none.
    """
    for metric in metrics:
        if (metric["name"], metric["features"]) == (name, features):
            return metric["value"]
    raise KeyError(f"{name} in {features}")


def mean_peak(results: Results) -> float:
    """Operations a second that the machine reached at best, the mean of the turns."""
    return mean(turn["peak"] for turn in results.data["timed"])
