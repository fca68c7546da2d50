"""All figures of a comparison of codecs, one by one, for spreadsheets and programs."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.compare.results import Results
from ldm.compare.writing import Figure


def figures_of(results: Results) -> list[Figure]:
    """What was counted, timed in each turn, and measured at each point."""
    return [*_counted(results), *_timed(results), *_judged(results)]


def _counted(results: Results) -> Iterator[Figure]:
    for name in results.names:
        one = results.counted(name)
        yield Figure(name, "numbers diffused", one["numbers"])
        yield Figure(name, "factor", one["factor"])
        for part, value in one["parameters"].items():
            yield Figure(name, f"parameters: {part}", value)
        for kind in ("training", "drawing"):
            for part, value in one[kind].items():
                yield Figure(name, f"FLOPs of a picture, {kind}: {part}", value)
        yield Figure(name, "FLOPs of a picture, encoding", one["encoding"])
        yield Figure(name, "FLOPs, training the VAE", one["vae_training"])
        for dtype, value in one["activations"].items():
            yield Figure(name, f"bytes of activations, batch of {one['batch']}: {dtype}", value)


def _timed(results: Results) -> Iterator[Figure]:
    for turn, found in enumerate(results.data.get("timed") or [], 1):
        for name, kinds in found["rows"].items():
            for kind, values in kinds.items():
                for what, value in values.items():
                    if value is not None:
                        yield Figure(name, f"{kind}: {what}", value, f"turn {turn}")


def _judged(results: Results) -> Iterator[Figure]:
    quality = results.data.get("quality")
    if quality is None:
        return
    for metric in quality["real"]["metrics"]:
        yield Figure("real", metric["name"], metric["value"], "", metric["features"])
    for name, ceiling in quality["ceilings"].items():
        for metric in ceiling["metrics"]:
            yield Figure(name, f"decoded: {metric['name']}", metric["value"], "", metric["features"])
    seeds = results.data["asked"]["quality"]["seeds"]
    for name, by_seed in quality["points"].items():
        for seed, points in zip(seeds, by_seed, strict=True):
            for point in points:
                for metric in point["metrics"]:
                    of = f"seed {seed}, {point['step']} steps"
                    yield Figure(name, metric["name"], metric["value"], of, metric["features"])
