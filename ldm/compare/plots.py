"""What a comparison of codecs found, as plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm.compare.codecs import DRAWING, TRAINING
from ldm.compare.equal import Spread, spread
from ldm.compare.results import DISTANCE, FLOPS, SECONDS, STEPS, Results, value_of
from ldm.compare.tables import told
from ldm.evaluate.plots import Plot, drawn_by, logarithmic

_GREY = "#999999"


def colours_of(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each row, from the first, dark, to the last, light."""
    from matplotlib import colormaps

    shades = colormaps["viridis"]
    return {name: shades(0.85 * k / max(1, len(names) - 1)) for k, name in enumerate(names)}


def learning_plot(results: Results) -> Plot:
    """Distance over what was spent: steps, operations, seconds."""
    means = [one for one in (STEPS, FLOPS, SECONDS) if results.curves(results.base, one) is not None]
    return drawn_by(lambda figure: _learning(figure, results, means), len(means))


def _learning(figure: Any, results: Results, means: Sequence[str]) -> None:
    colours = colours_of(results.names)
    panels = figure.subplots(1, len(means), sharey=True, squeeze=False)[0]
    floor = value_of(results.data["quality"]["real"]["metrics"], DISTANCE, results.features)
    for axes, one in zip(panels, means, strict=True):
        for name in results.names:
            _curve(axes, results, name, one, colours[name])
        axes.axhline(floor, color=_GREY, linestyle=":", linewidth=1, label="real pictures")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.set_xlabel(f"{one} of training")
    panels[0].set_ylabel(f"Fréchet distance\n({results.features})")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )


def _curve(axes: Any, results: Results, name: str, means: str, colour: Any) -> None:
    curves = results.curves(name, means)
    assert curves is not None
    spent = [point.spent for point in curves[0]]
    over = [[points[k].value for points in curves] for k in range(len(spent))]
    axes.plot(spent, [spread(values).mean for values in over], "o-", color=colour, markersize=4, label=name)
    axes.fill_between(spent, [min(v) for v in over], [max(v) for v in over], color=colour, alpha=0.2, linewidth=0)


def cost_plot(results: Results) -> Plot:
    """How many times as many pictures a second as the first row: counted and, where it was, timed."""
    return drawn_by(lambda figure: _costs(figure, results), 2)


def _costs(figure: Any, results: Results) -> None:
    panels = figure.subplots(1, 2)
    counted = (results.training_flops, results.drawing_flops)
    for axes, kind, flops in zip(panels, (TRAINING, DRAWING), counted, strict=True):
        paper = [flops(results.base) / flops(name) for name in results.names]
        times = [results.times_faster(name, kind) for name in results.names]
        clock = [one for one in times if one is not None]
        _bars(axes, results.names, paper, clock)
        axes.set_title(kind, fontsize=10)
    panels[0].set_ylabel(f"times less than {results.base}")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )


def _bars(axes: Any, names: Sequence[str], paper: Sequence[float], clock: Sequence[Spread]) -> None:
    places = range(len(names))
    shift = 0.2 if len(clock) == len(names) else 0
    bars = axes.bar([k - shift for k in places], paper, width=0.4, color="#c9d8e6", label="fewer operations")
    axes.bar_label(bars, [told(value, "x") for value in paper], fontsize=7, padding=2)
    if shift:
        heights, errors = [one.mean for one in clock], [one.std or 0 for one in clock]
        bars = axes.bar(
            [k + shift for k in places],
            heights,
            yerr=errors,
            width=0.4,
            color="#3b6ea5",
            label="more pictures a second",
        )
        axes.bar_label(bars, [told(value, "x") for value in heights], fontsize=7, padding=2)
    axes.set(xticks=list(places), xticklabels=names)
    logarithmic(axes, "y")
    axes.set_ylim(0.7, 2 * max([*paper, *(one.mean for one in clock)]))
