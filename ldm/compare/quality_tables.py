"""How good the pictures of a comparison of codecs are, as tables for people."""

from __future__ import annotations

from ldm.compare.results import DISTANCE, FLOPS, PRECISION, RECALL, SECONDS, STEPS, Results, Saved
from ldm.compare.tables import NOTHING, times, told
from ldm.evaluate.report import Table

_METRICS = (DISTANCE, "kernel distance", PRECISION, RECALL, "density", "coverage", "class coverage")
_LOWER = (DISTANCE, "kernel distance", "perceptual distance")


def quality_tables(results: Results) -> dict[str, Table]:
    """At the end, on the way, and at equal means."""
    ends = {f"end_{k}": _at_the_end(results, network) for k, network in enumerate(results.networks, 1)}
    return ends | {"on_the_way": _on_the_way(results), "equal": _equal(results), "saved": _saved(results)}


def _marked(metric: str) -> str:
    return f"{metric} {'↓' if metric in _LOWER else '↑'}"


def _about(results: Results, network: str) -> str:
    quality, real = results.data["asked"]["quality"], results.data["quality"]["real"]
    return (
        f"{quality['count']:,} pictures drawn by the averaged weights, against {real['against']}, in the features of "
        f"{network}. Mean ± standard deviation over {len(quality['seeds'])} seeds of the U-Net; each VAE is of one "
        "seed."
    )


def _at_the_end(results: Results, network: str) -> Table:
    drawn = results.data["quality"]["points"][results.base][0][-1]["metrics"]
    there = {metric["name"] for metric in drawn if metric["features"] == network}
    metrics = [name for name in _METRICS if name in there]
    own = [metric for metric in results.data["quality"]["real"]["metrics"] if metric["features"] == network]
    real = {metric["name"]: metric["value"] for metric in own}
    rows = [["real: training pictures", *(told(real.get(metric)) for metric in metrics)]]
    for name in results.names:
        rows.append([name, *(told(results.measured(name, metric, -1, network)) for metric in metrics)])
    notes, judge = [_about(results, network)], results.data["quality"]["judge"]
    if judge is not None and network == results.features:
        notes.append(
            f"The judge, trained on the training pictures, recognises {judge['accuracy']:.1%} of the held-out ones."
        )
    return Table(f"After {results.marks[-1]:,} steps", ["", *map(_marked, metrics)], rows, notes=notes)


def _on_the_way(results: Results) -> Table:
    marks = results.marks
    rows = [[name, *(told(results.measured(name, DISTANCE, k)) for k in range(len(marks)))] for name in results.names]
    return Table(f"{DISTANCE} after so many steps", ["", *(f"{mark:,}" for mark in marks)], rows)


def _equal(results: Results) -> Table:
    """Each row at its end, and the base with as many steps, operations or seconds."""
    base = results.base
    header = ["", "", *map(_marked, (DISTANCE, PRECISION, RECALL))]
    rows = []
    for name in results.names[1:]:
        rows.append(
            [name, "all its steps", *(told(results.measured(name, m, -1)) for m in (DISTANCE, PRECISION, RECALL))]
        )
        for means in (STEPS, FLOPS, SECONDS):
            if results.curves(name, means) is not None:
                found = [_base_with(results, name, means, metric) for metric in (DISTANCE, PRECISION, RECALL)]
                rows.append([base, f"as many {means} as {name}", *found])
    notes = [
        f"What {base} came to with as much as the training of the other row's U-Net took, between the points that were "
        "looked at. first: at the first point, which had taken more than that already."
    ]
    return Table("With equal means", header, rows, notes=notes)


def _base_with(results: Results, name: str, means: str, metric: str) -> str:
    found = results.base_at(name, means, metric)
    own, base = results.curves(name, means), results.curves(results.base, means)
    if found is None and own is not None and base is not None and own[0][-1].spent < base[0][0].spent:
        return f"first: {told(results.measured(results.base, metric, 0))}"
    return told(found)


def _saved(results: Results) -> Table:
    base = results.base
    header = [
        "",
        "operations of its U-Net",
        "with its VAE and latents",
        "seconds of its U-Net",
        "with its VAE and latents",
    ]
    rows = []
    for name in results.names[1:]:
        found = [results.saved(name, means, all_in) for means in (FLOPS, SECONDS) for all_in in (False, True)]
        rows.append([name, *map(saved, found)])
    notes = [
        f"How many times less the row took to come to the distance that {base} came to in the end, seed by seed; what "
        f"{base} took is counted to where it first was there. >: the row was there when it was first looked at. "
        f"{NOTHING}: "
        "a seed was never there. A VAE and latents are made once for all that is trained in them: the second and "
        "fourth "
        "column are for one training alone."
    ]
    return Table(f"Saved on the way to the distance of {base}", header, rows, notes=notes)


def saved(found: Saved | None) -> str:
    """How many times less, for people."""
    return NOTHING if found is None else f"{'> ' if found.at_least else ''}{times(found.times)}"


def autoencoder_table(results: Results) -> dict[str, Table]:
    """What VAEs lose, and what they took; empty where there are none."""
    rows = [_autoencoder(results, name) for name in results.data["quality"]["ceilings"]]
    header = [
        "",
        "PSNR, dB ↑",
        "SSIM ↑",
        "perceptual distance ↓",
        f"{DISTANCE} ↓",
        "training it: TFLOPs",
        "s",
        "encoding all pictures: pictures/s",
        "latents, MB",
    ]
    notes = [
        "Held-out pictures, encoded and decoded, against themselves: detail that is lost here, no model in these "
        "latents "
        f"draws. Perceptual distance, in the features of {results.features}: 1 is as far as another picture. The "
        f"{DISTANCE} is between the same pictures before and after, so that it is not to be compared with those of "
        "drawn ones."
    ]
    return {"autoencoders": Table("What the VAEs lose", header, rows, notes=notes)} if rows else {}


def _autoencoder(results: Results, name: str) -> list[str]:
    found = results.data["quality"]["ceilings"][name]["metrics"]
    wanted = [("PSNR", ""), ("SSIM", ""), ("perceptual distance", results.features), (DISTANCE, results.features)]
    lost = [next(m["value"] for m in found if (m["name"], m["features"]) == one) for one in wanted]
    trained, cached = results.data["autoencoders"].get(name, {}), results.data["caches"][name]
    flops = results.counted(name)["vae_training"]
    return [
        name,
        *map(told, lost),
        told(flops / 1e12) if flops else NOTHING,
        told(trained.get("seconds")),
        told(cached["pictures"] / cached["seconds"] if cached["seconds"] else None),
        told(cached["bytes"] / 1e6),
    ]
