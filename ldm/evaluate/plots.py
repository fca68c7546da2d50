"""What an evaluation found, as pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ldm.evaluate.evaluation import Cell, Evaluation
from ldm.evaluate.judged import Judged
from ldm.evaluate.reconstruction import Latents
from ldm.evaluate.sweep import front
from ldm.images import grid, to_pil, to_signed

_BLUE, _RED, _GREY = "#3b6ea5", "#b3402a", "#999999"
_DISTANCE = "Fréchet distance"
_SMALL = 128  # pixels of a sheet's picture, to which smaller ones are enlarged


class Plot(NamedTuple):
    """One plot in two forms."""

    png: bytes
    svg: bytes


def plots(found: Evaluation) -> dict[str, Plot]:
    """Plots by their names, of what there is."""
    made: dict[str, Plot] = {}
    features = distances(found)
    if len(found.cells) > 1 and features:
        made["pareto"] = drawn_by(lambda figure: _pareto(figure, found, features[0]), 2)
    if found.cells and found.cells[0].measured.judged:
        name, told = next(iter(best(found).measured.judged.items()))
        made["classes"] = drawn_by(lambda figure: _classes(figure, told, name), 1)
    if found.reconstruction is not None:
        latents = found.reconstruction.latents
        made["latents"] = drawn_by(lambda figure: _latents(figure, latents), 1)
    return made


def distances(found: Evaluation) -> list[str]:
    """The names of the features in which there are distances."""
    if not found.cells:
        return []
    return [metric.features for metric in found.cells[0].measured.metrics if metric.name == _DISTANCE]


def best(found: Evaluation) -> Cell:
    """The setting of the least distance in the first features; without distances, the first."""
    names = distances(found)
    if not names:
        return found.cells[0]
    return min(found.cells, key=lambda cell: cell.measured.value(_DISTANCE, names[0]).value)


def title(name: str, found: Evaluation) -> str:
    """What a plot or sheet shows, by its name."""
    kind, _, k = name.partition("_")
    if kind == "drawn":
        return f"the first pictures: {found.cells[int(k) - 1].name}"
    return {
        "pareto": "distance against price",
        "classes": f"classes: {best(found).name}" if found.cells else "",
        "latents": "latents of the autoencoder",
        "reconstruction": "pictures of the reference, each with what came back from the autoencoder on its right",
    }[kind]


def sheets(found: Evaluation) -> dict[str, bytes]:
    """Pictures by the names of their files, as PNG: drawn ones of each setting; pictures beside what came back."""
    made = {f"drawn_{k}": sheet_of(cell.first[:32], 8) for k, cell in enumerate(found.cells, 1)}
    if found.reconstruction is not None:
        made["reconstruction"] = sheet_of(found.reconstruction.first.flatten(0, 1), 8)
    return made


def sheet_of(images: Tensor, columns: int) -> bytes:
    """Pictures uint8 (N, C, H, W) in rows, as PNG; small ones are enlarged."""
    sheet = to_pil(grid(to_signed(images), columns)[None])[0]
    scale = max(1, _SMALL // 2 // images.shape[-1])
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), resample=0)
    sheet.thumbnail((_SMALL * 10, _SMALL * 10))
    held = io.BytesIO()
    sheet.save(held, format="PNG")
    return held.getvalue()


def drawn_by(draw: Callable[[Any], None], panels: int) -> Plot:
    """A plot of so many panels side by side, as ``draw`` draws it on a figure of matplotlib."""
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(5.2 * panels, 3.6), layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return Plot(*(_saved(figure, form) for form in Plot._fields))


def _saved(figure: Any, form: str) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format=form, dpi=120)
    return held.getvalue()


def _pareto(figure: Any, found: Evaluation, features: str) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    values = [cell.measured.value(_DISTANCE, features).value for cell in found.cells]
    prices = ([cell.seconds for cell in found.cells], [cell.flops / 1e9 for cell in found.cells])
    for axes, price, unit in zip((left, right), prices, ("seconds", "GFLOPs"), strict=True):
        _front(axes, found.cells, list(zip(price, values, strict=True)))
        axes.set_xlabel(f"{unit} of a picture (numbers: steps)")
        axes.margins(0.07, 0.1)
        _scale(axes, "x", price)
    floor = [m.value for m in found.real.metrics if (m.name, m.features) == (_DISTANCE, features)]
    for axes in (left, right) if floor else ():
        axes.axhline(floor[0], color=_GREY, linestyle=":", linewidth=1, label="real pictures")
    _scale(left, "y", [*values, *floor])
    left.set_ylabel(f"Fréchet distance\n({features})")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _scale(axes: Any, direction: Literal["x", "y"], values: Sequence[float]) -> None:
    """Logarithmic where the values are of several orders; else its marks would be few and odd."""
    if min(values) > 0 and max(values) > 10 * min(values):
        logarithmic(axes, direction)


def logarithmic(axes: Any, direction: Literal["x", "y"]) -> None:
    """Make an axis of matplotlib, whose data are there, logarithmic, with plain numbers that do not touch."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set(**{f"{direction}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[direction]
    low, high = {"x": axes.dataLim.intervalx, "y": axes.dataLim.intervaly}[direction]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def _front(axes: Any, cells: Sequence[Cell], points: Sequence[tuple[float, float]]) -> None:
    from matplotlib import colormaps

    scales = list(dict.fromkeys(cell.guidance for cell in cells))
    colours = colormaps["viridis"]
    for k, scale in enumerate(scales):
        own = [point for cell, point in zip(cells, points, strict=True) if cell.guidance == scale]
        colour = colours(0.1 + 0.7 * k / max(1, len(scales) - 1))
        axes.plot(*zip(*sorted(own), strict=True), "o", color=colour, label=f"guidance {scale:g}")
    best_ones = [points[k] for k in front(points)]
    axes.plot(*zip(*best_ones, strict=True), color=_RED, linewidth=1, zorder=0, label="Pareto front")
    for cell, point in zip(cells, points, strict=True):
        axes.annotate(f"{cell.steps}", point, textcoords="offset points", xytext=(5, 4), fontsize=7, color="#555555")


def _classes(figure: Any, told: Judged, name: str) -> None:
    axes = figure.subplots()
    places = range(len(told.shares))
    axes.bar([k - 0.2 for k in places], told.shares, width=0.4, color=_BLUE, label="drawn")
    axes.bar([k + 0.2 for k in places], told.reference_shares, width=0.4, color=_GREY, label="reference")
    axes.set(xlabel=f"class ({name})", ylabel="share of the pictures", xticks=list(places))
    axes.set_ylim(0, 1.2 * max(*told.shares, *told.reference_shares))
    axes.legend(ncols=2, frameon=False, fontsize=8)


def _latents(figure: Any, latents: Latents) -> None:
    axes = figure.subplots()
    places = range(len(latents.mean))
    axes.axhspan(-1, 1, color=_GREY, alpha=0.15, linewidth=0, label="-1 to 1")
    axes.errorbar(places, latents.mean, latents.std, fmt="o", color=_BLUE, capsize=4, label="mean ± std")
    beside = [k + 0.15 for k in places]
    axes.errorbar(beside, latents.mean, latents.noise, fmt="_", color=_RED, elinewidth=3, label="± encoder's own std")
    axes.set(xlabel="channel of the latents (scaled)", xticks=list(places), xlim=(-0.7, len(places) - 0.3))
    axes.legend(ncols=3, frameon=False, fontsize=8, loc="upper center")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))
