"""Texts to rows of contexts: every form of every caption, the empty prompt, and the dropped condition, each once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.cache.fingerprint import text_id
from ldm.cache.shards import Places, Shard, open_rows, rows_per_shard, write_shard
from ldm.conditioner import Condition
from ldm.data.caption_forms import CaptionConfig, forms
from ldm.data.example import BadExample, Source
from ldm.diffusion.context import Context
from ldm.errors import UserError
from ldm.publishing import disk_trouble
from ldm.text_conditioner import TextConditioner

_AT_ONCE = 128  # texts


def texts_of(source: Source, captions: CaptionConfig, seed: int) -> list[str | None]:
    """Every text that training can ask for: each once, in the order of the pictures.

    Raises:
        UserError: captions are drawn anew for every sample, so that they cannot be listed.
    """
    if captions.changes and captions.variants is None:
        raise UserError(
            "captions.shuffle and captions.drop_parts make a new text for every sample, which no cache can hold: set "
            "captions.variants to so many fixed forms of each caption, such as 8, or cache.texts to false"
        )
    own: dict[str, None] = {}
    for index in range(len(source)):
        with contextlib.suppress(BadExample):  # told where its picture comes up
            own |= dict.fromkeys(source.words(index).captions)
    # "" is also what prompts of a batch are padded with
    found: dict[str | None, None] = {None: None, "": None}
    for caption in own:
        found |= dict.fromkeys(forms(caption, captions, seed))
    return list(found)


def text_ids(texts: Sequence[str | None]) -> np.ndarray:
    """Identities of texts, (n, 2) int64."""
    return np.array([text_id(text) for text in texts], np.int64).reshape(-1, 2)


class TextPiece(NamedTuple):
    """The texts of one shard, which are of one length in tokens."""

    texts: list[str | None]


def text_pieces(texts: Sequence[str | None], conditioner: TextConditioner, total: int, item: int) -> list[TextPiece]:
    """What is to be encoded, shard by shard; the same for whoever asks.

    Args:
        texts: those that have no row.
        conditioner: tells their lengths.
        total: texts in the cache.
        item: bytes of a number.
    """
    by_length: dict[int, list[str | None]] = {}
    for text in texts:
        by_length.setdefault(conditioner.length(text), []).append(text)
    found = []
    for length, own in sorted(by_length.items()):
        size = rows_per_shard(item * (length * conditioner.width + (conditioner.pooled_width or 0)), total)
        found += [TextPiece(own[first : first + size]) for first in range(0, len(own), size)]
    return found


def write_texts(
    todo: Sequence[tuple[Path, TextPiece]],
    conditioner: TextConditioner,
    dtype: torch.dtype,
    told: Callable[[int], object],
    *,
    computing: Callable[[], Any] = contextlib.nullcontext,
    note: dict[str, Any],
) -> None:
    """Encode texts and write each piece to its file.

    Args:
        todo: files and what goes into them.
        conditioner: on its device.
        dtype: of what is kept.
        told: called with numbers of texts as they are done.
        computing: a context to encode in, such as autocast.
        note: what every shard is to say.

    Raises:
        UserError: a text gives what is no number in ``dtype``, or the disk is full.
    """
    for path, piece in todo:
        rows = []
        for first in range(0, len(piece.texts), _AT_ONCE):
            some = piece.texts[first : first + _AT_ONCE]
            rows.append(_encode(some, conditioner, dtype, computing))
            told(len(some))
        tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        with disk_trouble(str(path), "; what was written before is kept"):
            write_shard(path, text_ids(piece.texts), tensors, note)


def _encode(
    texts: Sequence[Condition], conditioner: TextConditioner, dtype: torch.dtype, computing: Callable[[], Any]
) -> dict[str, Tensor]:
    with computing():
        context = conditioner.encode(texts)
    conditioner.forget()  # each text comes once
    found = {}
    for name in ("tokens", "pooled"):
        value = getattr(context, name)
        if value is None:
            continue
        found[name] = value.to(dtype).cpu()
        fine = found[name].isfinite().flatten(1).all(1)
        if not bool(fine.all()):
            text = texts[int(fine.int().argmin())]
            raise UserError(
                f"the text encoder gives what is no number in {dtype} for {text!r}: "
                "set cache.dtype to fp32, or train.mixed_precision to bf16 or no"
            )
    return found


class Texts:
    """Contexts, read from their shards; what is open is opened anew in every process."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.places = Places(self.shards)
        self._open: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # a mapping does not travel

    def read(self, text: str | None) -> Context:
        """The context of a text, batch size 1, float32.

        Raises:
            UserError: it is not there.
        """
        number, row = self.places.find(text_ids([text]))[0].tolist()
        if number < 0:
            raise UserError(f"the cache holds no context of {text!r}: `ldm data cache` adds what is missing")
        tensors = self._open.get(number)
        if tensors is None:
            tensors = self._open[number] = open_rows(self.shards[number].path)
        rows = {name: value[row : row + 1].float() for name, value in tensors.items()}
        return Context(rows["tokens"], rows.get("pooled"))
