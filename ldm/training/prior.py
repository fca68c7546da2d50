"""Pictures of the class, beside those of the member that is learned (DreamBooth, Ruiz et al. 2022, section 3.2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ldm.data.example import Example, Source, Words
from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.mixture import Mixture
from ldm.data.plan import parts_of
from ldm.data.samples import Batch
from ldm.data.split import Chosen
from ldm.errors import UserError
from ldm.images import save_image, to_pil
from ldm.pipeline import Pipeline
from ldm.publishing import disk_trouble, write_whole
from ldm.training.tune_settings import PriorPictures
from ldm.weights.model import Model

_MARK = "class picture "  # what the keys of these begin with
_NOTE = "prior.json"


class _Marked:
    """A source whose keys tell that its pictures are of the class."""

    def __init__(self, source: Source, num_classes: int | None) -> None:
        """``num_classes``: of the pictures beside these, which have no labels."""
        self._source, self.num_classes = source, num_classes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        return _MARK + self._source.key(index)

    def words(self, index: int) -> Words:
        return self._source.words(index)

    def read(self, index: int, *more: Any) -> Example:
        found = self._source.read(index, *more)  # a stream is told its turn too
        return Example(found.image, found.label, found.captions, _MARK + found.key, found.original)


def with_prior(source: Source, prior: Source) -> Mixture:
    """Both, each with half of the samples."""
    parts, weights = parts_of(source)
    whole = sum(weights)
    marked: Any = _Marked(prior, source.num_classes)
    return Mixture([*parts, marked], [*(float(weight / whole) for weight in weights), 1.0])


def is_of_class(source: Source) -> bool:
    """Whether a part of a mixture holds the pictures of the class."""
    return isinstance(source, _Marked)


def share_of_prior(batch: Batch) -> Tensor:
    """1 for samples that are pictures of the class and 0 for others, float32 (B,), on the CPU."""
    return torch.tensor([float(key.startswith(_MARK)) for key in batch.keys])


def class_pictures(
    folder: Path, model: Callable[[], Model], device: torch.device, prior: PriorPictures, told: dict[str, Any]
) -> Source:
    """The first pictures that a model draws of the class; those that are there already are kept.

    Each is drawn from a seed of its own, its number, by whichever process it falls to.

    Args:
        folder: where they are kept.
        model: gives the model on ``device``; called where something is to be drawn.
        device: to draw on.
        prior: what of, and how many.
        told: what else they depend on, beside ``colours``, the channels of a picture.

    Raises:
        UserError: the folder has pictures of something else.
    """
    _check_note(folder, {**told, "prompt": prior.prompt})
    paths = [folder / f"{k:05}.png" for k in range(prior.count)]
    missing = [k for k, path in enumerate(paths) if not path.is_file()]
    together = dist.is_available() and dist.is_initialized()
    own = missing[dist.get_rank() :: dist.get_world_size()] if together else missing
    if own:
        _draw({k: paths[k] for k in own}, Pipeline(model(), device, torch.float32), prior)
    if together:
        dist.barrier()
    colours = "grey" if told["colours"] == 1 else "rgb"
    source = FolderSource(FolderConfig(path=folder, layout="plain", caption=prior.prompt, colours=colours))
    wanted = {path.name for path in paths}  # there may be more, of a larger count
    return Chosen(source, torch.tensor([i for i in range(len(source)) if source.key(i) in wanted]))


def _draw(paths: dict[int, Path], pipeline: Pipeline, prior: PriorPictures) -> None:
    numbers = list(paths)
    batches = [numbers[k : k + prior.batch_size] for k in range(0, len(numbers), prior.batch_size)]
    for batch in tqdm(batches, desc="pictures of the class", unit="batch", disable=None):
        pictures = pipeline.generate([prior.prompt] * len(batch), batch, batch_size=prior.batch_size)
        for k, image in zip(batch, to_pil(pictures), strict=True):
            save_image(image, paths[k])


def _check_note(folder: Path, told: dict[str, Any]) -> None:
    path, note = folder / _NOTE, json.dumps(told, indent=2, sort_keys=True) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != note:
        raise UserError(f"{folder} holds pictures of the class that were drawn in another way: delete it to draw anew")
    with disk_trouble(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda place: place.write_text(note, encoding="utf-8"))
