"""An estimate as text: tables that a terminal shows."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cost.estimate import Stage
from ldm.cost.measuring import Watched
from ldm.cost.memory import Memory
from ldm.cost.money import money_in_words
from ldm.cost.plans import Estimate, Published
from ldm.cost.step import Part

_NOT_IN_IT = "not in it: waiting for data, exchange between devices, pictures and checkpoints on the way"
_KINDS = ("weights", "gradients", "optimiser", "average", "activations", "working", "gathered", "holes", "beside")
_HALVES = {"VAE encoder": "VAE"}  # the half of a part that a step runs


def in_words(found: Estimate) -> str:
    """An estimate, to print."""
    devices = found.stages[0].devices
    lines = [f"{found.title}: task {found.task}, {devices} device{'s' * (devices > 1)}, {found.parallel}"]
    shown: object = None
    for stage in found.stages:
        lines += ["", f"{stage.title}: {stage.steps:,} steps of {stage.pictures:,} pictures"]
        if (stage.networks, stage.counted.parts) != shown:
            lines += _networks(stage)
        shown = (stage.networks, stage.counted.parts)
        lines += ["", *_memory(stage), _time(stage)]
    lines += ["", _whole(found)]
    if found.speed is None:
        lines.append("no time: --device-tflops says what devices do, or --measure what this machine does")
    else:
        lines.append(_NOT_IN_IT)
    lines += [_beside(figure) for figure in found.published]
    return "\n".join([*lines, *(f"assumed: {note}" for note in found.notes)])


def measured_in_words(watched: Watched, predicted: Stage, peak: float) -> str:
    """What was measured, beside what the operators' prices make of the same step.

    Args:
        watched: the step.
        predicted: the same on paper.
        peak: the most operations a second that this machine does.
    """
    of = watched.rehearsed
    seconds = of.seconds - of.waited
    reached = of.flops / seconds
    most = amount(peak, "FLOP/s")
    lines = [
        f"measured: {seconds:.3g} s a step, {of.waited:.2g} s more of waiting for data, {_bytes(watched.memory)}",
        f"reached: {amount(reached, 'FLOP/s')}, {reached / peak:.0%} of the {most} that this machine does at the best",
    ]
    if predicted.seconds is not None:
        lines.append(f"on paper: {predicted.seconds:.3g} s a step, {_bytes(predicted.memory.total)}")
    return "\n".join(lines)


def amount(value: float, unit: str) -> str:
    """With a prefix of the SI: ``1.25 TFLOP``."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} Z{unit}"


def _networks(stage: Stage) -> list[str]:
    """The networks, and what a step takes of each."""
    rows = [("", "parameters", "trained", "picture, forward", "step, forward", "step, backward")]
    parts = dict(stage.counted.parts)
    for name, network in stage.networks.items():
        part = parts.pop(_HALVES.get(name, name), None)
        rows.append((name, amount(network.parameters, ""), *_of_step(stage, part, network.flops)))
    for name, part in parts.items():
        once = part.forward / stage.counted.batch
        rows.append((name, amount(part.parameters, ""), *_of_step(stage, part, once)))
    return [*_table(rows), f"numbers of a picture: {stage.counted.numbers:,}"]


def _of_step(stage: Stage, part: Part | None, once: float) -> tuple[str, str, str, str]:
    """Numbers trained, operations for a picture, and those of a step there and back."""
    if part is None:
        return "", amount(once, "FLOP"), "", ""
    passes = [amount(stage.accumulation * flops, "FLOP") if flops else "" for flops in (part.forward, part.backward)]
    return amount(part.trained, "") if part.trained else "", amount(once, "FLOP"), passes[0], passes[1]


def _memory(stage: Stage) -> list[str]:
    memory: Memory = stage.memory
    kinds = [(kind, getattr(memory, kind)) for kind in _KINDS if getattr(memory, kind)]
    names = ("memory of a device", *(kind for kind, _ in kinds), "in all")
    return _table([names, ("", *(_bytes(size) for _, size in kinds), _bytes(memory.total))])


def _time(stage: Stage) -> str:
    flops = amount(stage.counted.flops * stage.accumulation, "FLOP")
    if stage.seconds is None or stage.rate is None:
        return f"step of a device: {flops}"
    done = amount(stage.counted.flops * stage.accumulation / stage.seconds, "FLOP/s")
    return f"step of a device: {flops} in {stage.seconds:.3g} s, {done}, {_figure(stage.rate)} pictures/s and device"


def _whole(found: Estimate) -> str:
    told = f"whole: {amount(found.flops, 'FLOP')}"
    if found.device_hours is not None and found.hours is not None:
        devices = found.stages[0].devices
        told += f" in {_duration(found.hours)}"
        told += f" on {devices} devices, {_figure(found.device_hours)} hours of one" if devices > 1 else ""
    money = money_in_words(found.device_hours, found.price)
    return told if money is None else f"{told}; {money}"


def _beside(figure: Published) -> str:
    return (
        f"published: {figure.what}: {_figure(figure.predicted)} predicted, {_figure(figure.published)} published, "
        f"{figure.error:+.0%} ({figure.source})"
    )


def _duration(hours: float) -> str:
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{_figure(hours / size)} {unit}"
    return f"{_figure(hours * 3600)} seconds"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines
