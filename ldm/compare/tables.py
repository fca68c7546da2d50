"""What a comparison of codecs found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ldm.compare.codecs import DRAWING, ENCODING, TRAINING
from ldm.compare.equal import Spread, ratios
from ldm.compare.results import DISTANCE, FLOPS, SECONDS, Results, Saved, seconds_of_picture
from ldm.evaluate.report import Table

NOTHING = "–"
_METRICS = (DISTANCE, "kernel distance", "precision", "recall", "density", "coverage", "class coverage")
_BETTER = {DISTANCE: "↓", "kernel distance": "↓"}


def told(found: Spread | float | None, unit: str = "") -> str:
    """A figure with its spread, for people."""
    if found is None:
        return NOTHING
    if isinstance(found, float | int):
        return f"{found:.3g}{unit}" if found < 1000 else f"{found:,.0f}{unit}"
    if found.std is None:
        return told(found.mean, unit)
    return f"{told(found.mean)} ± {found.std:.2g}{unit}"


def times(found: Spread | float | None) -> str:
    """A ratio, for people."""
    return told(found, "x")


def saved(found: Saved | None) -> str:
    """How many times less, for people."""
    return NOTHING if found is None else f"{'> ' if found.at_least else ''}{times(found.times)}"


def counted_tables(results: Results) -> dict[str, Table]:
    """What the rows take on paper."""
    header = [
        "",
        "numbers diffused",
        "U-Net, M",
        "VAE, M",
        "training a picture, GFLOPs",
        "encoding it",
        "drawing one, GFLOPs",
        "of these decoding",
        "activations of a batch, MiB",
        f"training, times less than {results.base}",
        "drawing",
    ]
    rows = [_counted(results, name) for name in results.names]
    notes = [
        "M: million parameters. Operations: a multiplication and an addition are two; norms and activations are not "
        "counted. Training is forward and backward, with latents and texts from a cache; encoding is what a picture "
        "takes without one.",
        f"Drawing: {_drawing(results)}. Activations: kept for the backward pass of "
        f"{results.counted(results.base)['batch']} pictures.",
    ]
    return {"counted": Table("Counted", header, rows, notes=notes)}


def _counted(results: Results, name: str) -> list[str]:
    one, base = results.counted(name), results.base
    vae = sum(value for part, value in one["parameters"].items() if part.startswith("VAE"))
    decoding = one["drawing"].get("VAE decoder", 0)
    figures = [
        one["parameters"]["U-Net"] / 1e6,
        vae / 1e6,
        results.training_flops(name) / 1e9,
        one["encoding"] / 1e9,
        results.drawing_flops(name) / 1e9,
        decoding / 1e9,
        sum(one["activations"].values()) / 2**20,
        results.training_flops(base) / results.training_flops(name),
        results.drawing_flops(base) / results.drawing_flops(name),
    ]
    return [name, f"{one['numbers']:,}", *(told(figure) if figure else NOTHING for figure in figures)]


def _drawing(results: Results) -> str:
    draw = results.data["asked"]["draw"]
    guided = f", guidance {draw['guidance']:g}" if draw["guidance"] != 1 else ""
    return f"{draw['sampler']}, {draw['steps']} steps{guided}"


def timed_tables(results: Results) -> dict[str, Table]:
    """What the rows take on this machine."""
    header = [
        "",
        "training, pictures/s",
        f"times {results.base}",
        "encoding each time",
        "drawing a picture, s",
        "of it decoding",
        f"times faster than {results.base}",
        "training reaches, GFLOP/s",
        "of the peak",
        "peak memory training, MiB",
        "drawing",
    ]
    rows = [_timed(results, name) for name in results.names]
    timing, peak = results.data["asked"]["timing"], results.data["timed"]["peak"]
    reserved = "; allocated / reserved" if _on_gpu(results) else ", resident, with Python and its libraries"
    notes = [
        f"Mean and standard deviation over {timing['rounds']} turns, in each of which every row is measured once, in a "
        f"process of its own; ratios are of the same turn. A step trains {results.batch} pictures; "
        f"{timing['batch_size']} are drawn together ({_drawing(results)}).",
        f"The machine's peak is {peak / 1e9:,.0f} GFLOP/s, measured on large products and convolutions in the "
        f"precision of training. Memory: the largest of the turns{reserved}.",
    ]
    return {"timed": Table("Timed", header, rows, notes=notes)}


def _on_gpu(results: Results) -> bool:
    turns = [turn for name in results.names for turn in results.turns(name, DRAWING) + results.turns(name, TRAINING)]
    return any(turn["reserved"] is not None for turn in turns)


def _timed(results: Results, name: str) -> list[str]:
    def rate(turn: dict[str, Any]) -> float:
        return turn["samples"] / turn["seconds"]

    def reached(turn: dict[str, Any]) -> float:
        return turn["flops"] / turn["seconds"]

    speed = results.over_turns(name, TRAINING, reached)
    return [
        name,
        told(results.over_turns(name, TRAINING, rate)),
        _faster(results, name, TRAINING),
        told(results.over_turns(name, ENCODING, rate)),
        told(results.over_turns(name, DRAWING, lambda turn: turn["seconds"])),
        told(
            results.over_turns(name, DRAWING, lambda turn: turn["decoding"])
            if results.counted(name)["encoding"]
            else None
        ),
        _faster(results, name, DRAWING),
        told(speed and speed.mean / 1e9),
        NOTHING if speed is None else f"{speed.mean / results.data['timed']['peak']:.0%}",
        _memory(results.turns(name, TRAINING)),
        _memory(results.turns(name, DRAWING)),
    ]


def _faster(results: Results, name: str, kind: str) -> str:
    return times(1 if name == results.base else results.times_faster(name, kind))


def _memory(turns: Sequence[dict[str, Any]]) -> str:
    known = [turn["memory"] for turn in turns if turn["memory"] is not None]
    if not known:
        return NOTHING
    reserved = max((turn["reserved"] for turn in turns if turn["reserved"] is not None), default=None)
    return f"{max(known):,.0f}" + ("" if reserved is None else f" / {reserved:,.0f}")


def published_table(results: Results) -> dict[str, Table]:
    """Others' ratios beside ours; empty where there are none for these pictures."""
    wanted = [one for one in results.data["asked"]["published"] if one["side"] in (None, results.data["side"])]
    header = ["pictures a second", "published", "here", "operations, here", "where"]
    rows = [row for one in wanted for row in _beside(results, one)]
    return {"published": Table("Beside what was published", header, rows)} if rows else {}


