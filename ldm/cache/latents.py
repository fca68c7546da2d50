"""Cut pictures to rows of moments, and back from the shards that hold them.

What is kept is the mean and log-variance that the VAE gives, so that latents are still drawn anew for every sample. A
mirrored picture is encoded by itself: a VAE does not mirror its latents exactly.

How a batch is encoded depends, in the last bits, on its size. So all batches have one size, that of training where it
fits, and rows do not depend on what was encoded beside them, nor on where a build was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.cache.cuts import CutBatch, Cuts, Cutting, Piece, collate_cuts
from ldm.cache.shards import Places, Shard, open_rows, write_shard
from ldm.codec import VAECodec
from ldm.data.example import BadExample, Source
from ldm.data.framing import Frame
from ldm.data.samples import Skipped
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.publishing import disk_trouble

_ENCODED_AT_ONCE = 2**21  # pixels, at most: eight pictures of 512x512


class LatentWriter:
    """Encodes pieces and writes them as shards.

    Args:
        source, ids, cutting: the pictures, their identities, how they are cut.
        codec: on its device.
        dtype: of what is kept.
        computing: autocast to encode in, if any.
        batch_size: pictures that are encoded together, as far as they fit.
        channels_last: memory format of the codec.
        workers: processes that decode.
        note: what every shard is to say.
        skip_bad: so many pictures that cannot be used are left out.
    """

    def __init__(
        self,
        source: Source,
        ids: np.ndarray,
        cutting: Cutting,
        codec: VAECodec,
        dtype: torch.dtype,
        *,
        computing: Callable[[], Any] | None = None,
        batch_size: int = 1,
        channels_last: bool = False,
        workers: int = 0,
        note: dict[str, Any],
        skip_bad: int = 0,
    ) -> None:
        self.source, self.ids, self.cutting, self.codec, self.dtype = source, ids, cutting, codec, dtype
        self.computing, self.workers, self.note, self.skip_bad = computing, workers, note, skip_bad
        self.batch_size = batch_size
        self.left_out: list[Skipped] = []
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        codec.vae.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]

    def write(self, todo: Sequence[tuple[Path, Piece]], told: Callable[[int], object]) -> None:
        """Encode pieces and write each to its file.

        Args:
            todo: files and what goes into them.
            told: called with numbers of pictures as they are done.

        Raises:
            UserError: too many pictures cannot be used, one gives no numbers, or the disk is full.
        """
        jobs = [(path, self._batches(piece)) for path, piece in todo]
        loader: Any = DataLoader(
            Cuts(self.source, self.ids, self.cutting),
            batch_sampler=[batch for _, batches in jobs for batch in batches],
            num_workers=self.workers,
            collate_fn=collate_cuts,
            pin_memory=self._device.type == "cuda",
        )
        arriving = iter(loader)
        # while one shard goes to the disk, the next is encoded
        with ThreadPoolExecutor(1) as disk:
            writing: Future[None] | None = None
            for path, batches in jobs:
                done = [self._encode(next(arriving), told) for _ in batches]
                if writing is not None:
                    writing.result()
                writing = disk.submit(self._write, path, done)
            if writing is not None:
                writing.result()

    @property
    def _device(self) -> torch.device:
        return self.codec.vae.last_layer.device

    def _at_once(self, shape: tuple[int, int]) -> int:
        """How many pictures of a shape are encoded together."""
        return max(1, min(self.batch_size, _ENCODED_AT_ONCE // (shape[0] * shape[1])))

    def _batches(self, piece: Piece) -> list[list[tuple[tuple[int, int], int]]]:
        size = max(1, self._at_once(piece.shape) // self.cutting.variants)
        asked = [(piece.shape, index) for index in piece.indices]
        return [asked[first : first + size] for first in range(0, len(asked), size)]

    def _encode(self, batch: CutBatch, told: Callable[[int], object]) -> CutBatch:
        """The batch with moments in place of its pictures."""
        self.left_out += batch.left_out
        if len(self.left_out) > self.skip_bad:
            raise UserError(too_many(self.left_out, self.skip_bad))
        if batch.images is not None:
            images = to_signed(batch.images.to(self._device, non_blocking=True)).contiguous(memory_format=self.layout)
            size = self._at_once((images.shape[2], images.shape[3]))
            parts = [self._moments(part, size, batch.indices, k * size) for k, part in enumerate(images.split(size))]
            batch = batch._replace(images=torch.cat(parts).unflatten(0, (-1, self.cutting.variants)))
        told(len(batch.indices) + len(batch.left_out))
        return batch

    def _moments(self, images: Tensor, size: int, indices: list[int], first: int) -> Tensor:
        """Moments (B, 2c, h, w) of pictures (B, C, H, W), as they are kept; they are encoded in a batch of ``size``.

        Args:
            images: in -1..1, at most ``size`` of them.
            size: of the batch.
            indices: of the pictures of the whole batch, for messages.
            first: the position in it of the first of these.
        """
        count = len(images)
        if count < size:
            images = torch.cat([images, images[-1:].expand(size - count, -1, -1, -1)]).contiguous(
                memory_format=self.layout
            )
        with torch.inference_mode():
            exact = self._exactly(images, indices, first)[:count]
        found = exact.to(self.dtype).cpu()
        fine = found.isfinite().flatten(1).all(1)
        if not bool(fine.all()):
            at = int(fine.int().argmin())
            raise UserError(
                f"{self._key(indices, first + at)}: its moments reach {float(exact[at].abs().max()):.4g}, beyond what "
                f"{self.dtype} holds: set cache.dtype to bf16 or fp32"
            )
        return found

    def _exactly(self, images: Tensor, indices: list[int], first: int) -> Tensor:
        """What the codec gives in the precision of training, or in that of its weights where that one overflows."""
        if self.computing is not None:
            try:
                with self.computing():
                    return self.codec.encode(images)
            except UserError:
                told = f"{self._key(indices, first)} and those after it: overflow under autocast, encoded again without"
                print(told, file=sys.stderr)
        try:
            return self.codec.encode(images)
        except UserError as error:
            raise UserError(self._culprits(images, indices, first, str(error))) from error

    def _culprits(self, images: Tensor, indices: list[int], first: int, told: str) -> str:
        """Which pictures of a batch the VAE gives no numbers for."""
        found = {}
        for at, image in enumerate(images.split(1)):
            try:
                self.codec.encode(image)
            except UserError:
                found[self._key(indices, min(first + at, len(indices) * self.cutting.variants - 1))] = None
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return f"{', '.join(list(found)[:5])}{more}: {told}"

    def _key(self, indices: list[int], at: int) -> str:
        return self.source.key(indices[at // self.cutting.variants])

    def _write(self, path: Path, done: list[CutBatch]) -> None:
        left_out = [skipped for batch in done for skipped in batch.left_out]
        indices = [index for batch in done for index in batch.indices] + [i for batch in done for i in batch.unusable]
        rows = [batch for batch in done if batch.images is not None and batch.frames is not None]
        tensors = {}
        if rows:
            tensors["moments"] = torch.cat([batch.images for batch in rows if batch.images is not None])
            tensors["frames"] = torch.cat([batch.frames for batch in rows if batch.frames is not None])
        note = {**self.note, "left_out": left_out}
        with disk_trouble(str(path), "; what was written before is kept"):
            write_shard(path, self.ids[indices], tensors, note)


def too_many(left_out: Sequence[Skipped], allowed: int) -> str:
    """What to say when more pictures cannot be used than ``skip_bad`` allows."""
    shown = "".join(f"\n  {skipped.message}" for skipped in left_out[:5])
    more = f"\n  and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    told = f"{len(left_out)} pictures cannot be used, and data.skip_bad allows {allowed}:{shown}{more}"
    return f"{told}\n`ldm data check` lists all of them"


def find_left_out(shards: Sequence[Shard], places: np.ndarray) -> np.ndarray:
    """Which places (shard, row), (n, 2), are those of pictures that could not be used: (n,) bool."""
    rows = np.array([shard.rows for shard in shards] or [0])
    return (places[:, 0] >= 0) & (places[:, 1] >= rows[places[:, 0]])


def left_out(shards: Sequence[Shard], ids: np.ndarray) -> list[Skipped]:
    """Of the pictures with these identities, those that could not be used, each once."""
    places = np.unique(Places(list(shards)).find(ids), axis=0)
    chosen = places[find_left_out(shards, places)].tolist()
    return [Skipped(*shards[number].note["left_out"][row - shards[number].rows]) for number, row in chosen]


class Latents:
    """Rows of moments, read from their shards; what is open is opened anew in every process.

    Args:
        shards: of one recipe.
        variants: parts of each picture, mirrored ones included.
    """

    def __init__(self, shards: Sequence[Shard], cutting: Cutting) -> None:
        self.shards, self.cutting = list(shards), cutting
        self._open: dict[int, tuple[Tensor, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # a mapping does not travel

    def read(self, place: Sequence[int], crop: int, mirrored: bool) -> tuple[Tensor, Frame]:
        """The moments (2c, h, w) and the frame of a part of a picture.

        Args:
            place: (shard, row).
            crop: which part.
            mirrored: left and right swapped.

        Raises:
            BadExample: the picture could not be used.
        """
        number, row = place
        shard = self.shards[number]
        if row >= shard.rows:
            raise BadExample(*shard.note["left_out"][row - shard.rows])
        if number not in self._open:
            tensors = open_rows(shard.path)
            self._open[number] = tensors["moments"], tensors["frames"].numpy()
        moments, frames = self._open[number]
        variant = crop * (1 + self.cutting.flip) + mirrored
        height, width, top, left, h, w, swapped = frames[row, variant].tolist()
        return moments[row, variant], Frame((height, width), top, left, h, w, bool(swapped))
