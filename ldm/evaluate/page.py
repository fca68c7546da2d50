"""An evaluation as one HTML page that needs nothing beside it: numbers, plots and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ldm.evaluate.evaluation import Evaluation
from ldm.evaluate.html_page import document, escaped, figure, listed, table_of
from ldm.evaluate.plots import Plot, title
from ldm.evaluate.report import by_class, heading, tables


def page(found: Evaluation, made: dict[str, Any], plots: Mapping[str, Plot], sheets: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        found: what was found.
        made: by what.
        plots: by name.
        sheets: PNG, by name.
    """
    return document(
        "Evaluation",
        [
            *listed(heading(found, made)),
            *(line for table in tables(found) for line in table_of(table)),
            *(figure(name, "svg+xml", plot.svg, title(name, found)) for name, plot in plots.items()),
            *_judged(found),
            *(figure(name, "png", png, title(name, found)) for name, png in sheets.items()),
        ],
    )


def _judged(found: Evaluation) -> Iterator[str]:
    for cell in found.cells:
        for name, told in cell.measured.judged.items():
            yield f"<details><summary>{escaped(f'class by class: {cell.name}, by {name}')}</summary>"
            yield from table_of(by_class(told))
            yield "</details>"