def _beside(results: Results, one: dict[str, Any]) -> Iterator[list[str]]:
    """A ratio of somebody else's, and the same of ours; in training with latents from a cache, and without."""
    row, base, what = one["row"], one["base"], one["what"]
    theirs = [f"{what}, {row} to {base}", times(one["ratio"])]
    if what == "sampling":
        flops = results.drawing_flops(base) / results.drawing_flops(row)
        yield [*theirs, times(_faster_than(results, row, base, DRAWING, DRAWING)), times(flops), one["where"]]
        return
    encoding = results.training_flops(row) + results.counted(row)["encoding"]
    for title, kind, flops in (
        ("cached latents", TRAINING, results.training_flops(row)),
        ("encoding", ENCODING, encoding),
    ):
        ours = _faster_than(results, row, base, kind, TRAINING)
        name = f"{theirs[0]}, {title}"
        yield [name, theirs[1], times(ours), times(results.training_flops(base) / flops), one["where"]]


def _faster_than(results: Results, row: str, base: str, kind: str, base_kind: str) -> Spread | None:
    mine, theirs = results.turns(row, kind), results.turns(base, base_kind)
    if not mine or not theirs:
        return None
    return ratios([seconds_of_picture(turn) for turn in theirs], [seconds_of_picture(turn) for turn in mine])


def quality_tables(results: Results) -> dict[str, Table]:
    """How good pictures are, at equal steps and at equal means."""
    seeds = len(results.data["asked"]["quality"]["seeds"])
    note = f"Mean ± standard deviation over {seeds} seeds. {_against(results)}"
    return {
        "end": _at_the_end(results, note),
        "steps": _by_steps(results, note),
        "equal": _equal(results, note),
    }


