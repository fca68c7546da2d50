"""Training samples: an example with all that is drawn for it, ready to be batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conditioner import Condition
from ldm.data.example import Source
from ldm.data.order import draws, example_index
from ldm.diffusion.process import Process


@dataclass(frozen=True)
class Batch:
    """B training samples.

    Attributes:
        index: global sample indices (B,).
        images: (B, C, H, W) uint8, flips done; or what a codec's ``encode`` gave, float.
        conditions: one per sample, ``None`` where dropped.
        captions: one caption per sample ("" without captions), never dropped.
        uniform: (B,) in [0, 1), for the training time.
        codec_noise, noise: (B, c, h, w), empty where the task asks for none.
    """

    index: Tensor
    images: Tensor
    conditions: list[Condition]
    captions: list[str]
    uniform: Tensor
    codec_noise: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move what the network reads; a no-op where it is already there."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **moved})

    def pin_memory(self) -> Batch:
        """Called by the data loader when copies to a GPU are to overlap with work."""
        pinned = {k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **pinned})


class TrainingSamples(Dataset[dict[str, Any]]):
    """Samples by their global index, any number of epochs: ``samples[n]`` for n = 0, 1, 2, ...

    Args:
        source: the examples.
        seed: of the run.
        condition: which part of an example conditions the picture: ``none``, ``label`` or ``text``.
        drop: probability of dropping a condition, for classifier-free guidance.
        flip: mirror half of the samples left to right.
        process: draws the diffusion noise; None for tasks without one.
        latent_shape: (c, h, w) of the diffused space; None for tasks that draw no noise.
        encoded: what a codec gave for every example, in place of its picture.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        *,
        condition: str = "none",
        drop: float = 0.0,
        flip: bool = False,
        process: Process | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        encoded: Tensor | None = None,
    ) -> None:
        self.source, self.seed = source, seed
        self.condition, self.drop, self.flip = condition, drop, flip
        self.process, self.latent_shape, self.encoded = process, latent_shape, encoded

    def __getitem__(self, n: int) -> dict[str, Any]:
        index = example_index(self.seed, n, len(self.source))
        example = self.source[index]
        generator = draws(self.seed, n)
        # Drawn in one fixed order, used or not, so that no setting shifts what another draws.
        pick, mirror, drop, uniform = torch.rand(4, generator=generator).tolist()
        captions = example.captions
        caption = captions[int(pick * len(captions))] if captions else ""
        image = example.image if self.encoded is None else self.encoded[index]
        if self.flip and mirror < 0.5:
            image = image.flip(-1)
        condition = {"none": None, "label": example.label, "text": caption}[self.condition]
        shape = self.latent_shape or (0,)
        codec_noise = torch.randn(shape, generator=generator)
        return {
            "index": n,
            "images": image,
            "conditions": None if drop < self.drop else condition,
            "captions": caption,
            "uniform": uniform,
            "codec_noise": codec_noise,
            "noise": self.process.noise(shape, generator) if self.process else codec_noise,
        }


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples into a batch."""
    column = {key: [item[key] for item in items] for key in items[0]}
    return Batch(
        index=torch.tensor(column["index"]),
        images=torch.stack(column["images"]),
        conditions=column["conditions"],
        captions=column["captions"],
        uniform=torch.tensor(column["uniform"]),
        codec_noise=torch.stack(column["codec_noise"]),
        noise=torch.stack(column["noise"]),
    )
