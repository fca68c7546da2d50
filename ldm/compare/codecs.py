"""A comparison of codecs: counted, timed and judged, row by row, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ldm.compare.counted import count_all
from ldm.compare.isolated import in_own_process
from ldm.compare.learning import Learning
from ldm.compare.machine import machine
from ldm.compare.ready import NOWHERE, Ready, make_ready
from ldm.compare.rows import Material, Row, material_of, rows_of
from ldm.compare.settings import CodecComparison, TimingConfig
from ldm.compare.stages import Found, Stages
from ldm.compare.timed import Timing, time_drawing, time_training
from ldm.cost.peak import measured_peak
from ldm.training.settings import DiffusionRun

TRAINING, ENCODING, DRAWING = "training", "training, encoding each time", "drawing"
Probe = Callable[[DiffusionRun, Timing], Found]


def compare_codecs(told: CodecComparison) -> Found:
    """Do all of a comparison that is not done yet.

    Returns:
        All that was found, as plain data.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal asked for it; the same call goes on from there.
    """
    material = material_of(told)
    return _Comparison(told, material, rows_of(told, material)).found()


def count_codecs(told: CodecComparison) -> Found:
    """What there is to be said before anything is trained or timed."""
    material = material_of(told)
    rows = rows_of(told, material)
    return {**_asked(told, material), "counted": _by_name(rows, count_all(rows))}


def _asked(told: CodecComparison, material: Material) -> Found:
    return {"asked": told.model_dump(mode="json"), "side": material.side, "rows": [row.name for row in told.rows]}


def _by_name(rows: Sequence[Row], found: Sequence[Found]) -> dict[str, Found]:
    return {row.name: one for row, one in zip(rows, found, strict=True)}


class _Comparison:
    """One comparison at work."""

    def __init__(self, told: CodecComparison, material: Material, rows: list[Row]) -> None:
        self._told, self._material, self._rows = told, material, rows
        self._machine = machine()
        self._stages = Stages(told.output, self._count())

    def _count(self) -> int:
        """How many stages there are."""
        told, rows = self._told, len(self._rows)
        latent = sum(row.shape.vae is not None for row in self._rows)
        stages = 1 + latent + sum(row.new_vae is not None for row in self._rows)
        if told.timing is not None:
            kinds = rows * (told.timing.training + told.timing.drawing)
            kinds += latent * (told.timing.training and told.timing.encoding)
            stages += 1 + told.timing.rounds * kinds
        if told.quality is not None:
            stages += 1 + (told.quality.judge is not None) + latent
            stages += rows * len(told.quality.seeds) * len(told.marks)
        return stages

    def found(self) -> Found:
        """Everything."""
        told, material = self._told, self._material
        of = told.model_dump(mode="json", exclude={"output", "quality", "timing", "published"}) | {
            "side": material.side
        }
        counted = self._stages.find("counting", of, lambda _: {"rows": count_all(self._rows)})["rows"]
        ready = [make_ready(row, self._stages) for row in self._rows]
        learning = None if told.quality is None else Learning(told, material, self._stages)
        return {
            **_asked(told, material),
            "machine": self._machine,
            "counted": _by_name(self._rows, counted),
            "autoencoders": {one.row.name: one.trained for one in ready if one.trained is not None},
            "caches": {one.row.name: one.cached for one in ready if one.cached is not None},
            "timed": None if told.timing is None else self._timed(ready, told.timing),
            "quality": None if learning is None else learning.found(ready),
        }

    # ------------------------------------------------------------------------ timing

    def _timed(self, ready: Sequence[Ready], timing: TimingConfig) -> Found:
        """Turn by turn, all kinds of all rows."""
        peak = self._stages.find("the machine's peak", {"machine": self._machine} | self._precision, self._peak)
        found: dict[str, dict[str, list[Found]]] = {one.row.name: {} for one in ready}
        for turn in range(timing.rounds):
            for one in ready:
                for kind, run, work in self._kinds(one, timing):
                    turns = found[one.row.name].setdefault(kind, [])
                    turns.append(self._turn(f"{one.row.name}: {kind}, turn {turn + 1}", run, work, timing))
        return {"peak": peak["flops"], "turns": found}

    @property
    def _precision(self) -> dict[str, str]:
        return {"mixed_precision": self._told.train.mixed_precision}

    def _peak(self, _: str) -> Found:
        return {"flops": measured_peak(self._told.train.mixed_precision)}

    def _kinds(self, one: Ready, timing: TimingConfig) -> Iterator[tuple[str, DiffusionRun, Probe]]:
        steps = self._told.train.steps
        if timing.training:
            yield TRAINING, one.run(NOWHERE, 0, steps), time_training
        if timing.training and timing.encoding and one.vae is not None:
            yield ENCODING, one.run(NOWHERE, 0, steps, cached=False), time_training
        if timing.drawing:
            yield DRAWING, one.run(NOWHERE, 0, steps, cached=False), time_drawing

    def _turn(self, title: str, run: DiffusionRun, work: Probe, timing: TimingConfig) -> Found:
        speed = Timing(timing.steps, timing.batch_size, timing.batches, self._told.draw, timing.draw_steps)
        told = timing.model_dump(exclude={"rounds"}) | {"draw": self._told.draw.model_dump()}
        of = {
            "run": run.model_dump(mode="json", exclude={"output"}),
            "machine": self._machine,
            "timing": told,
            "title": title,
        }
        return self._stages.find(title, of, lambda _: in_own_process(title, work, run, speed))
