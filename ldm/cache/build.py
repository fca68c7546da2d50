"""A cache as a run wants it: what is there is checked, what is missing, stale or damaged is made, by all processes.

FOLDER/latents-00000.safetensors, ...   moments of pictures
FOLDER/texts-00000.safetensors, ...     contexts of texts
FOLDER/cache.json                       how they were made; every file with its size and when it was last checked

A file is checked in full when it is new, or anything about it has changed since it was last checked. What cannot be
told from the shards themselves is not in ``cache.json``, so it may be deleted or damaged: then all files are checked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from ldm.cache.cuts import Cutting, pieces
from ldm.cache.fingerprint import Recipe, changes_of_pictures, picture_ids
from ldm.cache.latents import LatentWriter, find_left_out, left_out, too_many
from ldm.cache.reader import Cache, Made
from ldm.cache.settings import CacheConfig
from ldm.cache.shards import Places, state_of
from ldm.cache.shelf import Shelf, check_folder, discard_damaged, read_contents, sweep, write_contents
from ldm.cache.texts import text_ids, text_pieces, texts_of, write_texts
from ldm.codec import VAECodec
from ldm.data.caption_forms import CaptionConfig
from ldm.data.example import Source
from ldm.errors import UserError
from ldm.publishing import disk_trouble
from ldm.text_conditioner import TextConditioner

T = TypeVar("T")


@dataclass(frozen=True)
class Maker(Generic[T]):
    """Who makes rows.

    Attributes:
        recipe: what tells it from others.
        load: reads it, onto its device; called only where something is to be made.
    """

    recipe: Recipe
    load: Callable[[], T]


@dataclass(frozen=True)
class Wanted:
    """What a run wants kept.

    Attributes:
        folder: of the cache.
        config: how it is kept.
        source: all pictures, before any are held out.
        cutting: how they are cut.
        captions: what is done to captions.
        vae: makes moments; None where training is in pixels.
        text: makes contexts; None where there is no text, or it is not kept.
        precision: ``no``, ``bf16`` or ``fp16``: to compute in.
        device: to compute on.
        batch_size: pictures that training would encode together.
        channels_last: memory format to encode in.
        workers: processes that decode.
        skip_bad: so many pictures that cannot be used are left out.
    """

    folder: Path
    config: CacheConfig
    source: Source
    cutting: Cutting
    captions: CaptionConfig
    vae: Maker[VAECodec] | None
    text: Maker[TextConditioner] | None
    precision: str
    device: torch.device
    batch_size: int = 1
    channels_last: bool = False
    workers: int = 0
    skip_bad: int = 0

    def autocast(self) -> Callable[[], Any] | None:
        """A context to encode in, as training does; None where it is at full precision."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.precision not in dtypes:
            return None
        return lambda: torch.autocast(self.device.type, dtypes[self.precision])


def open_or_build(wanted: Wanted, *, thorough: bool = False) -> Cache:
    """Open a cache, after making what it lacks; all processes of a run call this together.

    Args:
        wanted: what is to be in it.
        thorough: check every file in full, whether or not it was before.

    Raises:
        UserError: a picture or text cannot be encoded, or the folder cannot be used.
    """
    return _Builder(wanted, thorough).open()


