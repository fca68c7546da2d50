"""Tables of pictures that are read from the front and never as a whole: parquet files, and data sets of the hub."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ldm.data.streaming import StreamConfig
from ldm.errors import UserError


class StreamedTableConfig(StreamConfig):
    """Rows streamed by ``datasets``.

    Attributes:
        path: a name on the hub; or a parquet file, a folder of them, a pattern with ``*``, a URL; or several of these.
        name: of the configuration of a hub data set.
        split: of a hub data set.
        revision: of a hub data set; a branch is as it stands when the run begins.
        image_column, caption_column, label_column: what they are called; null where there is none.
    """

    source: Literal["stream"] = "stream"
    path: str | tuple[str, ...]
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str = "image"
    caption_column: str | None = "text"
    label_column: str | None = None

    @model_validator(mode="after")
    def _check(self) -> StreamedTableConfig:
        if (self.label_column is None) != (self.classes is None):
            raise UserError("label_column and classes go together: where the class of a row is, and how many there are")
        if not self.path:
            raise UserError("path should name at least one")
        return self
