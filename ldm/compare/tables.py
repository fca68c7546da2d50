"""What a comparison of codecs takes, as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ldm.compare.codecs import DRAWING, ENCODING, TRAINING
from ldm.compare.equal import Spread
from ldm.compare.results import Results, mean_peak
from ldm.evaluate.report import Table

NOTHING = "–"
BUSY = 0.05  # share of the processors from which on other programs are spoken of


def told(found: Spread | float | None, unit: str = "") -> str:
    """A figure with its spread, for people: three digits, and of the spread two."""
    if found is None:
        return NOTHING
    if isinstance(found, float | int):
        return f"{_digits(found, 3)}{unit}"
    if found.std is None:
        return told(found.mean, unit)
    return f"{_digits(found.mean, 3)} ± {_digits(found.std, 2)}{unit}"


def _digits(value: float, digits: int) -> str:
    """Without an exponent where it is large."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def times(found: Spread | float | None) -> str:
    """A ratio, for people."""
    return told(found, "x")


def counted_table(results: Results) -> dict[str, Table]:
    """What the rows take on paper."""
    parts = _text_parts(results)
    header = [
        "",
        "numbers diffused",
        "U-Net, M",
        "VAE, M",
        *(f"{part}, M" for part in parts),
        "training: GFLOPs of a picture",
        "TFLOPs of a step",
        "encoding: GFLOPs of a picture",
        "drawing: GFLOPs of a picture",
        "of them decoding",
        *(f"of them {part}" for part in parts),
        "activations of a batch, MiB",
    ]
    rows = [_counted(results, name, parts) for name in results.names]
    notes = [
        "M: million parameters. Operations: a multiplication and an addition are two; norms and activations are not "
        "counted. Training: forward and backward passes of the U-Net, latents and texts from a cache; encoding is "
        "what a "
        "picture takes without one.",
        f"A step has {results.batch} pictures. Drawing: {drawing_in_words(results)}. Activations: kept for the "
        "backward "
        f"pass of {results.counted(results.base)['batch']} pictures.",
    ]
    return {"counted": Table("Counted", header, rows, notes=notes)}


def _text_parts(results: Results) -> list[str]:
    return [part for part in results.counted(results.base)["parameters"] if part.startswith("text")]


def _counted(results: Results, name: str, parts: Sequence[str]) -> list[str]:
    one = results.counted(name)
    figures = [
        one["parameters"]["U-Net"] / 1e6,
        sum(value for part, value in one["parameters"].items() if part.startswith("VAE")) / 1e6,
        *(one["parameters"][part] / 1e6 for part in parts),
        results.training_flops(name) / 1e9,
        results.training_flops(name) * results.batch / 1e12,
        one["encoding"] / 1e9,
        results.drawing_flops(name) / 1e9,
        one["drawing"].get("VAE decoder", 0) / 1e9,
        *(one["drawing"].get(part, 0) / 1e9 for part in parts),
        sum(one["activations"].values()) / 2**20,
    ]
    return [name, f"{one['numbers']:,}", *(told(figure) if figure else NOTHING for figure in figures)]


def drawing_in_words(results: Results) -> str:
    """How pictures are drawn."""
    draw = results.data["asked"]["draw"]
    guided = f", guidance {draw['guidance']:g}" if draw["guidance"] != 1 else ""
    return f"{draw['sampler']}, {draw['steps']} steps{guided}"


def saving_table(results: Results) -> dict[str, Table]:
    """How many times less each row takes: on paper, and by the clock."""
    header = ["", "training: fewer operations", "faster", "the same, encoding in each step: fewer operations", "faster"]
    header += ["drawing: fewer operations", "faster"]
    rows = [_saving(results, name) for name in results.names]
    notes = [
        f"Times {results.base}; faster: more pictures a second, in the same turn. A model that is trained without a "
        "cache "
        "of latents encodes each picture in each step, as the training in the latent diffusion paper did."
    ]
    if not results.is_timed:
        notes = [f"Times {results.base}. Nothing was timed."]
    return {"saving": Table(f"How many times cheaper than {results.base}", header, rows, notes=notes)}


def _saving(results: Results, name: str) -> list[str]:
    base, is_base = results.base, name == results.base
    encoding = results.counted(name)["encoding"]
    training, drawing = results.training_flops(name), results.drawing_flops(name)
    faster = [
        results.times_faster(name, TRAINING),
        results.times_faster(name, ENCODING, base, TRAINING),
        results.times_faster(name, DRAWING),
    ]
    clock = [times(1.0 if is_base and found else found) for found in faster]
    again = [times(results.training_flops(base) / (training + encoding)), clock[1]] if encoding else [NOTHING, NOTHING]
    paper = times(results.training_flops(base) / training), times(results.drawing_flops(base) / drawing)
    return [name, paper[0], clock[0], *again, paper[1], clock[2]]


