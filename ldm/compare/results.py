"""What a comparison of codecs found, as figures that can be put side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from ldm.compare.codecs import TRAINING
from ldm.compare.equal import Point, Spread, distance_at, over_seeds, ratios, spent_for, spread
from ldm.compare.stages import Found

DISTANCE = "Fréchet distance"
STEPS, FLOPS, SECONDS = "steps", "FLOPs", "seconds"


class Saved(NamedTuple):
    """How many times less was taken; ``at_least`` so, where it was enough when it was first looked at."""

    times: float
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
        """Operations of training with a picture."""
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
        return self.data["timed"]["turns"][name].get(kind, []) if self.is_timed else []

    def over_turns(self, name: str, kind: str, find: Callable[[Found], float]) -> Spread | None:
        """Something that each turn found, over the turns."""
        found = [find(turn) for turn in self.turns(name, kind)]
        return spread(found) if found else None

    def times_faster(self, name: str, kind: str) -> Spread | None:
        """How many times as many pictures a second as the base, turn by turn."""
        mine, base = ([seconds_of_picture(turn) for turn in self.turns(row, kind)] for row in (name, self.base))
        return ratios(base, mine) if mine and base else None

    def training_seconds(self, name: str) -> float | None:
        """Seconds of a step, of the middle turn."""
        turns = self.turns(name, TRAINING)
        return median(turn["seconds"] for turn in turns) if turns else None

    # ------------------------------------------------------------------- quality

    @property
    def features(self) -> str:
        """The network that distances are measured in: the first."""
        return self.data["quality"]["real"]["metrics"][0]["features"]

    @property
    def marks(self) -> list[int]:
        """The steps at which quality was measured."""
        return [point["step"] for point in self.data["quality"]["points"][self.base][0]]

    def last(self, name: str) -> list[Found]:
        """What was found at the end, for each seed."""
        return [points[-1] for points in self.data["quality"]["points"][name]]

    def measured(self, name: str, metric: str, mark: int) -> Spread:
        """A metric in the first features at a mark (its number in ``marks``), over the seeds."""
        seeds = self.data["quality"]["points"][name]
        return spread([value_of(points[mark]["metrics"], metric, self.features) for points in seeds])

    def spent(self, name: str, means: str) -> float | None:
        """What a step of training takes: 1 step, or operations, or seconds; None where no time was taken."""
        if means == STEPS:
            return 1.0
        if means == FLOPS:
            return self.training_flops(name) * self.batch
        return self.training_seconds(name)

    def curves(self, name: str, means: str) -> list[list[Point]] | None:
        """What was spent and reached, for each seed; None where no time was taken."""
        unit = self.spent(name, means)
        if unit is None:
            return None
        found = self.data["quality"]["points"][name]
        return [
            [Point(p["step"] * unit, value_of(p["metrics"], DISTANCE, self.features)) for p in seed] for seed in found
        ]

    def base_at(self, name: str, means: str) -> Spread | None:
        """The distance of the base with as much as all of a row's training took; None where it is not known."""
        own, base = self.curves(name, means), self.curves(self.base, means)
        if own is None or base is None:
            return None
        return over_seeds(base, lambda points: distance_at(points, own[0][-1].spent))

    def saved(self, name: str, means: str) -> Saved | None:
        """How many times less a row took to come to the distance to which the base came in the end; of the means.

        None where it did not come to that, or no time was taken.
        """
        own, base = self.curves(name, means), self.curves(self.base, means)
        if own is None or base is None:
            return None
        goal = spread([points[-1].distance for points in base]).mean
        reached = over_seeds(own, lambda points: spent_for(points, goal))
        if reached is None:
            return None
        early = any(points[0].distance <= goal for points in own)
        return Saved(base[0][-1].spent / reached.mean, early)


def seconds_of_picture(turn: Found) -> float:
    """Of training or drawing, from what a turn found.

    Of a training step its samples are as many as are told; a drawing's seconds are of one picture already.
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
