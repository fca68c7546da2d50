"""Pictures to rows of moments: each cut as training would, mirrored too where training mirrors, and encoded.

What is kept is the mean and log-variance that the VAE gives, so that latents are still drawn anew for every sample. A
mirrored picture is encoded by itself: a VAE does not mirror its latents exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.cache.shards import Places, Shard, open_rows, rows_per_shard, write_shard
from ldm.codec import VAECodec
from ldm.data.example import BadExample, Source
from ldm.data.framing import Buckets, Frame, FrameConfig, cut, least_to_decode
from ldm.data.order import mix
from ldm.data.plan import common_size
from ldm.data.samples import Skipped
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.publishing import disk_trouble

ENCODED_AT_ONCE = 2**21  # pixels: eight pictures of 512x512
_MOST_AT_ONCE = 256
_CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Cutting:
    """How pictures are cut and how many parts of each are kept.

    Attributes:
        frame: the shapes they come to; None where all have one size and keep it.
        crops: parts of each.
        flip: each part mirrored too, after the one that is not.
        seed: of the run; places of random crops depend on it.
    """

    frame: FrameConfig | None
    crops: int
    flip: bool
    seed: int

    @property
    def random(self) -> bool:
        return self.frame is not None and self.frame.crop == "random"

    @property
    def variants(self) -> int:
        return self.crops * (1 + self.flip)

    def places(self, key: int) -> list[tuple[float, float]]:
        """Where each part lies in the picture whose key has this hash, down and across, from 0 to 1."""
        if not self.random:
            return [_CENTRE]
        generators = [torch.Generator().manual_seed(mix(self.seed, 9, key, crop)) for crop in range(self.crops)]
        return [tuple(torch.rand(2, generator=generator).tolist()) for generator in generators]

    def shapes(self, source: Source) -> tuple[list[tuple[int, int]], Tensor]:
        """The shapes that pictures come to, and for each picture the number of its own (N,)."""
        assert source.sizes is not None
        if self.frame is None:
            return [common_size(source)], torch.zeros(len(source), dtype=torch.int64)
        buckets = Buckets(self.frame)
        return list(buckets.shapes), buckets.assign(source.sizes)


class Piece(NamedTuple):
    """The pictures of one shard: of one shape, by their numbers in the source."""

    shape: tuple[int, int]
    indices: list[int]


def pieces(cutting: Cutting, source: Source, missing: np.ndarray, row_bytes: Callable[[int], int]) -> list[Piece]:
    """What is to be encoded, shard by shard; the same for whoever asks.

    Args:
        cutting: how pictures are cut.
        source: the pictures.
        missing: numbers of those that have no row, rising.
        row_bytes: bytes of a picture's row, by the pixels of its shape.
    """
    shapes, of = cutting.shapes(source)
    chosen = of[torch.from_numpy(missing)].numpy()
    found = []
    for number, shape in enumerate(shapes):
        own = missing[chosen == number].tolist()
        size = rows_per_shard(row_bytes(shape[0] * shape[1]), len(source))
        found += [Piece(shape, own[first : first + size]) for first in range(0, len(own), size)]
    return found


class _Cut(NamedTuple):
    """A picture ready to be encoded: uint8 (V, C, h, w), and the frames (V, 7) int32; or why it is left out."""

    index: int
    images: Tensor | None
    frames: Tensor | None
    left_out: Skipped | None


class _Cuts(Dataset[_Cut]):
    """Cut pictures, asked for by (shape, number)."""

    def __init__(self, source: Source, ids: np.ndarray, cutting: Cutting) -> None:
        self.source, self.ids, self.cutting = source, ids, cutting

    def __getitem__(self, asked: tuple[tuple[int, int], int]) -> _Cut:
        shape, index = asked
        try:
            images, frames = self._cut(shape, index)
        except BadExample as error:
            return _Cut(index, None, None, Skipped(error.key, str(error)))
        return _Cut(index, images, frames, None)

    def _cut(self, shape: tuple[int, int], index: int) -> tuple[Tensor, Tensor]:
        assert self.source.sizes is not None
        cutting = self.cutting
        height, width = self.source.sizes[index].tolist()
        least = None if cutting.frame is None else least_to_decode((height, width), shape)
        example = self.source.read(index, least)
        images, frames = [], []
        for place in cutting.places(int(self.ids[index, 0])):
            for mirrored in (False, True)[: 1 + cutting.flip]:
                image, frame = cut(example.image, example.original, shape, *place, mirrored)
                images.append(image)
                frames.append([*frame.sizes(), int(frame.mirrored)])
        return torch.stack(images), torch.tensor(frames, dtype=torch.int32)


class LatentWriter:
    """Encodes pieces and writes them as shards.

    Args:
        source, ids, cutting: the pictures, their identities, how they are cut.
        codec: on its device.
        dtype: of what is kept.
        computing: a context to encode in, such as autocast.
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
        computing: Callable[[], Any] = contextlib.nullcontext,
        workers: int = 0,
        note: dict[str, Any],
        skip_bad: int = 0,
    ) -> None:
        self.source, self.ids, self.cutting, self.codec, self.dtype = source, ids, cutting, codec, dtype
        self.computing, self.workers, self.note, self.skip_bad = computing, workers, note, skip_bad
        self.left_out: list[Skipped] = []
        codec.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

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
            _Cuts(self.source, self.ids, self.cutting),
            batch_sampler=[batch for _, batches in jobs for batch in batches],
            num_workers=self.workers,
            collate_fn=_collate,
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

    def _batches(self, piece: Piece) -> list[list[tuple[tuple[int, int], int]]]:
        pixels = piece.shape[0] * piece.shape[1] * self.cutting.variants
        size = max(1, min(_MOST_AT_ONCE, ENCODED_AT_ONCE // pixels))
        asked = [(piece.shape, index) for index in piece.indices]
        return [asked[first : first + size] for first in range(0, len(asked), size)]

    def _encode(self, batch: _Batch, told: Callable[[int], object]) -> _Batch:
        """The batch with moments in place of its pictures."""
        self.left_out += batch.left_out
        if len(self.left_out) > self.skip_bad:
            raise UserError(too_many(self.left_out, self.skip_bad))
        if batch.images is not None:
            images = batch.images.to(self._device, non_blocking=True)
            found = self._moments(images, batch.indices)
            batch = batch._replace(images=found.unflatten(0, (len(batch.indices), self.cutting.variants)))
        told(len(batch.indices) + len(batch.left_out))
        return batch

    def _moments(self, images: Tensor, indices: list[int]) -> Tensor:
        """Moments (B, 2c, h, w) in the dtype that is kept, on the CPU, of uint8 (B, C, H, W)."""
        signed = to_signed(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self.computing():
            try:
                exact = self.codec.encode(signed)
            except UserError as error:
                raise UserError(self._culprits(signed, indices, str(error))) from error
        found = exact.to(self.dtype).cpu()
        fine = found.isfinite().flatten(1).all(1)
        if not bool(fine.all()):
            at = int(fine.int().argmin())
            raise UserError(
                f"{self._key(indices, at)}: its moments reach {float(exact[at].abs().max()):.4g}, beyond what "
                f"{self.dtype} holds: set cache.dtype to bf16 or fp32"
            )
        return found

    def _culprits(self, signed: Tensor, indices: list[int], told: str) -> str:
        """Which pictures of a batch the VAE gives no numbers for."""
        found = []
        for at, image in enumerate(signed.split(1)):
            try:
                self.codec.encode(image)
            except UserError:
                found.append(self._key(indices, at))
        keys = list(dict.fromkeys(found)) or [self.source.key(index) for index in indices]
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        return f"{', '.join(keys[:5])}{more}: {told}"

    def _key(self, indices: list[int], at: int) -> str:
        return self.source.key(indices[at // self.cutting.variants])

    def _write(self, path: Path, done: list[_Batch]) -> None:
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
    return f"{len(left_out)} pictures cannot be used, and data.skip_bad allows {allowed}:{shown}{more}"


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
        self._open: dict[int, dict[str, Tensor]] = {}

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
        tensors = self._open.get(number)
        if tensors is None:
            tensors = self._open[number] = open_rows(self.shards[number].path)
        if row >= self.shards[number].rows:
            raise BadExample(*self.shards[number].note["left_out"][row - self.shards[number].rows])
        variant = crop * (1 + self.cutting.flip) + mirrored
        height, width, top, left, h, w, swapped = tensors["frames"][row, variant].tolist()
        return tensors["moments"][row, variant], Frame((height, width), top, left, h, w, bool(swapped))


class _Batch(NamedTuple):
    """Pictures to encode and what is known of them.

    Attributes:
        indices: of the pictures that can be used.
        images: uint8 (B V, C, h, w), then moments (B, V, 2c, h, w); None where there is no picture.
        frames: (B, V, 7).
        unusable: indices of the others.
        left_out: why each of them is.
    """

    indices: list[int]
    images: Tensor | None
    frames: Tensor | None
    unusable: list[int]
    left_out: list[Skipped]


def _collate(cuts: list[_Cut]) -> _Batch:
    images = [cut.images for cut in cuts if cut.images is not None]
    frames = [cut.frames for cut in cuts if cut.frames is not None]
    return _Batch(
        [cut.index for cut in cuts if cut.left_out is None],
        torch.cat(images) if images else None,
        torch.stack(frames) if frames else None,
        [cut.index for cut in cuts if cut.left_out is not None],
        [cut.left_out for cut in cuts if cut.left_out is not None],
    )
