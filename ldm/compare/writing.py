"""What a comparison found, as a folder: a report to read, a page to look at, tables and numbers for programs.

FOLDER/report.md, report.html     the same; the page has its plots and pictures inside
FOLDER/results.json               every number
FOLDER/tables/NAME.csv            the tables
FOLDER/NAME.png                   plots and pictures
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.evaluate.html_page import document, escaped, figure, listed, table_of
from ldm.evaluate.plots import Plot
from ldm.evaluate.report import Table, table_lines
from ldm.publishing import disk_trouble, write_whole


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: of it.
        text: paragraphs, each one line.
        tables: by the names of their files.
        plots: by the names of their files, with what they show.
        pictures: PNG, by the names of their files, with what they show.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    plots: dict[str, tuple[str, Plot]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        title: of the page.
        heading: what was compared, by what and where, line by line.
        sections: in order.
    """

    title: str
    heading: list[str]
    sections: list[Section]


def write_report(folder: Path, report: Report, data: dict[str, Any]) -> None:
    """Write all files; each appears whole.

    Args:
        folder: where.
        report: for people.
        data: every number, for ``results.json``.

    Raises:
        UserError: the disk is full or refuses.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str)
    files: dict[str, bytes] = {"results.json": (text + "\n").encode()}
    files["report.md"] = markdown(report).encode()
    files["report.html"] = page(report).encode()
    for section in report.sections:
        files |= {f"tables/{name}.csv": _csv(table) for name, table in section.tables.items()}
        files |= {f"{name}.png": plot.png for name, (_, plot) in section.plots.items()}
        files |= {f"{name}.png": png for name, (_, png) in section.pictures.items()}
    with disk_trouble(str(folder)):
        shutil.rmtree(folder / "tables", ignore_errors=True)  # of rows that are no more
        for name, content in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, lambda path, content=content: path.write_bytes(content))


def markdown(report: Report) -> str:
    """The report as Markdown, with pictures beside it."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    yield f"# {report.title}\n"
    yield from (f"- {line}" for line in report.heading)
    for section in report.sections:
        yield f"\n## {section.title}\n"
        yield from (f"{line}\n" for line in section.text)
        for table in section.tables.values():
            if table.caption:
                yield f"**{table.caption}**\n"
            yield from table_lines(table)
            yield ""
            yield from (f"- {note}" for note in table.notes)
        for name, (title, _) in (section.plots | section.pictures).items():
            yield f"\n![{title}]({name}.png)"


def page(report: Report) -> str:
    """The report as HTML that needs nothing beside it."""
    return document(report.title, [*listed(report.heading), *_parts(report)])


def _parts(report: Report) -> Iterator[str]:
    for section in report.sections:
        yield f"<h2>{escaped(section.title)}</h2>"
        yield from (f"<p>{escaped(line)}</p>" for line in section.text)
        for table in section.tables.values():
            yield from table_of(table)
        for name, (title, plot) in section.plots.items():
            yield figure(name, "svg+xml", plot.svg, title)
        for name, (title, png) in section.pictures.items():
            yield figure(name, "png", png, title)


def _csv(table: Table) -> bytes:
    held = io.StringIO()
    csv.writer(held, lineterminator="\n").writerows([table.header, *table.rows])
    return held.getvalue().encode()
