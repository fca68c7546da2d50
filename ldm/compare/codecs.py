"""A comparison of codecs: counted, timed and judged, row by row, stage by stage."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ldm.accel import pick_device
from ldm.compare.counted import count_all
from ldm.compare.isolated import in_own_process
from ldm.compare.learning import Learning
from ldm.compare.machine import machine
from ldm.compare.material import Material, make_noise, material_of, noise_of
from ldm.compare.others import others_at_work
from ldm.compare.ready import NOWHERE, Ready, make_ready
from ldm.compare.rows import Row, rows_of
from ldm.compare.settings import CodecComparison, TimingConfig
from ldm.compare.stages import Found, Stages
from ldm.compare.timed import Timing, time_drawing, time_peak, time_training
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
    material = pictures_of(told)
    return _Comparison(told, material, rows_of(told, material)).found()


def count_codecs(told: CodecComparison) -> Found:
    """What there is to be said before anything is trained or timed; nothing is written."""
    material = pictures_of(told)
    rows = rows_of(told, material)
    return {**_asked(told, material), "counted": _by_name(rows, count_all(rows))}


def pictures_of(told: CodecComparison) -> Material:
    """The pictures of a comparison; those of noise are yet to be made.

    Raises:
        UserError: see ``ldm.compare.material.material_of``.
    """
    if told.data is None:
        assert told.side is not None
        return noise_of(told.output, told.side)
    return material_of(told.data, told.held_out, told.side, told.quality)


def _asked(told: CodecComparison, material: Material) -> Found:
    return {"asked": told.model_dump(mode="json"), "side": material.side, "rows": [row.name for row in told.rows]}


def _by_name(rows: Sequence[Row], found: Sequence[Found]) -> dict[str, Found]:
    return {row.name: one for row, one in zip(rows, found, strict=True)}


class _Comparison:
    """One comparison at work."""

    def __init__(self, told: CodecComparison, material: Material, rows: list[Row]) -> None:
        self._told, self._material, self._rows = told, material, rows
        self._machine = machine()
        self._stages = Stages(told.output, self._totals())

    def _totals(self) -> Counter[str]:
        """How many stages there are, of each row and of all together."""
        told, found = self._told, Counter({"": 1})
        if told.timing is not None:
            found[""] += told.timing.rounds
        if told.quality is not None:
            found[""] += 1 + (told.quality.judge is not None)
        for row in self._rows:
            latent = row.shape.vae is not None
            found[row.name] += (row.new_vae is not None) + (latent or row.reads_text)
            if told.quality is not None:
                found[row.name] += latent + len(told.quality.seeds) * len(told.marks)
        return found

    def found(self) -> Found:
        """Everything."""
        told, material = self._told, self._material
        make_noise(material)
        of = told.model_dump(mode="json", exclude={"output", "quality", "timing", "published"})
        of |= {"side": material.side, "device": pick_device().type}
        counted = self._stages.find("counting", of, lambda _: {"rows": count_all(self._rows)})["rows"]
        pictures = material.as_told()
        learning = None if told.quality is None else Learning(told, material, pictures, self._stages)
        ready = [make_ready(row, pictures, self._stages) for row in self._rows]
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

    def _timed(self, ready: Sequence[Ready], timing: TimingConfig) -> list[Found]:
        """Turn by turn, all kinds of all rows; a turn that was broken off is done again, as ratios are within it."""
        speed = Timing(timing.steps, timing.batch_size, timing.batches, self._told.draw, timing.draw_steps)
        told = timing.model_dump(exclude={"rounds"}) | {"draw": self._told.draw.model_dump()}
        rows = [{"name": one.row.name, "codec": one.codec, **one.row.learns()} for one in ready]
        of = {"machine": self._machine, "timing": told, "rows": rows, "side": self._material.side}
        of |= {"train": self._told.train.model_dump()}
        found = []
        for turn in range(timing.rounds):
            shifted = [*ready[turn % len(ready) :], *ready[: turn % len(ready)]]
            title = f"timing, turn {turn + 1} of {timing.rounds}"
            work = functools.partial(self._turn, shifted, timing, speed)
            found.append(self._stages.find(title, of | {"turn": turn}, work))
        return found

    def _turn(self, ready: Sequence[Ready], timing: TimingConfig, speed: Timing, _: str) -> Found:
        """Every row in turn.

        Returns:
            ``peak`` of the machine; ``rows``, by kind; ``others``, the share of all processors that others used.
        """
        with others_at_work() as others:
            peak = in_own_process("the machine's peak", time_peak, self._told.train.mixed_precision)
            found: dict[str, dict[str, Found]] = {}
            for one in ready:
                found[one.row.name] = {
                    kind: in_own_process(f"{one.row.name}: {kind}", work, run, speed)
                    for kind, run, work in self._kinds(one, timing)
                }
            return {"peak": peak["flops"], "rows": found, "others": others()}

    def _kinds(self, one: Ready, timing: TimingConfig) -> Iterator[tuple[str, DiffusionRun, Probe]]:
        steps, nowhere = self._told.train.steps, self._told.output / NOWHERE
        if timing.training:
            yield TRAINING, one.run(nowhere, 0, steps), time_training
        if timing.training and timing.encoding and one.vae is not None:
            yield ENCODING, one.run(nowhere, 0, steps, cached=False), time_training
        if timing.drawing:
            yield DRAWING, one.run(nowhere, 0, steps, cached=False), time_drawing
