"""The learning of all rows, from several seeds: how good their pictures are for what was spent."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.accel import pick_device
from ldm.compare.quality import Jury, make_judge, model_after
from ldm.compare.ready import NOWHERE, Ready
from ldm.compare.rows import Material
from ldm.compare.settings import CodecComparison, QualityConfig
from ldm.compare.stages import Found, Stages


class Learning:
    """The judged half of a comparison.

    Args:
        told: the comparison.
        material: its pictures.
        stages: keeps what is found; what is learned is the same on every machine but for rounding, and not done again.
    """

    def __init__(self, told: CodecComparison, material: Material, stages: Stages) -> None:
        assert told.quality is not None
        self._told, self._quality, self._material = told, told.quality, material
        self._stages = stages

    def found(self, ready: Sequence[Ready]) -> Found:
        """Judge, and train what is to be judged.

        Returns:
            ``judge``, if one was trained; ``real``, what real pictures come to; ``ceilings``, by row, what VAEs lose;
            ``points``, by row and seed, what was found at each mark.
        """
        judge = self._judge(self._quality)
        real = self._stages.find("real pictures", self._judging, lambda _: self._jury.real())
        ceilings = {one.row.name: self._ceiling(one) for one in ready if one.vae is not None}
        points: dict[str, list[list[Found]]] = {one.row.name: [] for one in ready}
        for seed in self._quality.seeds:
            for one in ready:
                points[one.row.name].append([self._point(one, seed, mark) for mark in self._told.marks])
        return {"judge": judge, "real": real, "ceilings": ceilings, "points": points}

    def _judge(self, quality: QualityConfig) -> Found | None:
        """Train the judge, and have it join the jury."""
        found, place, told = None, None, quality.judge
        data = {"data": self._material.as_told()}
        if told is not None:
            folder = self._stages.folder / "judges"
            found = self._stages.find(
                "a judge",
                data | told.model_dump(),
                lambda name: make_judge(self._material, told, folder / f"{name}.safetensors"),
            )
            place = folder / found["place"]
        self._place = place
        how = quality.model_dump(mode="json", exclude={"seeds", "points", "judge"})
        self._judging = data | how | {"judge": found, "draw": self._told.draw.model_dump()}
        return found

    @functools.cached_property
    def _jury(self) -> Jury:
        """Opened where something is left to be judged."""
        return Jury(self._told, self._material, self._place, pick_device())

    def _ceiling(self, one: Ready) -> Found:
        vae, title = one.vae, f"{one.row.name}: what its VAE loses"
        assert vae is not None
        of = self._judging | {"vae": vae.name}
        return self._stages.find(title, of, lambda name: self._jury.ceiling(vae, self._sheet(name)))

    def _point(self, one: Ready, seed: int, mark: int) -> Found:
        """What a model that was trained to a mark draws."""
        of = _without_length(one, seed)
        name = self._stages.name(f"{one.row.name} {seed}", of)
        place = self._stages.folder / "models" / f"{name}-{mark}"

        def work(sheet: str) -> Found:
            if not place.is_dir():
                model_after(one.run(self._stages.folder / "runs" / name, seed, mark), place)
            return {"step": mark, "model": place.name, **self._jury.model(place, self._sheet(sheet))}

        title = f"{one.row.name}: seed {seed}, {mark} steps"
        return self._stages.find(title, self._judging | {"run": of, "mark": mark}, work)

    def _sheet(self, name: str) -> Path:
        return self._stages.folder / "pictures" / f"{name}.png"


def _without_length(one: Ready, seed: int) -> dict[str, Any]:
    """What a training depends on, whatever its number of steps."""
    told = one.run(NOWHERE, seed, 1).model_dump(mode="json", exclude={"output"})
    return told | {"train": {key: value for key, value in told["train"].items() if key != "steps"}}