def timed_table(results: Results) -> dict[str, Table]:
    """What the rows take on this machine."""
    header = [
        "",
        "training: pictures/s",
        "encoding in each step: pictures/s",
        "training: GFLOP/s reached",
        "of the machine's peak",
        "drawing: s of a picture",
        "of it decoding",
        "training: peak memory, MiB",
        "drawing: peak memory, MiB",
    ]
    rows = [_timed(results, name) for name in results.names]
    return {"timed": Table("Timed", header, rows, notes=_conditions(results))}


def _conditions(results: Results) -> list[str]:
    timing, draw = results.data["asked"]["timing"], results.data["asked"]["draw"]
    turns = [turn for name in results.names for turn in results.turns(name, DRAWING)]
    together = turns[0]["together"] if turns else 0
    drawing = drawing_in_words(results)
    if timing["draw_steps"] and timing["draw_steps"] < draw["steps"]:
        drawing += f", of which {timing['draw_steps']} are timed, the others taken to last as long"
    notes = [
        f"Mean and standard deviation over {timing['rounds']} turns, in each of which every row is measured in a "
        f"process of its own. A step trains {results.batch} pictures; {together} are drawn together ({drawing}).",
        f"The machine's peak: {mean_peak(results) / 1e9:,.0f} GFLOP/s, measured in each turn on large products and "
        "convolutions in the precision of training.",
    ]
    if any(turn["reserved"] is not None for turn in turns):
        notes.append("Memory: the most of all turns, allocated / reserved on the GPU.")
    else:
        beyond = "in brackets beyond Python, its libraries and, in drawing, the model"
        notes.append(f"Memory: the most of all turns, resident; {beyond}.")
    others = results.others
    if others is not None and others > BUSY:
        notes.append(f"Other programs were at work: they took up to {others:.0%} of the processors in a turn.")
    return notes


def _timed(results: Results, name: str) -> list[str]:
    def over(kind: str, find: Callable[[dict[str, Any]], float]) -> str:
        return told(results.over_turns(name, kind, find))

    def rate(turn: dict[str, Any]) -> float:
        return turn["samples"] / turn["seconds"]

    peak = mean_peak(results)
    reached = results.over_turns(name, TRAINING, lambda turn: turn["flops"] / turn["seconds"] / 1e9)
    decodes = bool(results.counted(name)["encoding"])
    return [
        name,
        over(TRAINING, rate),
        over(ENCODING, rate),
        told(reached),
        NOTHING if reached is None else f"{reached.mean * 1e9 / peak:.0%}",
        over(DRAWING, lambda turn: turn["seconds"]),
        over(DRAWING, lambda turn: turn["decoding"]) if decodes else NOTHING,
        _memory(results.turns(name, TRAINING)),
        _memory(results.turns(name, DRAWING)),
    ]


def _memory(turns: Sequence[dict[str, Any]]) -> str:
    known = [turn for turn in turns if turn["memory"] is not None]
    if not known:
        return NOTHING
    most = max(known, key=lambda turn: turn["memory"])
    beside = f" ({most['beyond']:,.0f})" if most["reserved"] is None else f" / {most['reserved']:,.0f}"
    return f"{most['memory']:,.0f}{beside}"


def published_table(results: Results) -> dict[str, Table]:
    """Others' ratios beside ours; empty where there are none for these pictures."""
    wanted = [one for one in results.data["asked"]["published"] if one["side"] in (None, results.data["side"])]
    header = ["times as many pictures a second", "published", "here", "operations, here", "where"]
    rows = [row for one in wanted for row in _beside(results, one)]
    notes = [
        "Published figures are of other networks on other machines; what can be compared is the order. Ratios here "
        "are below "
        "those of operations where the smaller row leaves more of the machine idle, or spends more of its time on "
        "what is "
        "not multiplied."
    ]
    return {"published": Table("Beside what was published", header, rows, notes=notes)} if rows else {}


def _beside(results: Results, one: dict[str, Any]) -> Iterator[list[str]]:
    """A ratio of somebody else's, and the same of ours; in training with latents from a cache, and without."""
    row, base, what = one["row"], one["base"], one["what"]
    name, theirs = f"{what}, {row} to {base}", times(one["ratio"])
    if what == "sampling":
        flops = results.drawing_flops(base) / results.drawing_flops(row)
        yield [name, theirs, times(results.times_faster(row, DRAWING, base)), times(flops), one["where"]]
        return
    whole, once = results.training_flops(base), results.training_flops(row)
    encoding = once + results.counted(row)["encoding"]
    ours = results.times_faster(row, ENCODING, base, TRAINING)
    yield [f"{name}, encoding in each step", theirs, times(ours), times(whole / encoding), one["where"]]
    ours = results.times_faster(row, TRAINING, base)
    yield [f"{name}, latents kept", theirs, times(ours), times(whole / once), one["where"]]
