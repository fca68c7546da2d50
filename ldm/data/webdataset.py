"""WebDataset tars, as img2dataset writes them: ``000123.jpg``, ``000123.txt`` and ``000123.json`` one after the other."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ldm.data.streaming import StreamConfig
from ldm.errors import UserError


class WebDatasetConfig(StreamConfig):
    """Tar shards, on a disk or behind a URL.

    Attributes:
        path: a folder of tars, a tar, or a pattern: ``*`` and ``?`` on disks and stores that can be listed,
            ``{00000..00099}`` anywhere; or several of these. URLs are whatever fsspec opens: ``https://``, ``s3://``,
            ``hf://datasets/...``.
        extensions: of pictures; of several pictures in a sample, that of the first extension here.
        caption_key: extension of the file that is the caption, or ``json:KEY`` for a value of the sample's ``.json``,
            text or a list of texts; null where there are none.
        label_key: extension of the file that holds the class as a number, or ``json:KEY``.
    """

    source: Literal["webdataset"] = "webdataset"
    path: str | tuple[str, ...]
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption_key: str | None = "txt"
    label_key: str | None = None

    @model_validator(mode="after")
    def _check(self) -> WebDatasetConfig:
        if (self.label_key is None) != (self.classes is None):
            raise UserError("label_key and classes go together: where the class of a sample is, and how many there are")
        if not self.extensions or not self.path:
            raise UserError(f"{'extensions' if self.path else 'path'} should name at least one")
        return self