def _against(results: Results) -> str:
    count, real = results.data["asked"]["quality"]["count"], results.data["quality"]["real"]
    judge = results.data["quality"]["judge"]
    trusted = "" if judge is None else f"; the judge recognises {judge['accuracy']:.1%} of them"
    return f"{count:,} pictures against {real['against']}, in the features of {results.features}{trusted}."


def _at_the_end(results: Results, note: str) -> Table:
    metrics = [name for name in _METRICS if any(m["name"] == name for m in results.last(results.base)[0]["metrics"])]
    real = {metric["name"]: metric["value"] for metric in results.data["quality"]["real"]["metrics"]}
    rows = [["real: training pictures", *(told(real.get(metric)) for metric in metrics)]]
    for name in results.names:
        rows.append([name, *(told(results.measured(name, metric, -1)) for metric in metrics)])
    header = ["", *(f"{metric} {_BETTER.get(metric, '↑')}" for metric in metrics)]
    return Table(f"After {results.marks[-1]:,} steps", header, rows, notes=[note])


def _by_steps(results: Results, note: str) -> Table:
    marks = results.marks
    rows = [[name, *(told(results.measured(name, DISTANCE, k)) for k in range(len(marks)))] for name in results.names]
    return Table(f"{DISTANCE} after so many steps", ["", *(f"{mark:,}" for mark in marks)], rows, notes=[note])


def _equal(results: Results, note: str) -> Table:
    header = ["", "its distance in the end"]
    for means in (FLOPS, SECONDS):
        header += [f"{results.base} with its {means}", f"{means} saved to the distance of {results.base}"]
    rows = []
    for name in results.names[1:]:
        row = [name, told(results.measured(name, DISTANCE, -1))]
        for means in (FLOPS, SECONDS):
            row += [_or_first(results, name, means), saved(results.saved(name, means))]
        rows.append(row)
    notes = [
        note,
        f"With its {FLOPS} (or {SECONDS}): the distance of {results.base} when as much was spent on it as all of the "
        "row's training took, between the points that were looked at; > is its distance at the first of them, which "
        "had taken more already. Saved: how many times less the row took to come to where "
        f"{results.base} came in the end; > where it was there when it was first looked at; {NOTHING} where it never "
        "was.",
        "The training of VAEs is not in these: it is done once for all that is trained in their latents.",
    ]
    return Table("With equal operations and equal seconds", header, rows, notes=notes)


def _or_first(results: Results, name: str, means: str) -> str:
    found = results.base_at(name, means)
    own, base = results.curves(name, means), results.curves(results.base, means)
    if found is None and own is not None and base is not None and own[0][-1].spent < base[0][0].spent:
        return f"> {told(results.measured(results.base, DISTANCE, 0))}"
    return told(found)


def autoencoder_table(results: Results) -> dict[str, Table]:
    """What VAEs lose, and what they took; empty where there are none."""
    rows = [_autoencoder(results, name) for name in results.data["quality"]["ceilings"]]
    header = [
        "",
        "PSNR, dB ↑",
        "SSIM ↑",
        "perceptual distance ↓",
        f"{DISTANCE} ↓",
        "training it, TFLOPs",
        "seconds",
        "encoding all, pictures/s",
        "latents, MB",
    ]
    notes = [
        "Held-out pictures, encoded and decoded, against themselves: what no model in these latents can do better. "
        "Perceptual distance: 1 is as far as another picture."
    ]
    return {"autoencoders": Table("What the VAEs lose", header, rows, notes=notes)} if rows else {}


def _autoencoder(results: Results, name: str) -> list[str]:
    lost = {metric["name"]: metric["value"] for metric in results.data["quality"]["ceilings"][name]["metrics"]}
    found = [lost.get(metric) for metric in ("PSNR", "SSIM", "perceptual distance", DISTANCE)]
    trained, cached = results.data["autoencoders"].get(name, {}), results.data["caches"][name]
    flops = results.counted(name)["vae_training"]
    rate = cached["pictures"] / cached["seconds"] if cached["seconds"] else None
    return [
        name,
        *(told(value) for value in found),
        told(flops / 1e12) if flops else NOTHING,
        told(trained.get("seconds")),
        told(rate),
        told(cached["bytes"] / 1e6),
    ]
