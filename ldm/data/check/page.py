"""A report as one HTML page that needs nothing beside it: counts, plots, problems, and small pictures.

Captions and file names are others' words: all text is escaped, control characters are shown as escapes, and the page
forbids scripts and loading anything. Its size is bounded, however much there is to tell; the rest is in the JSON.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ldm.data.check.kinds import KINDS, Problem
from ldm.data.check.looking import Examples
from ldm.data.check.plots import plots
from ldm.data.check.report import Report
from ldm.data.check.telling import named, numbers, verdict
from ldm.data.check.thumbnails import Thumbnail, spread, thumbnails
from ldm.metadata.plain import printable

_SAMPLE = 48  # pictures shown because they are there
_GROUPS, _MEMBERS = 60, 6  # groups of copies, and pictures of each
_FIRST, _ROWS = 16, 400  # problems of a kind that are seen at once, with pictures; and when asked for
_LONGEST = 400  # characters of a text
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}h3{font-size:1rem;margin:1.6rem 0 .4rem}
.bad{color:#a3271a}.good{color:#2c6e2f}.soft{color:#666}
pre{background:#f5f5f3;padding:.8rem;overflow-x:auto}
.plots img{width:32rem;max-width:100%}
table{border-collapse:collapse;width:100%}td{border-top:1px solid #ddd;padding:.3rem .6rem;vertical-align:top}
td,figcaption{overflow-wrap:anywhere}td img{max-height:56px;display:block}
td:first-child:not(:last-child){width:7rem}
.row{display:flex;flex-wrap:wrap;gap:.8rem;margin:.6rem 0}figure{margin:0;width:8rem}
figure img{display:block;max-width:100%}figcaption{font-size:12px;color:#444}
summary{cursor:pointer;color:#3b6ea5;padding:.3rem .6rem}
.group{border-top:1px solid #ddd}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report, examples: Examples) -> str:
    """The page of a report.

    Args:
        report: what was found.
        examples: the same that were checked: some are opened again for their small pictures.
    """
    small = thumbnails(examples, _wanted(report))
    title = _text(" + ".join(report.parts))
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head>',
            f"<body><h1>{title}</h1>",
            f'<p class="{"bad" if report.errors else "good"}"><strong>{_text(verdict(report))}</strong></p>',
            f"<pre>{_text(chr(10).join(numbers(report)), most=4000)}</pre>",
            *_plots(report),
            *_problems(report, small),
            *_groups("Exact copies", report.same, report, small),
            *_groups("Pictures that look nearly alike", report.near, report, small),
            *_sample(report, small),
            f'<p class="soft">looked at in {report.seconds:,.0f} s</p></body></html>\n',
        ]
    )


def _text(text: str, most: int = _LONGEST) -> str:
    shown = text if len(text) <= most else f"{text[: most - 3]}..."
    return html.escape(printable(shown))


def _wanted(report: Report) -> set[int]:
    """The numbers of the examples that the page shows small pictures of."""
    numbers = set(_sampled(report))
    for group in (*report.same[:_GROUPS], *report.near[:_GROUPS]):
        numbers.update(group[:_MEMBERS])
    for kind in report.problems:
        numbers.update(problem.number for problem in _pictured(kind, report) if problem.number is not None)
    return numbers


def _sampled(report: Report) -> list[int]:
    unusable = {problem.number for found in report.problems.values() for problem in found}
    good = [number for number in range(len(report.names)) if number not in unusable]
    return spread(good, _SAMPLE)


def _pictured(kind: str, report: Report) -> Sequence[Problem]:
    """Problems of a kind that are shown with a picture; copies are shown in their groups."""
    return () if kind in ("same", "near") else report.problems[kind][:_FIRST]


def _plots(report: Report) -> Iterator[str]:
    yield '<div class="plots">'
    for title, svg in plots(report).items():
        yield f'<img alt="{_text(title)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
    yield "</div>"


def _problems(report: Report, small: Mapping[int, Thumbnail]) -> Iterator[str]:
    if report.problems:
        yield "<h2>Problems</h2>"
    for kind, found in report.problems.items():
        weight = '<span class="bad">error</span>' if KINDS[kind].error else '<span class="soft">warning</span>'
        yield f"<h3>{weight}: {_text(KINDS[kind].title)}: {len(found):,}</h3>"
        pictured = small if _pictured(kind, report) else {}
        yield from _table(found[:_FIRST], pictured)
        if len(found) > _FIRST:
            yield f"<details><summary>{min(len(found), _ROWS) - _FIRST:,} more</summary>"
            yield from _table(found[_FIRST:_ROWS], {})
            yield from _more(len(found) - _ROWS, "of this kind")
            yield "</details>"


def _table(problems: Sequence[Problem], small: Mapping[int, Thumbnail]) -> Iterator[str]:
    yield "<table>"
    for problem in problems:
        picture = small.get(problem.number) if problem.number is not None else None
        shown = f"<td>{_image(picture)}</td>" if picture else ""
        words = _text(problem.message) + (_captions(picture) if picture else "")
        yield f"<tr>{shown}<td{'' if picture else ' colspan=2'}>{words}</td></tr>"
    yield "</table>"


def _groups(
    title: str, groups: Sequence[Sequence[int]], report: Report, small: Mapping[int, Thumbnail]
) -> Iterator[str]:
    if groups:
        yield f"<h2>{title}</h2>"
    for group in groups[:_GROUPS]:
        yield f'<div class="row group">{"".join(_figures(group[:_MEMBERS], report, small))}'
        yield from _more(len(group) - _MEMBERS, "in this group")
        yield "</div>"
    yield from _more(len(groups) - _GROUPS, "groups")


def _sample(report: Report, small: Mapping[int, Thumbnail]) -> Iterator[str]:
    chosen = _sampled(report)
    if chosen:
        yield f'<h2>A sample</h2><div class="row">{"".join(_figures(chosen, report, small))}</div>'


def _figures(numbers: Iterable[int], report: Report, small: Mapping[int, Thumbnail]) -> Iterator[str]:
    for number in numbers:
        if number in small:
            part, key = report.names[number]
            name = named(Problem("", number, part, key, ""), report)
            picture = small[number]
            size = f'<br><span class="soft">{picture.size[1]} x {picture.size[0]}</span>'
            words = f"{_text(name, 120)}{size}{_captions(picture)}"
            yield f"<figure>{_image(picture)}<figcaption>{words}</figcaption></figure>"


def _image(picture: Thumbnail) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{picture.jpeg}">'


def _captions(picture: Thumbnail) -> str:
    return "".join(f"<br>{_text(caption, 160)}" for caption in picture.captions[:3])


def _more(number: int, what: str) -> Iterator[str]:
    if number > 0:
        yield f'<p class="soft">and {number:,} more {what}</p>'
