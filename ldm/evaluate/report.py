"""What an evaluation found, as data, and the data as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ldm.evaluate.evaluation import Evaluation, written
from ldm.evaluate.judged import Judged
from ldm.evaluate.metric import LOWER, Metric
from ldm.evaluate.sets import Measured

_REAL = "real: "
Row = tuple[str, Sequence[Metric]]  # what was measured, and what was found


def as_data(found: Evaluation, made: dict[str, Any]) -> dict[str, Any]:
    """All numbers, as JSON has them.

    Args:
        found: what was found.
        made: by what: model, versions, device.
    """
    data: dict[str, Any] = {
        "asked": written(found.config),
        "made": made,
        "size": list(found.size),
        "reference": {"told": found.reference, "pictures": found.pictures},
        "conditions": found.conditions,
        "real": {"name": found.real_name, **_measured(found.real)},
        "settings": [
            {
                "sampler": cell.sampler,
                "steps": cell.steps,
                "guidance": cell.guidance,
                "seconds_per_picture": cell.seconds,
                "flops_per_picture": cell.flops,
                **_measured(cell.measured),
            }
            for cell in found.cells
        ],
    }
    if found.reconstruction is not None:
        lost = found.reconstruction
        data["reconstruction"] = {"metrics": [asdict(m) for m in lost.metrics], "latents": asdict(lost.latents)}
    return data


def _measured(found: Measured) -> dict[str, Any]:
    return {
        "metrics": [asdict(metric) for metric in found.metrics],
        "judged": {name: asdict(told) for name, told in found.judged.items()},
    }


@dataclass(frozen=True)
class Table:
    """Rows of one length under a header; what its numbers are of.

    Attributes:
        caption: what the numbers are of, such as the name of the features.
        header, rows: of text.
        best: for each column, the row that is best of the settings, or None; empty where nothing is compared.
        notes: how many pictures each column is of, and how it was measured.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    best: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def is_best(self, row: int, column: int) -> bool:
        return bool(self.best) and self.best[column] == row


def tables(found: Evaluation) -> list[Table]:
    """The numbers of an evaluation: a table for every network, and the price of the settings."""
    rows: list[Row] = []
    if found.real.metrics:
        rows.append((f"{_REAL}{found.real_name}, n = {found.real.metrics[0].count:,}", found.real.metrics))
    rows += [(cell.name, cell.measured.metrics) for cell in found.cells]
    names = list(dict.fromkeys(metric.features for _, metrics in rows for metric in metrics))
    made = [_of_network(name, rows) for name in names]
    if found.cells:
        header = ["", "seconds of a picture", "GFLOPs of a picture"]
        prices = [[cell.name, f"{cell.seconds:.4g}", f"{cell.flops / 1e9:.4g}"] for cell in found.cells]
        size = min(found.config.batch_size, found.config.count)
        told = f"from the condition to the decoded picture; seconds: the median of batches of {size}"
        made.append(Table("Price", header, prices, notes=[told]))
    if found.reconstruction is not None:
        made += _of_autoencoder(found)
    return made


def _of_network(name: str, rows: Sequence[Row]) -> Table:
    own = [(title, [metric for metric in metrics if metric.features == name]) for title, metrics in rows]
    own = [(title, metrics) for title, metrics in own if metrics]
    longest = max((metrics for _, metrics in own), key=len)
    header = [f"{metric.name} {'↓' if metric.better == LOWER else '↑'}" for metric in longest]
    texts, values = [], []
    for title, metrics in own:
        by_name = {metric.name: metric for metric in metrics}
        row = [by_name.get(metric.name) for metric in longest]
        texts.append([title, *(number(metric) for metric in row)])
        values.append(None if title.startswith(_REAL) else row)
    best = [None, *(_best(values, k) for k in range(len(longest)))]
    return Table(name, ["", *header], texts, best, _conditions(own))


