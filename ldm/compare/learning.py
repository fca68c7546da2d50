"""The learning of all rows, from several seeds: how good their pictures are for what was spent."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from ldm.accel import pick_device
from ldm.compare.material import Material
from ldm.compare.quality import Jury, make_judge, model_after
from ldm.compare.ready import Ready
from ldm.compare.settings import CodecComparison
from ldm.compare.stages import Found, Stages


class Learning:
    """The judged half of a comparison: the judge and real pictures first, as mistakes in them are soon found.

    Args:
        told: the comparison.
        material: its pictures.
        pictures: what depends on them depends on.
        stages: keeps what is found; what is learned is the same on every machine but for rounding, and not done again.
    """

    def __init__(self, told: CodecComparison, material: Material, pictures: Found, stages: Stages) -> None:
        assert told.quality is not None
        self._told, self._quality, self._material = told, told.quality, material
        self._pictures, self._stages = pictures, stages
        self._judge = self._trained_judge()
        how = told.quality.model_dump(mode="json", exclude={"seeds", "points", "judge"})
        draw = told.draw.model_dump()
        self._judging = {"pictures": pictures, **how, "draw": draw, "judge": self._judge}
        self._real = stages.find("real pictures", self._judging, lambda _: self._jury.real())

    def _trained_judge(self) -> Found | None:
        told = self._quality.judge
        if told is None:
            return None
        return self._stages.find(
            "a judge",
            {"pictures": self._pictures, **told.model_dump()},
            lambda name: make_judge(self._material, told, self._judges / f"{name}.safetensors"),
            needs=lambda found: [self._judges / found["place"]],
        )

    @property
    def _judges(self) -> Path:
        return self._stages.folder / "judges"

    @functools.cached_property
    def _jury(self) -> Jury:
        """Opened where something is left to be judged."""
        judge = None if self._judge is None else self._judges / self._judge["place"]
        return Jury(self._told, self._material, judge, pick_device())

    def found(self, ready: Sequence[Ready]) -> Found:
        """Judge, and train what is to be judged.

        Returns:
            ``judge``, if one was trained; ``real``, what real pictures come to; ``ceilings``, by row, what VAEs lose;
            ``points``, by row and seed, what was found at each mark.
        """
        ceilings = {one.row.name: self._ceiling(one) for one in ready if one.vae is not None}
        points: dict[str, list[list[Found]]] = {one.row.name: [] for one in ready}
        for seed in self._quality.seeds:
            for one in ready:
                points[one.row.name].append([self._point(one, seed, mark) for mark in self._told.marks])
        return {"judge": self._judge, "real": self._real, "ceilings": ceilings, "points": points}

    def _ceiling(self, one: Ready) -> Found:
        vae, title, row = one.vae, f"{one.row.name}: what its VAE loses", one.row.name
        assert vae is not None
        of = self._judging | {"codec": one.codec}
        return self._stages.find(
            title, of, lambda name: self._jury.ceiling(vae, self._sheet(name)), row=row, needs=self._its_sheet
        )

    def _point(self, one: Ready, seed: int, mark: int) -> Found:
        """What a model that was trained to a mark draws."""
        of = {"pictures": self._pictures, "codec": one.codec, "seed": seed, **one.row.learns()}
        name = self._stages.name(f"{one.row.name} {seed}", of)
        place = self._stages.folder / "models" / f"{name}-{mark}"

        def work(sheet: str) -> Found:
            if not place.is_dir():
                model_after(one.run(self._stages.folder / "runs" / name, seed, mark), place)
            return {"step": mark, "model": place.name, **self._jury.model(place, self._sheet(sheet))}

        title, row = f"{one.row.name}: seed {seed}, {mark} steps", one.row.name
        return self._stages.find(title, self._judging | {"run": of, "mark": mark}, work, row=row, needs=self._its_sheet)

    def _sheet(self, name: str) -> Path:
        return self._stages.folder / "pictures" / f"{name}.png"

    def _its_sheet(self, found: Found) -> list[Path]:
        return [self._stages.folder / "pictures" / found["sheet"]]
