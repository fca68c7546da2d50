"""What a task brings to the training loop.

A task has one or more *players*, modules trained in turn within a step, each by an optimiser of its own:
diffusion and CLIP have one, an autoencoder has two (itself and its adversary). The first is the one whose
moving average is kept. The loop knows nothing else about a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ldm.data.samples import TrainingSamples


class Losses(NamedTuple):
    """What a player's forward pass returns.

    Attributes:
        loss: scalar, to be minimised.
        parts: for the log: name -> (sum, count), both scalars; the log has their ratio over an interval.
    """

    loss: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]


class Borrowed:
    """Holds a module that belongs to someone else, so that the holder neither trains nor copies it.

    A module that is merely an attribute would be a submodule: trained, saved, and copied for the moving average.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Borrowed:
        return self


class Task(Protocol):
    """Pixel or latent diffusion, an autoencoder, or CLIP.

    Attributes:
        samples: the training samples.
        players: name -> module whose ``forward(batch, step)`` returns ``Losses``; the first is kept averaged.
    """

    samples: TrainingSamples
    players: Mapping[str, nn.Module]

    def compile(self) -> None:
        """Have ``torch.compile`` compile the networks, in place: no name of a weight changes."""
        ...

    def plays(self, player: str, step: int) -> bool:
        """Whether a player is trained at this step."""
        ...

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        """Write a model folder from the averaged copy of the first player."""
        ...

    def draw(self, averaged: nn.Module, path: Path, seed: int) -> None:
        """Write a sheet of pictures that shows how far training is."""
        ...


def mean_of(values: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(sum, count) of per-sample values (B,), of the ``chosen`` ones (B,) bool when given."""
    if chosen is None:
        return values.detach().sum(), values.new_tensor(float(values.numel()))
    return (values.detach() * chosen).sum(), chosen.sum().to(values.dtype)