def _conditions(rows: Sequence[Row]) -> list[str]:
    """What the numbers of a table depend on, beside the features; the row of real pictures says so itself."""
    found: dict[str, list[str]] = {}
    settings = [metrics for title, metrics in rows if not title.startswith(_REAL)]
    for metrics in settings or [metrics for _, metrics in rows]:
        for metric in metrics:
            against = f" against {metric.reference_count:,}" if metric.reference_count else ""
            told = f"n = {metric.count:,}{against}" + (f", {metric.note}" if metric.note else "")
            names = found.setdefault(told, [])
            if metric.name not in names:
                names.append(metric.name)
    return [f"{', '.join(names)}: {told}" for told, names in found.items()]


def _best(rows: Sequence[Sequence[Metric | None] | None], column: int) -> int | None:
    """The row whose metric is better than that of all others, by more than it is uncertain where that is known."""
    held = [(k, row[column]) for k, row in enumerate(rows) if row is not None]
    known = [(m.value if m.better == LOWER else -m.value, m.spread or 0, k) for k, m in held if m is not None]
    (value, spread, first), *others = sorted(known)
    return first if others and others[0][0] - value > spread else None


def number(metric: Metric | None) -> str:
    """A value for people."""
    if metric is None:
        return "–"
    spread = "" if metric.spread is None else f" ± {metric.spread:.2g}"
    return f"{metric.value:.4g}{spread}"


def _of_autoencoder(found: Evaluation) -> Iterator[Table]:
    lost = found.reconstruction
    assert lost is not None
    rows = [[metric.label, number(metric)] for metric in lost.metrics]
    caption = f"Autoencoder, on {found.pictures:,} pictures"
    yield Table(caption, ["", "value"], rows, notes=["±: the standard deviation over the pictures"])
    told = lost.latents
    channels = [
        [f"{k}", f"{mean:.3f}", f"{std:.3f}", f"{noise:.3f}"]
        for k, (mean, std, noise) in enumerate(zip(told.mean, told.std, told.noise, strict=True))
    ]
    caption = f"Its latents, scaled: KL {told.kl:,.1f} nats a picture, {told.kl / told.values:.3f} a number"
    yield Table(caption, ["channel", "mean", "std", "the encoder's own std"], channels)


def by_class(told: Judged) -> Table:
    """What a judge found, class by class."""
    rows = [
        [f"{k}", "–" if right is None else f"{right:.1%}", f"{share:.2%}", f"{usual:.2%}"]
        for k, (right, share, usual) in enumerate(zip(told.by_class, told.shares, told.reference_shares, strict=True))
    ]
    return Table("", ["class", "recognised as asked for", "share drawn", "share in the reference"], rows)


def heading(found: Evaluation, made: dict[str, Any]) -> list[str]:
    """What was evaluated, in lines of ``what: how``."""
    lines = [f"model: {made['model']}", f"reference: {found.reference}"]
    if found.cells:
        asked = {"none": "nothing", "label": "labels", "text": "captions"}[found.conditions]
        last = found.config.seed + found.config.count - 1
        lines.append(
            f"drawn: {found.config.count:,} pictures for each setting, asked for with {asked} as frequent as in the "
            f"reference, seeds {found.config.seed} to {last}"
        )
    keys = ("ldm", "torch", "device", "dtype", "threads", "processes")
    lines.append("made: " + ", ".join(f"{key} {made[key]}" for key in keys if key in made))
    return lines


def markdown(found: Evaluation, made: dict[str, Any], pictures: Mapping[str, str]) -> str:
    """The report; ``pictures`` are the files beside it that it shows, and what is to be seen there."""
    parts = ["# Evaluation", *(f"- {line}" for line in heading(found, made)), ""]
    for table in tables(found):
        parts += [f"## {table.caption}", "", *table_lines(table), "", *(f"- {note}" for note in table.notes), ""]
    parts += [f"{shows}\n\n![{name.partition('.')[0]}]({name})\n" for name, shows in pictures.items()]
    return "\n".join(parts) + "\n"


def table_lines(table: Table) -> Iterator[str]:
    """A table as lines of Markdown; what is best is bold."""
    yield "| " + " | ".join(table.header) + " |"
    yield "|---" * len(table.header) + "|"
    for k, row in enumerate(table.rows):
        cells = [f"**{cell}**" if table.is_best(k, column) else cell for column, cell in enumerate(row)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
