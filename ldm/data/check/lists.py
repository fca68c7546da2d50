"""A report for programs: as JSON, and as the list of examples to leave out."""

from __future__ import annotations

from typing import Any

from ldm.data.check.kinds import KINDS
from ldm.data.check.report import Report


def as_data(report: Report) -> dict[str, Any]:
    """A report as JSON's types, with every problem."""
    return {
        "sources": list(report.parts),
        "pictures": len(report.names),
        "usable": report.usable,
        "errors": report.errors,
        "warnings": report.warnings,
        "problems": {
            kind: [{"source": p.part, "key": p.key, "message": p.message} for p in found]
            for kind, found in report.problems.items()
        },
        "copies": {
            name: [[report.names[number][1] for number in group] for group in groups]
            for name, groups in (("same", report.same), ("near", report.near))
        },
        "buckets": [
            {"height": height, "width": width, "pictures": count} for (height, width), count in report.buckets.items()
        ],
        "caption_tokens": {str(length): count for length, count in sorted(report.lengths.items())},
        "window": report.window,
        "classes": {str(label): count for label, count in sorted(report.labels.items())},
        "seconds": round(report.seconds, 3),
    }


def quarantine(report: Report, part: int) -> list[str]:
    """The lines of a list that leaves out what is wrong in a source: keys, and before each a comment with the reason.

    Of exact copies the first stays. What leaving out does not mend is not in it.
    """
    reasons: dict[str, str] = {}
    for kind, found in report.problems.items():
        if KINDS[kind].skipped:
            for problem in found:
                if problem.part == part:
                    reasons.setdefault(problem.key, f"{kind}: {problem.message}")
    return [line for key, reason in reasons.items() for line in (f"# {' '.join(reason.split())}", key)]
