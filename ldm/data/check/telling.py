"""A report in words: counts first, then every kind of problem with some examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ldm.data.check.kinds import KINDS, Problem
from ldm.data.check.report import Report
from ldm.metadata.plain import printable

_SHOWN = 12  # problems of a kind
_LONGEST = 240  # characters of a message


def told(report: Report) -> str:
    """A report as text to print."""
    lines = [*numbers(report), ""]
    for grave, heading in ((True, "errors"), (False, "warnings")):
        kinds = [kind for kind in report.problems if KINDS[kind].error == grave]
        if kinds:
            lines += [heading, *(line for kind in kinds for line in _of_kind(kind, report))]
    return "\n".join([*lines, verdict(report)])


def verdict(report: Report) -> str:
    """What it comes to, in a line."""
    if not report.errors:
        return f"nothing wrong, {_count(report.warnings, 'warning')}" if report.warnings else "nothing wrong"
    return f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}"


def numbers(report: Report) -> Iterator[str]:
    """What there is, a line for each thing."""
    captions = sum(report.lengths.values())
    yield f"{printable(' + '.join(report.parts))}: {_count(len(report.names), 'picture')}, {report.usable:,} usable"
    if report.usable:
        heights, widths = report.sizes.T
        yield (
            f"  sizes (width x height): {widths.min()} x {heights.min()} to {widths.max()} x {heights.max()}, "
            f"median {np.median(widths):.0f} x {np.median(heights):.0f}"
        )
        ratios = widths / heights
        yield f"  ratios (width : height): {ratios.min():.2f} to {ratios.max():.2f}, median {np.median(ratios):.2f}"
    if captions:
        least, most = min(report.lengths), max(report.lengths)
        yield f"  captions: {captions:,}, of {least} to {most} tokens, median {_median(report.lengths)}"
    if report.labels:
        counts = report.labels.values()
        yield f"  classes: {len(report.labels):,}, of {min(counts):,} to {max(counts):,} pictures"
    filled = {shape: count for shape, count in report.buckets.items() if count}
    if report.buckets:
        yield f"  buckets: {len(filled)} of {len(report.buckets)} have pictures"
        for (height, width), count in sorted(filled.items(), key=lambda item: -item[1])[:_SHOWN]:
            yield f"    {width:>5} x {height:<5} {count:>9,}"
        if len(filled) > _SHOWN:
            yield f"    and {len(filled) - _SHOWN:,} more"


def named(problem: Problem, report: Report) -> str:
    """What a problem is about, with the source's name where there are several."""
    return problem.key if len(report.parts) == 1 else f"{report.parts[problem.part]}: {problem.key}"


def _of_kind(kind: str, report: Report) -> Iterator[str]:
    found = report.problems[kind]
    groups = {"same": report.same, "near": report.near}.get(kind)
    yield f"  {KINDS[kind].title}: {len(found):,}" + (f", in {_count(len(groups), 'group')}" if groups else "")
    for problem in found[:_SHOWN]:
        message = " ".join(printable(problem.message).split())
        yield "    " + (message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "...")
    if len(found) > _SHOWN:
        yield f"    and {len(found) - _SHOWN:,} more"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _median(lengths: Counter[int]) -> int:
    values = sorted(lengths)
    passed = np.cumsum([lengths[value] for value in values])
    return values[int(np.searchsorted(passed, passed[-1] / 2))]
