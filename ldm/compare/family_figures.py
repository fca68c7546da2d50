"""All figures of a comparison of families, one by one, for spreadsheets and programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ldm.compare.stages import Found
from ldm.compare.writing import Figure


def figures_of(data: Found) -> list[Figure]:
    """What was counted, and what was timed and measured for each seed; ``data`` is as of ``compare_families``."""
    return [*_counted(data), *_found("real", data.get("real", []), data), *_of_rows(data)]


def _counted(data: Found) -> Iterator[Figure]:
    for name, one in data["counted"].items():
        yield Figure(name, "parameters", one["parameters"]["all"])
        yield Figure(name, "parameters: drawing", one["parameters"]["drawing"])
        yield Figure(name, "FLOPs, training", one["training"])
        yield Figure(name, "FLOPs of a picture, drawing", one["picture"])


def _of_rows(data: Found) -> Iterator[Figure]:
    for name, seeds in data.get("seeds", {}).items():
        yield from _found(name, seeds, data)


def _found(name: str, seeds: Sequence[Found], data: Found) -> Iterator[Figure]:
    for number, one in zip(data["asked"]["quality"]["seeds"], seeds, strict=False):  # a dry run has found none
        of = f"seed {number}"
        for trained in one.get("trained", []):
            if "seconds" in trained:
                yield Figure(name, f"seconds, training: {trained['title']}", trained["seconds"], of)
        if "drawn" in one:
            yield Figure(name, "seconds of a picture, drawing", one["drawn"]["seconds"], of)
        if "trained" in one:
            yield Figure(name, "diverged", float(one["diverged"] is not None), of)
        for metric in one.get("metrics", []):
            yield Figure(name, metric["name"], metric["value"], of, metric["features"])
