"""What ``ldm show PICTURE`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.metadata.a1111 import parse_parameters
from ldm.metadata.embed import PARAMETERS_CHUNK
from ldm.metadata.plain import printable
from ldm.metadata.read import COMFYUI, Fields, read_fields
from ldm.metadata.record import Record


def describe_picture(path: Path | str) -> str:
    """What a picture says of how it was made: lines for people.

    Ours is told in full. Of other programs, A1111's text is told, and ComfyUI's graph is named.

    Raises:
        UserError: the file is no readable picture, or its record is damaged or of a newer ldm.
    """
    fields = read_fields(Path(path))
    head = f"{path}: {fields.format}, {fields.size[0]}x{fields.size[1]}"
    if fields.record is not None:
        lines = [f"{head}, drawn by ldm", *_record_lines(Record.from_json(fields.record, str(path)))]
    else:
        lines = [head, *_foreign_lines(fields)]
    return printable("\n".join(lines))


def _record_lines(record: Record) -> Iterator[str]:
    yield from _line("prompt", record.prompt)
    yield from _line("negative", record.negative)
    yield from _line("seed", record.seed)
    for key, value in record.drawing.items():
        yield from _line(key, None if value == {} else value)
    for part, file in record.inputs.items():
        yield from _line(part, f"{file.name} (sha256 {file.sha256})")
    source = f"from {record.model.source}" if record.model.source else "of ldm"
    yield from _line("model", f"{record.model.name}, {source}")
    yield from _line("model hash", record.model.hash)
    for key, value in record.loading.items():
        yield from _line(key, value)
    yield from _line("versions", ", ".join(f"{name} {number}" for name, number in record.versions.items()))
    yield from _line("pixels", f"sha256 {record.pixels}")
    cost = record.cost
    memory = "" if cost.peak_memory is None else f", {cost.peak_memory:,.0f} MiB at most"
    flops = "" if cost.flops is None else f", {cost.flops:.3g} FLOPs"
    yield from _line("cost", f"{cost.seconds:.2f} s{memory}{flops}")


def _foreign_lines(fields: Fields) -> Iterator[str]:
    text = fields.texts.get(PARAMETERS_CHUNK)
    if text is not None:
        parsed = parse_parameters(text)
        yield from _line("prompt", parsed.prompt)
        yield from _line("negative", parsed.negative or None)
        for key, value in parsed.settings.items():
            yield from _line(key, value)
    graph = [name for name in COMFYUI if name in fields.texts]
    if graph:
        yield f"holds a graph of ComfyUI ({', '.join(graph)}), which is not interpreted"
    if text is None and not graph:
        others = sorted(fields.texts)
        named = f"; it has texts of other kinds: {', '.join(others)}" if others else ""
        yield f"says nothing of how it was made{named}"


def _line(key: str, value: Any) -> Iterator[str]:
    if value is not None:
        yield f"  {key}: {value}".replace("\n", "\n    ")
