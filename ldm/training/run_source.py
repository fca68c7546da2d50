"""The pictures that a run learns from."""

from __future__ import annotations

from pathlib import Path

from ldm.data.example import Source
from ldm.data.folder import FolderConfig
from ldm.data.sources import MixConfig, SourceConfig, SplitConfig, open_source
from ldm.data.split import thin_out
from ldm.errors import UserError
from ldm.training.settings import RunSettings

HOW_TO_CAPTION = (
    "a folder takes a text file beside each picture, a metadata.jsonl, or `data.caption` for all; mnist `data.captions`"
)


def source_of(run: RunSettings) -> Source:
    """Open the source of a run, or as much of it as the run asks for.

    Raises:
        UserError: it cannot be opened, is a stream, of which there is no part, or would hold what the run draws.
    """
    _keep_apart(run.output, run.data)
    source = open_source(run.data)
    return source if run.limit is None else thin_out(source, run.limit)


def _keep_apart(output: Path, data: SourceConfig) -> None:
    """Refuse to draw into a folder of training pictures."""
    if isinstance(data, MixConfig):
        for each in data.sources:
            _keep_apart(output, each.data)
    if isinstance(data, SplitConfig):
        _keep_apart(output, data.of)
    if isinstance(data, FolderConfig):
        folder, place = data.path.expanduser().resolve(), output.resolve()
        if folder in (place, *place.parents):
            told = (
                f"output {output} is in {data.path}, the folder of the pictures, and what the run draws would be data"
            )
            raise UserError(f"{told}: choose another `output`")
