"""The pictures that a run learns from."""

from __future__ import annotations

from ldm.data.example import Source
from ldm.data.sources import open_source
from ldm.data.split import thin_out
from ldm.training.settings import RunSettings

HOW_TO_CAPTION = (
    "a folder takes a text file beside each picture, a metadata.jsonl, or `data.caption` for all; mnist `data.captions`"
)


def source_of(run: RunSettings) -> Source:
    """Open the source of a run, or as much of it as the run asks for.

    Raises:
        UserError: it cannot be opened, or is a stream, of which there is no part.
    """
    source = open_source(run.data)
    return source if run.limit is None else thin_out(source, run.limit)
