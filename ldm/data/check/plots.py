"""What is in a set of pictures, as plots."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from ldm.data.check.report import Report

_BLUE, _RED = "#3b6ea5", "#b3402a"
_RATIOS = {"1:3": 1 / 3, "1:2": 1 / 2, "2:3": 2 / 3, "1:1": 1.0, "3:2": 3 / 2, "2:1": 2.0, "3:1": 3.0}
_MOST_BUCKETS = 40


def plots(report: Report) -> dict[str, bytes]:
    """Plots by their titles, as SVG; of what the report has."""
    wanted: dict[str, Callable[[Any, Report], None]] = {}
    if report.usable:
        wanted |= {"Sizes": _sizes, "Proportions": _ratios}
    if any(report.buckets.values()):
        wanted["Buckets"] = _buckets
    if report.lengths:
        wanted["Lengths of captions"] = _lengths
    return {title: _drawn(title, draw, report) for title, draw in wanted.items()}


def _drawn(title: str, draw: Callable[[Any, Report], None], report: Report) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, report)
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    held = io.BytesIO()
    figure.savefig(held, format="svg")
    return held.getvalue()


def _sizes(axes: Any, report: Report) -> None:
    heights, widths = report.sizes.T.astype(np.float64)
    sides = np.sqrt(heights * widths)
    axes.hist(sides, bins=_bins(sides), color=_BLUE)
    if report.frame is not None:
        for side in report.frame.sides:
            axes.axvline(side, color=_RED, linewidth=1)
    axes.set_xlabel("side of a square of the picture's area, pixels" + (" (red: resolution)" if report.frame else ""))
    axes.set_ylabel("pictures")


def _ratios(axes: Any, report: Report) -> None:
    heights, widths = report.sizes.T.astype(np.float64)
    ratios = np.log2(widths / heights)
    axes.hist(ratios, bins=_bins(ratios, least=0.05), color=_BLUE)
    axes.set_xticks([np.log2(value) for value in _RATIOS.values()], list(_RATIOS))
    axes.set_xlim(min(ratios.min(), -1) - 0.1, max(ratios.max(), 1) + 0.1)
    axes.set_xlabel("width : height")
    axes.set_ylabel("pictures")


def _buckets(axes: Any, report: Report) -> None:
    filled = [(shape, count) for shape, count in report.buckets.items() if count]
    shown = sorted(filled, key=lambda item: -item[1])[:_MOST_BUCKETS]
    shown.sort(key=lambda item: item[0][1] / item[0][0])
    axes.bar(range(len(shown)), [count for _, count in shown], color=_BLUE)
    room = max(0, 8 - len(shown)) / 2  # so that few bars are not wide
    axes.set_xlim(-0.6 - room, len(shown) - 0.4 + room)
    names = [f"{width}x{height}" for (height, width), _ in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=6 if len(shown) > 20 else 8)
    axes.set_ylabel("pictures")
    more = f" (the {len(shown)} fullest of {len(filled)})" if len(shown) < len(filled) else ""
    axes.set_xlabel(f"width x height{more}")


def _lengths(axes: Any, report: Report) -> None:
    lengths, counts = np.array(sorted(report.lengths.items())).T
    axes.bar(lengths, counts, width=1, color=_BLUE)
    if lengths.max() > report.window / 2:
        axes.axvline(report.window + 0.5, color=_RED, linewidth=1)
        axes.set_xlabel(f"tokens (red: the window of {report.window})")
    else:
        axes.set_xlabel("tokens")
    axes.set_ylabel("captions")


def _bins(values: np.ndarray, least: float = 1.0) -> np.ndarray:
    """40 bins over all values, of a width above 0 when all values are one."""
    low, high = values.min(), values.max()
    margin = max(0.0, least * 2 - (high - low)) / 2
    return np.linspace(low - margin, high + margin, 41)
