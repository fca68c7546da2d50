"""A comparison of codecs as a report."""

from __future__ import annotations

from pathlib import Path

from ldm.compare.codecs import DRAWING, TRAINING
from ldm.compare.figures import figures_of
from ldm.compare.plots import cost_plot, learning_plot
from ldm.compare.quality_tables import autoencoder_table, quality_tables
from ldm.compare.results import DISTANCE, FLOPS, SECONDS, Results
from ldm.compare.stages import Found
from ldm.compare.tables import counted_table, published_table, saving_table, timed_table, told
from ldm.compare.writing import Report, Section


def report_of(data: Found, folder: Path | None = None) -> Report:
    """The report.

    Args:
        data: what ``compare_codecs`` or ``count_codecs`` returned.
        folder: where the pictures of the comparison are; None shows no plots and pictures.
    """
    results = Results(data)
    sections = [Section("In short", short(results))] if results.is_timed or results.is_judged else []
    sections.append(_costs(results, folder is not None))
    if results.is_judged:
        sections.append(_quality(results, folder is not None))
    if folder is not None and results.is_judged:
        sections.append(_pictures(results, folder / "pictures"))
    return Report("What the latent space buys", _heading(results), sections, figures_of(results))


def _heading(results: Results) -> list[str]:
    asked, side = results.data["asked"], results.data["side"]
    lines = [f"pictures: {side} x {side}"]
    if results.is_judged:
        train = asked["train"]
        lines[0] += f"; compared with {results.data['quality']['real']['against']}"
        steps = f"{train['steps']:,} steps of {results.batch} at a learning rate of {train['learning_rate']:g}"
        lines.append(
            f"the same in all rows: {steps}, {train['mixed_precision']}, {asked['prediction']}, one noise schedule; "
            "none is tuned for any row"
        )
    else:
        lines.append("nothing was trained: all networks have their first weights, which take as long as others")
    changed = [row["name"] for row in asked["rows"] if row["unet"]]
    if changed:
        lines.append(f"U-Nets of their own: {', '.join(changed)}; else it is the same in all rows")
    if "machine" in results.data:
        lines.append("machine: " + ", ".join(f"{key} {value}" for key, value in results.data["machine"].items()))
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
        parts.append(f"its distance after as many steps is {mine}, that of {base} {theirs}")
        parts += [
            _saving(results, name, means) for means in (SECONDS, FLOPS) if results.curves(name, means) is not None
        ]
    return f"{name}: {'; '.join(parts)}."


def _saving(results: Results, name: str, means: str) -> str:
    alone, all_in = results.saved(name, means), results.saved(name, means, all_in=True)
    if alone is None or all_in is None:
        return f"it did not come to the distance of {results.base} in every seed"
    least = "at least " if alone.at_least else ""
    return (
        f"to come to that it takes {least}{told(alone.times)} times fewer {means}, or {told(all_in.times)} times "
        "with the "
        "training of its VAE"
    )


def _costs(results: Results, shown: bool) -> Section:
    tables = saving_table(results) | counted_table(results)
    if results.is_timed:
        tables |= timed_table(results) | published_table(results)
    plots = {"cost": ("how many times less each row takes", cost_plot(results))} if shown else {}
    return Section("What it costs", tables=tables, plots=plots)


def _quality(results: Results, shown: bool) -> Section:
    title = "distance against what was spent on the U-Net; bands from the worst to the best seed"
    plots = {"learning": (title, learning_plot(results))} if shown else {}
    return Section("What it costs in quality", tables=quality_tables(results) | autoencoder_table(results), plots=plots)


def _pictures(results: Results, folder: Path) -> Section:
    quality, found = results.data["quality"], {}
    for k, name in enumerate(results.names, 1):
        point = quality["points"][name][0][-1]
        found[f"drawn_{k}"] = (f"{name}: drawn after all steps, first seed", folder / point["sheet"])
    for k, (name, ceiling) in enumerate(quality["ceilings"].items(), 1):
        title = f"{name}: held-out pictures, each with what its VAE makes of it on the right"
        found[f"lost_{k}"] = (title, folder / ceiling["sheet"])
    return Section("Pictures", pictures={key: (title, place.read_bytes()) for key, (title, place) in found.items()})
