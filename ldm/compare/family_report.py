"""A comparison of families as a report: one table in numbers, a plot of quality against time, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldm.compare.equal import Spread, spread
from ldm.compare.families import DISTANCE, distance_of
from ldm.compare.family_figures import figures_of
from ldm.compare.plots import colours_of
from ldm.compare.stages import Found
from ldm.compare.tables import NOTHING, told
from ldm.compare.writing import Report, Section
from ldm.evaluate.metric import LOWER
from ldm.evaluate.plots import drawn_by, logarithmic, sheet_of
from ldm.evaluate.report import Table
from ldm.weights.files import read_tensors

REAL = "real pictures"
_SHOWN, _COLUMNS = 40, 10  # pictures of a sheet
_GREY = "#999999"


def report(data: Found, folder: Path | None = None) -> Report:
    """The report.

    Args:
        data: what ``compare_families`` or ``count_families`` returned.
        folder: that of the comparison, with the pictures that were drawn; None shows none.
    """
    sections = [Section("On paper", tables={"counted": _counted(data)})]
    if "seeds" in data:
        sections = [_side_by_side(data), _seed_by_seed(data)]
        sections += [] if folder is None else [_pictures(data, folder / "drawn")]
    return Report("Generative families side by side", _heading(data), sections, figures_of(data))


def _heading(data: Found) -> list[str]:
    asked, side = data["asked"]["quality"], data["side"]
    lines = [f"pictures: {side} x {side}; {asked['count']:,} are drawn for each of the seeds {_listed(asked['seeds'])}"]
    if "seeds" not in data:
        return lines
    lines.append(f"compared with: {data['real'][0]['against']}")
    if data["judge"] is not None:
        judge = data["judge"]
        lines.append(f"judge: recognises {judge['accuracy']:.1%} of {judge['pictures']:,} held-out pictures")
    lines.append("machine: " + ", ".join(f"{key} {value}" for key, value in data["machine"].items()))
    return lines


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


# ---------------------------------------------------------------------------------- the table


def _side_by_side(data: Found) -> Section:
    first, *others = _networks(data)
    tables = {"families": _table(data, first, prices=True)}
    tables |= {f"families_{k}": _table(data, name, prices=False) for k, name in enumerate(others, 2)}
    title = "distance against the time of a picture; bars from the best to the worst seed"
    return Section("Side by side", tables=tables, plots={"speed": (title, drawn_by(lambda f: _speed(f, data), 2))})


def _networks(data: Found) -> list[str]:
    return list(dict.fromkeys(metric["features"] for metric in data["real"][0]["metrics"]))


def _table(data: Found, network: str, *, prices: bool) -> Table:
    """All rows in the features of one network, with what they take where ``prices`` are asked for."""
    measured = [metric for metric in data["real"][0]["metrics"] if metric["features"] == network]
    quality = [f"{metric['name']} {'↓' if metric['better'] == LOWER else '↑'}" for metric in measured]
    quality.insert(1, "worst seed ↓")
    header = ["", *(_PRICES if prices else {}), *quality, "diverged seeds"]
    rows = [[REAL, *(NOTHING for _ in _PRICES if prices), *_figures(data["real"], measured), NOTHING]]
    for name in data["rows"]:
        seeds = data["seeds"][name]
        own = [price(data, name) for price in _PRICES.values()] if prices else []
        rows.append([name, *own, *_figures(seeds, measured), _diverged(seeds)])
    ahead = 1 + (len(_PRICES) if prices else 0)
    best = [None] * ahead + [_best(data, metric) for metric in (measured[0], *measured)] + [None]
    best[ahead + 1] = None  # the worst seeds are not ranked
    return Table(network, header, rows, best, _notes(data, measured, prices))


def _figures(seeds: Sequence[Found], measured: Sequence[Found]) -> list[str]:
    """Mean and spread of each metric; after the first, its worst."""
    texts = [told(_over(seeds, metric)) for metric in measured]
    distances = _values(seeds, measured[0])
    texts.insert(1, told(max(distances)) if distances else NOTHING)
    return texts


def _values(seeds: Sequence[Found], metric: Found) -> list[float]:
    """A metric in all seeds that have drawn."""
    same = ("name", "features")
    return [
        one["value"]
        for seed in seeds
        for one in seed.get("metrics", [])
        if all(one[key] == metric[key] for key in same)
    ]


def _over(seeds: Sequence[Found], metric: Found) -> Spread | None:
    values = _values(seeds, metric)
    return spread(values) if values else None


def _best(data: Found, metric: Found) -> int | None:
    """The row, counted with that of real pictures, whose mean is better than that of all others."""
    means = {k: _over(data["seeds"][name], metric) for k, name in enumerate(data["rows"], 1)}
    sign = 1 if metric["better"] == LOWER else -1
    ranked = sorted((sign * mean.mean, k) for k, mean in means.items() if mean is not None)
    return ranked[0][1] if len(ranked) > 1 and ranked[0][0] < ranked[1][0] else None


def _diverged(seeds: Sequence[Found]) -> str:
    return f"{sum(seed['diverged'] is not None for seed in seeds)} of {len(seeds)}"


def _notes(data: Found, measured: Sequence[Found], prices: bool) -> list[str]:
    asked = data["asked"]["quality"]
    against = measured[0]["reference_count"]
    notes = [
        f"Mean ± standard deviation over {len(asked['seeds'])} seeds, from each of which all of a row is trained anew. "
        f"Distances: n = {asked['count']:,} against {against:,}. The row of real pictures is what as many training "
        "pictures come to, drawn at random for each seed.",
        "Diverged: a loss or gradient was not finite, and nothing was drawn; or the distance is more than "
        f"{asked['diverged']:g} times the median over the seeds of the row, and counts in the mean.",
    ]
    if prices:
        notes += [
            "Parameters: of all networks, an adversary among them; a student stands in the place of its teacher. "
            "Training: of all that the row begins from and of itself; operations are counted, a multiplication and "
            "an addition as two.",
            f"Pictures a second: median of batches of {_together(data)}, decoded and on the CPU. What an autoencoder "
            "draws is the mean of its decoder for a latent of the prior.",
        ]
    return notes


def _together(data: Found) -> str:
    found = {seed["drawn"]["together"] for seeds in data["seeds"].values() for seed in seeds if "drawn" in seed}
    return " or ".join(map(str, sorted(found)))


def _training_seconds(data: Found, name: str) -> str:
    whole = [seed["trained"] for seed in data["seeds"][name] if "drawn" in seed]
    return told(spread([sum(one["seconds"] for one in trained) for trained in whole]) if whole else None)


def _speeds(data: Found, name: str) -> list[float]:
    return [1 / seed["drawn"]["seconds"] for seed in data["seeds"][name] if "drawn" in seed]


def _speed_told(data: Found, name: str) -> str:
    speeds = _speeds(data, name)
    return told(spread(speeds) if speeds else None)


def _of(key: Callable[[Found], float]) -> Callable[[Found, str], str]:
    return lambda data, name: told(key(data["counted"][name]))


_COUNTED: dict[str, Callable[[Found, str], str]] = {
    "parameters, M": _of(lambda one: one["parameters"]["all"] / 1e6),
    "of these drawing, M": _of(lambda one: one["parameters"]["drawing"] / 1e6),
    "training, TFLOPs": _of(lambda one: one["training"] / 1e12),
    "a picture, GFLOPs": _of(lambda one: one["picture"] / 1e9),
}
_PRICES = {**_COUNTED, "training, s": _training_seconds, "pictures a second": _speed_told}


def _counted(data: Found) -> Table:
    """What can be said before anything is trained."""
    rows = [
        [name, *(price(data, name) for price in _COUNTED.values()), str(data["counted"][name]["asks"])]
        for name in data["rows"]
    ]
    return Table("Counted", ["", *_COUNTED, "calls of a network for a picture"], rows)


# ------------------------------------------------------------------------------ seeds and pictures


def _seed_by_seed(data: Found) -> Section:
    asked = data["asked"]["quality"]["seeds"]
    rows = [[REAL, *(told(distance_of(one["metrics"])) for one in data["real"])]]
    notes = []
    for name in data["rows"]:
        seeds = data["seeds"][name]
        rows.append([name, *(told(distance_of(one["metrics"])) if "metrics" in one else NOTHING for one in seeds)])
        notes += [f"{name}, seed {one['seed']}: {one['diverged']}" for one in seeds if one["diverged"] is not None]
    title = f"{DISTANCE} ({_networks(data)[0]})"
    table = Table(title, ["", *(f"seed {seed}" for seed in asked)], rows, notes=notes)
    return Section("Stability: seed by seed", tables={"seeds": table})


def _pictures(data: Found, folder: Path) -> Section:
    """The first pictures of each row, of the first seed that drew any."""
    shown = {REAL: data["real"][0]["pictures"]}
    for name in data["rows"]:
        drawn = [seed for seed in data["seeds"][name] if "drawn" in seed]
        if drawn:
            shown[f"{name}, seed {drawn[0]['seed']}"] = drawn[0]["drawn"]["pictures"]
    sheets = {
        f"drawn_{k}": (title, sheet_of(read_tensors(folder / file)["pictures"][:_SHOWN], _COLUMNS))
        for k, (title, file) in enumerate(shown.items())
    }
    return Section("Pictures", ["The first of each row, as they came."], pictures=sheets)


def _speed(figure: Any, data: Found) -> None:
    """Quality against seconds: a point for each row."""
    axes, colours = figure.subplots(), colours_of(data["rows"])
    for name in data["rows"]:
        distances = [distance_of(seed["metrics"]) for seed in data["seeds"][name] if "metrics" in seed]
        if distances:
            seconds, mean = 1 / spread(_speeds(data, name)).mean, spread(distances).mean
            reach = [[mean - min(distances)], [max(distances) - mean]]
            axes.errorbar(seconds, mean, reach, fmt="o", color=colours[name], capsize=3, label=name)
    floor = spread([distance_of(one["metrics"]) for one in data["real"]]).mean
    axes.axhline(floor, color=_GREY, linestyle=":", linewidth=1, label=REAL)
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    axes.set_xlabel("seconds of a picture")
    axes.set_ylabel(f"{DISTANCE}\n({_networks(data)[0]})")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
