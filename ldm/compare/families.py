"""Generative families side by side: what each takes to train and to draw with, how good its pictures are, how various.

Trainings are stages, known by what is learned, from what and with which seed: rows share them, and an interrupted
comparison goes on with what is missing. Seeds share nothing: an autoencoder that a diffusion model stands on is trained
for each, so that the spread over seeds is that of the whole row. Seed follows seed and within it row follows row, so
that a machine that slows down slows all rows alike.

A seed diverges where a loss or gradient is not finite, or where what it draws is much farther from real pictures than
what the median seed of its row does; how much farther is a setting.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ldm.compare.drawers import open_drawer
from ldm.compare.family_jury import FamilyJury, keep_pictures
from ldm.compare.family_runs import Row, Training, rows_of
from ldm.compare.family_settings import FamilyComparison
from ldm.compare.family_work import draw_timed, train_once
from ldm.compare.machine import machine
from ldm.compare.material import Material, material_of
from ldm.compare.quality import make_judge
from ldm.compare.stages import Found, Stages
from ldm.weights.model import resolve

NOWHERE = Path(".")  # of runs that are not trained there
DISTANCE = "Fréchet distance"
_SPEED = ("device", "threads", "drawn in")  # what of a machine seconds depend on


def compare_families(told: FamilyComparison) -> Found:
    """Do all of a comparison that is not done yet.

    Returns:
        All that was found, as plain data.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal asked for it; the same call goes on from there.
    """
    material = pictures_of(told)
    return _Comparison(told, material, rows_of(told, material)).found()


def count_families(told: FamilyComparison) -> Found:
    """What there is to be said before anything is trained."""
    material = pictures_of(told)
    return {**_asked(told, material), "counted": {row.name: row.counted() for row in rows_of(told, material)}}


def pictures_of(told: FamilyComparison) -> Material:
    """The pictures of a comparison.

    Raises:
        UserError: see ``ldm.compare.material.material_of``.
    """
    return material_of(told.data, told.held_out, None, told.quality)


def _asked(told: FamilyComparison, material: Material) -> Found:
    return {
        "asked": told.model_dump(mode="json"),
        "side": material.side,
        "rows": [row.name for row in told.rows],
    }


class _Comparison:
    """One comparison at work."""

    def __init__(self, told: FamilyComparison, material: Material, rows: list[Row]) -> None:
        self._told, self._quality, self._material, self._rows = told, told.quality, material, rows
        self._machine = machine()
        seeds = len(told.quality.seeds)
        totals = {row.name: seeds * (len(row.training.line) + 2) for row in rows}
        self._stages = Stages(told.output, {"": 1 + (told.quality.judge is not None) + seeds, **totals})
        self._speed = {name: self._machine[name] for name in _SPEED}

    def found(self) -> Found:
        """Everything."""
        judge = self._judge()
        counted = self._stages.find("counting", {"rows": [self._on_paper(row) for row in self._rows]}, self._count)
        real: list[Found] = []
        seeds: dict[str, list[Found]] = {row.name: [] for row in self._rows}
        for seed in self._quality.seeds:
            real.append(self._real(seed))
            for row in self._rows:
                seeds[row.name].append({"seed": seed, **self._seed(row, seed)})
        for of_row in seeds.values():
            mark_diverged(of_row, self._quality.diverged)
        return {
            **_asked(self._told, self._material),
            "machine": self._machine,
            "judge": judge,
            "counted": counted,
            "real": real,
            "seeds": seeds,
        }

    def _on_paper(self, row: Row) -> Found:
        """All that its counts depend on."""
        runs = [each.run.model_dump(mode="json", exclude={"output"}) for each in row.training.line]
        config = row.config.model_dump(mode="json", exclude={"train"})
        return {"row": config, "runs": runs, "side": row.side, "pictures": row.pictures}

    def _count(self, _: str) -> Found:
        return {row.name: row.counted() for row in self._rows}

    # ---------------------------------------------------------------------------- one seed

    def _real(self, seed: int) -> Found:
        """What real pictures come to."""
        of = self._judging | {"seed": seed}
        return self._stages.find(
            f"real pictures, seed {seed}",
            of,
            lambda name: self._jury.real(seed, self._drawn / f"{name}.safetensors"),
            needs=self._its_pictures,
        )

    def _seed(self, row: Row, seed: int) -> Found:
        """Train, draw and judge a row."""
        name, trained = "", []
        for training in row.training.line:
            name, found = self._train(row, training, seed)
            trained.append({"title": training.title, **found})
            if "diverged" in found:
                return {"trained": trained, "diverged": found["diverged"]}
        drawn = self._draw(row, name, seed)
        judged = self._stages.find(
            f"{row.name}, seed {seed}: judging",
            self._judging | {"drawn": drawn["pictures"]},
            lambda _: self._jury.drawn(self._drawn / drawn["pictures"]),
            row=row.name,
        )
        return {"trained": trained, "drawn": drawn, **judged}

    def _train(self, row: Row, training: Training, seed: int) -> tuple[str, Found]:
        """Train what a row begins from, or the row itself: the name of its folder, and what was found."""
        base = None if training.base is None else self._name(training.base, seed)
        name, runs = self._name(training, seed), self._runs
        run = training.at(runs / name, seed, self._material.train, None if base is None else runs / base)
        title = f"{training.title}, seed {seed}: training"
        of = {"run": name, "machine": self._speed}
        return name, self._stages.find(
            title, of, lambda _: train_once(run), row=row.name, needs=lambda _: [runs / name]
        )

    def _name(self, training: Training, seed: int) -> str:
        """The folder of a training: a digest of all that it depends on, what it begins from among it."""
        base = None if training.base is None else Path(self._name(training.base, seed))
        run = training.at(NOWHERE, seed, self._material.train, base)
        of = {"run": run.model_dump(mode="json", exclude={"output"}), "machine": self._speed}
        return self._stages.name(f"{training.title} {seed}", of)

    def _draw(self, row: Row, run: str, seed: int) -> Found:
        """Draw pictures against the clock, and keep them."""
        count, batch_size = self._quality.count, self._quality.batch_size
        how, title = row.config.draw, f"{row.name}, seed {seed}: drawing"

        def work(name: str) -> Found:
            drawer = open_drawer(row.training.run, resolve(self._runs / run), how)
            pictures, seconds = draw_timed(drawer, count, batch_size, title)
            place = self._drawn / f"{name}.safetensors"
            keep_pictures(place, pictures)
            return {"pictures": place.name, "seconds": seconds, "together": drawer.together(min(batch_size, count))}

        of = {"trained": run, "draw": None if how is None else how.model_dump(), "machine": self._speed}
        of |= {"count": count, "batch_size": batch_size}
        return self._stages.find(title, of, work, row=row.name, needs=self._its_pictures)

    @property
    def _runs(self) -> Path:
        return self._stages.folder / "runs"

    @property
    def _drawn(self) -> Path:
        return self._stages.folder / "drawn"

    def _its_pictures(self, found: Found) -> list[Path]:
        return [self._drawn / found["pictures"]]

    # ---------------------------------------------------------------------------- judging

    def _judge(self) -> Found | None:
        """Train the judge, and have it join the jury."""
        found, told, own, data = None, self._quality.judge, (), {"data": self._material.as_told()}
        if told is not None:
            folder = self._stages.folder / "judges"
            found = self._stages.find(
                "a judge",
                data | told.model_dump(),
                lambda name: make_judge(self._material, told, folder / f"{name}.safetensors"),
                needs=lambda found: [folder / found["place"]],
            )
            own = (f"judge:{folder / found['place']}",)
        self._networks = (*own, *self._quality.features)
        features = {"features": self._quality.features, "judge": found, "count": self._quality.count}
        self._judging = data | features
        return found

    @functools.cached_property
    def _jury(self) -> FamilyJury:
        """Opened where something is left to be judged."""
        return FamilyJury(self._material, self._networks, self._quality.count)


def mark_diverged(seeds: Sequence[Found], times: float) -> None:
    """Tell of each seed of a row whether and why it diverged; see the module."""
    distances = [distance_of(seed["metrics"]) for seed in seeds if "metrics" in seed]
    for seed in seeds:
        if "metrics" in seed:
            worse = distance_of(seed["metrics"]) / median(distances)
            seed["diverged"] = f"{worse:.1f} times the median distance" if worse > times else None


def distance_of(metrics: Sequence[Any]) -> float:
    """The distance in the first features."""
    return next(metric["value"] for metric in metrics if metric["name"] == DISTANCE)