class _Builder:
    def __init__(self, wanted: Wanted, thorough: bool) -> None:
        from accelerate import PartialState

        self.wanted, self.thorough = wanted, thorough
        self.crew: Any = PartialState()
        self.latents = None if wanted.vae is None else Shelf(wanted.folder, "latents", wanted.vae.recipe)
        self.texts = None if wanted.text is None else Shelf(wanted.folder, "texts", wanted.text.recipe)
        self.shelves = [shelf for shelf in (self.latents, self.texts) if shelf is not None]

    def open(self) -> Cache:
        wanted, began = self.wanted, time.perf_counter()
        ids = picture_ids(wanted.source) if self.latents else np.empty((0, 2), np.int64)
        texts = texts_of(wanted.source, wanted.captions, wanted.cutting.seed) if self.texts else []
        contents = self._inspect()
        # every process plans by what is there now, before any of them adds to it
        new_texts = self._missing_texts(texts)
        new_pictures = self._missing_pictures(ids)
        self.crew.wait_for_everyone()
        self._make_texts(new_texts, len(texts))
        self._make_latents(new_pictures, ids)
        self.crew.wait_for_everyone()
        latents, kept_texts = (None if shelf is None else shelf.shards() for shelf in (self.latents, self.texts))
        bad = left_out(latents, ids) if latents else []
        if len(bad) > wanted.skip_bad:
            raise UserError(too_many(bad, wanted.skip_bad))
        if self.crew.is_main_process:
            self._write_contents(contents)
        self.crew.wait_for_everyone()
        made = Made(len(new_pictures), len(new_texts), time.perf_counter() - began)
        return Cache(wanted.folder, wanted.cutting, latents, kept_texts, bad, made)

    # ------------------------------------------------------------------------------- what is there

    def _inspect(self) -> dict[str, Any]:
        """Delete what is damaged or stale, and say so; return what ``cache.json`` said."""
        folder, crew = self.wanted.folder, self.crew
        check_folder(folder)
        contents, told = read_contents(folder)
        known = {} if self.thorough else _listed(contents)
        files = [path for shelf in self.shelves for path in shelf.files()]
        expected = [name for shelf in self.shelves for name in contents.get(shelf.kind, {"files": ()})["files"]]
        told += [f"{name} is missing" for name in expected if not (folder / name).is_file()]
        crew.wait_for_everyone()
        if crew.is_main_process:
            sweep(folder)
            self._say(told)
        self._say(discard_damaged(known, files[crew.process_index :: crew.num_processes]))
        crew.wait_for_everyone()
        if crew.is_main_process:
            for shelf in self.shelves:
                self._say(shelf.discard_stale(), f"; its {shelf.kind} are made again")
                if self.thorough:
                    shelf.discard_empty()
        crew.wait_for_everyone()
        return contents

    def _say(self, phrases: list[str], consequence: str = "; what was in it is made again") -> None:
        if phrases:
            print(f"{self.wanted.folder}: {', '.join(phrases)}{consequence}")

    def _missing_pictures(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of the pictures that have no row, each picture once, rising."""
        if self.latents is None:
            return np.empty(0, np.int64)
        shards = self.latents.shards()
        places = Places(shards)
        found = places.find(ids)
        if self.thorough:  # what could not be used may have been mended
            found[find_left_out(shards, found)] = -1
        lacking = np.nonzero(found[:, 0] < 0)[0]
        _, first = np.unique(ids[lacking, 1], return_index=True)
        if len(lacking) and len(places.ids) and self.crew.is_main_process:
            self._say(changes_of_pictures(places.ids, ids), "")
        return np.sort(lacking[first])

    def _missing_texts(self, texts: list[str | None]) -> list[str | None]:
        if self.texts is None:
            return []
        found = Places(self.texts.shards()).find(text_ids(texts))[:, 0]
        return [text for text, number in zip(texts, found.tolist(), strict=True) if number < 0]

    # ------------------------------------------------------------------------------ what is lacking

    def _make_latents(self, missing: np.ndarray, ids: np.ndarray) -> None:
        wanted, shelf = self.wanted, self.latents
        if shelf is None or wanted.vae is None or not len(missing):
            return
        codec = wanted.vae.load()
        numbers = 2 * codec.channels * wanted.cutting.variants * wanted.config.torch_dtype.itemsize
        found = pieces(wanted.cutting, wanted.source, missing, lambda pixels: numbers * pixels // codec.factor**2)
        writer = LatentWriter(
            wanted.source,
            ids,
            wanted.cutting,
            codec,
            wanted.config.torch_dtype,
            computing=wanted.autocast(),
            batch_size=wanted.batch_size,
            channels_last=wanted.channels_last,
            workers=wanted.workers,
            note=shelf.note(),
            skip_bad=wanted.skip_bad,
        )
        with self._share(shelf, found, lambda piece: len(piece.indices), "picture") as (todo, told):
            writer.write(todo, told)

    def _make_texts(self, missing: list[str | None], total: int) -> None:
        wanted, shelf = self.wanted, self.texts
        if shelf is None or wanted.text is None or not missing:
            return
        conditioner, dtype = wanted.text.load(), wanted.config.torch_dtype
        found = text_pieces(missing, conditioner, total, dtype.itemsize)
        with self._share(shelf, found, lambda piece: len(piece.texts), "text") as (todo, told):
            write_texts(
                todo, conditioner, dtype, told, computing=wanted.autocast() or contextlib.nullcontext, note=shelf.note()
            )

    @contextlib.contextmanager
    def _share(self, shelf: Shelf, found: list[Any], size: Callable[[Any], int], unit: str) -> Iterator[Any]:
        """This process's share of the pieces with their files, and what counts them on a bar."""
        crew = self.crew
        with disk_trouble(str(shelf.folder)):
            shelf.folder.mkdir(parents=True, exist_ok=True)
        paths = shelf.fresh(len(found))
        crew.wait_for_everyone()  # nobody adds a file before everybody knows its own
        todo = list(zip(paths, found, strict=True))[crew.process_index :: crew.num_processes]
        total = sum(size(piece) for _, piece in todo)
        whose = f" (process 1 of {crew.num_processes})" if crew.num_processes > 1 else ""
        hidden = None if crew.is_main_process else True  # None: where there is no terminal
        with tqdm(total=total, unit=unit, desc=f"keeping {shelf.kind}{whose}", disable=hidden) as bar:
            yield todo, bar.update

    # ------------------------------------------------------------------------------------ the end

    def _write_contents(self, before: dict[str, Any]) -> None:
        """Note the state of all files, which are whole by now."""
        folder = self.wanted.folder
        contents = {
            shelf.kind: {
                "made with": {name: trait.words for name, trait in shelf.recipe.items()},
                "files": {
                    shard.path.name: {"rows": shard.rows, "state": state_of(shard.path)} for shard in shelf.shards()
                },
                "left out": [list(item) for shard in shelf.shards() for item in shard.note.get("left_out", [])],
            }
            for shelf in self.shelves
        }
        contents = {**before, **contents}
        if contents == before:
            return
        if not os.access(folder, os.W_OK):
            print(f"{folder} cannot be written to, so its files will be checked in full at every start")
            return
        write_contents(folder, contents)


def _listed(contents: dict[str, Any]) -> dict[str, list[int]]:
    """The files that ``cache.json`` lists, with the states in which they were whole."""
    return {name: told["state"] for kind in contents.values() for name, told in kind["files"].items()}
