"""Pages that need nothing beside them: tables, plots and pictures in one file of HTML.

Names of files and networks are others' words: all text is escaped, and a page forbids scripts and loading anything.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator

from ldm.evaluate.report import Table
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


def document(title: str, parts: Iterable[str]) -> str:
    """A page of parts that are HTML already."""
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f'<meta name="viewport" content="width=device-width"><title>{escaped(title)}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{escaped(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def escaped(text: str) -> str:
    """Text as HTML."""
    return html.escape(printable(text))


def listed(lines: Iterable[str]) -> Iterator[str]:
    """Lines of text as a list."""
    yield "<ul>"
    yield from (f"<li>{escaped(line)}</li>" for line in lines)
    yield "</ul>"


def table_of(table: Table) -> Iterator[str]:
    """A table with its notes."""
    caption = f"<caption>{escaped(table.caption)}</caption>" if table.caption else ""
    yield f'<div class="wide"><table>{caption}<tr>'
    yield "".join(f"<th>{escaped(name)}</th>" for name in table.header) + "</tr>"
    for k, row in enumerate(table.rows):
        cells = [(' class="best"' if table.is_best(k, column) else "", cell) for column, cell in enumerate(row)]
        yield "<tr>" + "".join(f"<td{mark}>{escaped(cell)}</td>" for mark, cell in cells) + "</tr>"
    yield "</table></div>"
    if table.notes:
        yield f'<p class="note">{"<br>".join(map(escaped, table.notes))}</p>'


def figure(name: str, kind: str, content: bytes, title: str) -> str:
    """A picture (``kind`` png or svg+xml) within the page, with a caption; ``name`` for those who do not see it."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<figure><figcaption>{escaped(title)}</figcaption><img alt="{escaped(name)}" src="{source}"></figure>'
