"""WebDataset tars as pictures at random access: all samples are listed once, and then found wherever they are."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ldm.data.decode import Stored
from ldm.data.example import BadExample, Words
from ldm.data.pictures import Pictures, as_tuple
from ldm.data.shards import open_shard, reading
from ldm.data.size_index import with_stand_ins
from ldm.data.streaming import skipped_of
from ldm.data.tar_lists import NAME, PLACE, list_tars
from ldm.data.webdataset import WebDatasetConfig, open_tars
from ldm.errors import UserError

_MOST_OPEN = 128  # tars


class IndexedTarSource(Pictures):
    """Samples of tar shards at random access; their keys are those that the stream gives.

    Raises:
        UserError: there are no shards, they cannot be reached, their first samples have nothing of what the settings
            name, or the list of samples to leave out is of other data.
    """

    sizes: Tensor | None

    def __init__(self, config: WebDatasetConfig) -> None:
        tars, name = open_tars(config)
        super().__init__(config, name, "")
        self.captioned = bool(as_tuple(config.caption_key))
        self.num_classes = len(config.class_names) if config.class_names else None
        self._places, self._names, self._open = tars.places, tars.names, _OpenTars()
        self._states, self._listings = list_tars(tars, config)
        self._ends = list(accumulate(len(listing.words) for listing in self._listings))
        if not self._ends[-1]:
            raise UserError(f"{name} has no samples")
        # Sizes are known, so there is nothing to read as ``_arrange`` does.
        self._order = self._without(skipped_of(config.skip, tars.names, name))
        found = np.concatenate([listing.pictures[:, 2:] for listing in self._listings]).astype(np.int32)
        self.sizes, self.sized = with_stand_ins(found[self._order.numpy()])

    def _without(self, skipped: frozenset[str]) -> Tensor:
        """The rows whose keys are not in a list, rising."""
        rows = torch.arange(self._ends[-1])
        if not skipped:
            return rows
        return rows[torch.tensor([self._key(row) not in skipped for row in rows.tolist()])]

    def _find(self, row: int) -> tuple[int, int]:
        """The tar of a row, and its number there."""
        tar = bisect_right(self._ends, row)
        return tar, row - (self._ends[tar - 1] if tar else 0)

    def _said(self, row: int) -> tuple[str, list[str], int | None, str]:
        """Key, captions, label and fault of a row."""
        tar, number = self._find(row)
        name, captions, label, fault = json.loads(self._listings[tar].words[number])
        fault = fault.replace(PLACE, self._places[tar]).replace(NAME, self._names[tar])
        return f"{self._names[tar]}/{name}", captions, label, fault

    def _key(self, row: int) -> str:
        return self._said(row)[0]

    def _called(self, row: int) -> str:
        return self._key(row)

    def _words(self, row: int) -> Words:
        key, captions, label, fault = self._said(row)
        if fault:
            raise BadExample(key, fault)
        return Words(label, tuple(captions))

    def _stored(self, row: int) -> Stored:
        tar, number = self._find(row)
        start, length = self._listings[tar].pictures[number, :2].tolist()
        if start < 0:
            raise BadExample(self._key(row), self._said(row)[3])
        held = self._open.read(self._places[tar], start, length)
        if len(held) < length:
            told = f"{self._places[tar]} ends in the middle of {self._key(row)}: it has changed since it was opened"
            raise BadExample(self._key(row), told)
        return held

    def _state(self, row: int) -> bytes:
        tar, number = self._find(row)
        start, length = self._listings[tar].pictures[number, :2].tolist()
        return f"{self._states[tar]} {start} {length}".encode()


class _OpenTars:
    """The tars that were read from last, open in this process alone, for one thread at a time."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._owner = os.getpid()

    def read(self, place: str, start: int, length: int) -> bytes:
        """A part of a tar, or what there is of it.

        Raises:
            UserError: the tar cannot be reached.
        """
        if os.getpid() != self._owner:  # a fork has the open files of its parent, and would move its places in them
            self._files, self._owner = OrderedDict(), os.getpid()
        if place not in self._files:
            self._files[place] = open_shard(place, ahead=False)
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(place)
        file = self._files[place]
        with reading(place):
            file.seek(start)
            return file.read(length)

    def __reduce__(self) -> tuple[type[_OpenTars], tuple[()]]:  # open files stay in their process
        return _OpenTars, ()
