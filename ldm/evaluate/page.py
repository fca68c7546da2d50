"""An evaluation as one HTML page that needs nothing beside it: numbers, plots and pictures.

Names of files and networks are others' words: all text is escaped, and the page forbids scripts and loading anything.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.evaluate.evaluation import Evaluation
from ldm.evaluate.plots import Plot, best
from ldm.evaluate.report import Table, by_class, heading, tables
from ldm.metadata.plain import printable

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
ul{padding-left:1.1rem}.wide{overflow-x:auto}
table{border-collapse:collapse;margin-top:1.4rem}.note{color:#666;font-size:13px;margin:.4rem 0}
caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border-top:1px solid #ddd;padding:.3rem .8rem;text-align:right;overflow-wrap:anywhere}
th{font-weight:500;color:#555;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}.best{font-weight:700}
img{max-width:100%}figure{margin:1rem 0}figcaption{color:#444}
summary{cursor:pointer;color:#3b6ea5}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(found: Evaluation, made: dict[str, Any], plots: Mapping[str, Plot], sheets: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        found: what was found.
        made: by what.
        plots: by name.
        sheets: PNG, by name.
    """
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width"><title>Evaluation</title>',
            f"<style>{_STYLE}</style></head><body><h1>Evaluation</h1><ul>",
            *(f"<li>{_text(line)}</li>" for line in heading(found, made)),
            "</ul>",
            *(line for table in tables(found) for line in _table(table)),
            *(_image(name, "svg+xml", plot.svg, _title(name, found)) for name, plot in plots.items()),
            *_judged(found),
            *(_image(name, "png", png, _title(name, found)) for name, png in sheets.items()),
            "</body></html>\n",
        ]
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _table(table: Table) -> Iterator[str]:
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    yield f'<div class="wide"><table>{caption}<tr>'
    yield "".join(f"<th>{_text(name)}</th>" for name in table.header) + "</tr>"
    for k, row in enumerate(table.rows):
        cells = [(' class="best"' if table.is_best(k, column) else "", cell) for column, cell in enumerate(row)]
        yield "<tr>" + "".join(f"<td{mark}>{_text(cell)}</td>" for mark, cell in cells) + "</tr>"
    yield "</table></div>"
    if table.notes:
        yield f'<p class="note">{"<br>".join(map(_text, table.notes))}</p>'


def _judged(found: Evaluation) -> Iterator[str]:
    for cell in found.cells:
        for name, told in cell.measured.judged.items():
            yield f"<details><summary>{_text(f'class by class: {cell.name}, by {name}')}</summary>"
            yield from _table(by_class(told))
            yield "</details>"


def _title(name: str, found: Evaluation) -> str:
    kind, _, k = name.partition("_")
    if kind == "drawn":
        return f"the first pictures: {found.cells[int(k) - 1].name}"
    return {
        "pareto": "distance against price",
        "classes": f"classes: {best(found).name}" if found.cells else "",
        "latents": "latents of the autoencoder",
        "reconstruction": "pictures of the reference, each with what came back from the autoencoder on its right",
    }[kind]


def _image(name: str, kind: str, content: bytes, title: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<figure><figcaption>{_text(title)}</figcaption><img alt="{_text(name)}" src="{source}"></figure>'
