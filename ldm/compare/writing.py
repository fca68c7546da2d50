"""What a comparison found, as a folder: a report to read, a page to look at, tables and numbers for programs.

FOLDER/report.md, report.html     the same; the page has its plots and pictures inside
FOLDER/results.json               every number
FOLDER/results.csv                the figures of the tables, one in a line
FOLDER/NAME.png                   plots and pictures
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ldm.evaluate.html_page import document, escaped, figure, listed, table_of
from ldm.evaluate.plots import Plot
from ldm.evaluate.report import Table, table_lines
from ldm.publishing import disk_trouble, write_whole


class Figure(NamedTuple):
    """One number.

    Attributes:
        row: of the comparison.
        what: was measured, with its unit.
        value: the number.
        of: what it is of: a turn, a seed and step; empty for what is counted.
        features: the network in whose features it was measured, if it was.
    """

    row: str
    what: str
    value: float
    of: str = ""
    features: str = ""


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
        figures: for ``results.csv``.
    """

    title: str
    heading: list[str]
    sections: list[Section]
    figures: list[Figure] = field(default_factory=list)


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
    files["results.csv"] = _csv(report.figures)
    files["report.md"] = markdown(report).encode()
    files["report.html"] = page(report).encode()
    for section in report.sections:
        files |= {f"{name}.png": plot.png for name, (_, plot) in section.plots.items()}
        files |= {f"{name}.png": png for name, (_, png) in section.pictures.items()}
    with disk_trouble(str(folder)):
        for old in folder.glob("*.png"):  # of rows that are no more
            if old.name not in files:
                old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            place = folder / name
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


def _csv(figures: Sequence[Figure]) -> bytes:
    held = io.StringIO()
    csv.writer(held, lineterminator="\n").writerows([Figure._fields, *figures])
    return held.getvalue().encode()
