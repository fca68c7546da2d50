"""What a run says while it goes: a JSONL log, a loss plot, and trackers where asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole


class Journal:
    """The log of a run, ``log.jsonl``: one JSON object a line, each with its ``step``.

    Lines have numbers, or an ``event`` and what there is to say about it.
    """

    def __init__(
        self, run: Path, first_step: int, track: Callable[[dict[str, float], int], None] | None = None
    ) -> None:
        """Open the log; lines after ``first_step``, of steps that will be done again, are dropped.

        Args:
            run: the run's folder.
            first_step: steps that are done.
            track: is given the numbers of every line, and their step.
        """
        self.path = run / "log.jsonl"
        self.records = [r for r in read_log(self.path) if r["step"] <= first_step]
        self._plot_path, self._track, self._trackers = run / "loss.png", track, run / "tensorboard"
        text = "".join(json.dumps(r) + "\n" for r in self.records)
        with _trouble(self.path):
            write_whole(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush, so that a killed run loses none."""
        self.records.append(record)
        with _trouble(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._track is not None and "event" not in record:
            with _trouble(self._trackers):
                self._track({name: value for name, value in record.items() if name != "step"}, record["step"])

    def plot(self) -> None:
        """Draw ``loss.png``: every quantity whose name speaks of loss, over steps."""
        from matplotlib.figure import Figure  # the object interface: no global state, no display

        names = [n for n in dict.fromkeys(k for r in self.records for k in r) if "loss" in n or n == "reconstruction"]
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name in names:
            points = [(r["step"], r[name]) for r in self.records if r.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
        positive = all(r[n] > 0 for r in self.records for n in names if r.get(n) is not None)
        axes.set(xlabel="step", ylabel="mean over the interval", yscale="log" if positive else "linear")
        axes.grid(alpha=0.3)
        if names:
            axes.legend()
        with _trouble(self._plot_path):
            write_whole(self._plot_path, lambda path: figure.savefig(path, dpi=110, format="png"))


def _trouble(path: Path) -> contextlib.AbstractContextManager[None]:
    return disk_trouble(str(path), "; the last checkpoint is intact")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a killed run left unfinished is not one.

    Raises:
        UserError: another line is damaged.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            records.append(_record(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is damaged: {error}; delete the line to go on") from error
    return records


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("it has no step")
    return record
