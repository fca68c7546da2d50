"""A comparison of codecs as a report."""

from __future__ import annotations

from pathlib import Path

from ldm.compare.codecs import DRAWING, TRAINING
from ldm.compare.plots import cost_plot, learning_plot
from ldm.compare.results import DISTANCE, FLOPS, SECONDS, Results
from ldm.compare.stages import Found
from ldm.compare.tables import (
    autoencoder_table,
    counted_tables,
    published_table,
    quality_tables,
    timed_tables,
    told,
)
from ldm.compare.writing import Report, Section


def report_of(data: Found, folder: Path | None = None) -> Report:
    """The report.

    Args:
        data: what ``compare_codecs`` or ``count_codecs`` returned.
        folder: where the pictures of the comparison are; None shows none.
    """
    results = Results(data)
    sections = [Section("In short", short(results))] if results.is_timed or results.is_judged else []
    sections.append(_costs(results))
    if results.is_judged:
        sections.append(_quality(results))
    if folder is not None and results.is_judged:
        sections.append(_pictures(results, folder / "pictures"))
    return Report("What the latent space buys", _heading(results), sections)


def _heading(results: Results) -> list[str]:
    asked, side = results.data["asked"], results.data["side"]
    about = f"pictures: {side} x {side}"
    if results.is_judged:
        about += f"; compared with {results.data['quality']['real']['against']}"
    train = asked["train"]
    lines = [
        about,
        f"training: {train['steps']:,} steps of {results.batch}, {train['mixed_precision']}, the same in all rows",
    ]
    if "machine" in results.data:
        lines.append("made by: " + ", ".join(f"{key} {value}" for key, value in results.data["machine"].items()))
    return lines


def short(results: Results) -> list[str]:
    """What there is to be remembered of each row, a sentence for each."""
    return [_sentence(results, name) for name in results.names[1:]]


def _sentence(results: Results, name: str) -> str:
    base, parts = results.base, []
    for kind, verb in ((TRAINING, "trains"), (DRAWING, "draws")):
        times = results.times_faster(name, kind)
        if times is not None:
            parts.append(f"{verb} {told(times)} times as many pictures a second as {base}")
    if results.is_judged:
        mine, theirs = (told(results.measured(row, DISTANCE, -1)) for row in (name, base))
        parts.append(f"comes to a distance of {mine} after as many steps, where {base} come to {theirs}")
        for means in (SECONDS, FLOPS):
            found = results.saved(name, means)
            if found is not None:
                least = "at least " if found.at_least else ""
                parts.append(f"takes {least}{told(found.times)} times fewer {means} to come to where they do")
    return f"{name}: {'; '.join(parts)}."


def _costs(results: Results) -> Section:
    tables = counted_tables(results)
    if results.is_timed:
        tables |= timed_tables(results) | published_table(results)
    plots = {"cost": ("how many times less each row takes", cost_plot(results))}
    return Section("What it costs", tables=tables, plots=plots)


def _quality(results: Results) -> Section:
    plots = {
        "learning": ("distance against what was spent; bands from the worst to the best seed", learning_plot(results))
    }
    return Section("What it costs in quality", tables=quality_tables(results) | autoencoder_table(results), plots=plots)


def _pictures(results: Results, folder: Path) -> Section:
    quality = results.data["quality"]
    found = {
        f"drawn_{k}": (f"{name}: drawn after all steps, first seed", quality["points"][name][0][-1])
        for k, name in enumerate(results.names, 1)
    }
    for k, (name, ceiling) in enumerate(quality["ceilings"].items(), 1):
        found[f"lost_{k}"] = (f"{name}: held-out pictures, each with what its VAE makes of it on the right", ceiling)
    return Section(
        "Pictures", pictures={key: (title, (folder / one["sheet"]).read_bytes()) for key, (title, one) in found.items()}
    )
