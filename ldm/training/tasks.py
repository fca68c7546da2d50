"""What a task brings to the training loop.

A task has one or more *players*, modules trained in turn within a step, each by an optimiser of its own:
diffusion and CLIP have one, an autoencoder has two (itself and its adversary). The first is the one whose
moving average is kept. The loop knows nothing else about a task.

Of a player, the parameters that require gradients when the run begins are trained, averaged and in checkpoints; the
others are neither copied nor written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

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

    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        """This process's share of the sheet of samples: pictures number rank, rank + processes, ... of it.

        A picture depends on the weights, the run's seed and its own number, and on nothing else, so that a sheet is the
        same however many processes draw it. ``averaged`` is in evaluation mode.

        Returns:
            Pictures (C, H, W), on the CPU.
        """
        ...

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        """Write all pictures of a sheet, in order; called in the main process alone.

        A signal may break it off: ``path``, which is written last, tells that all was done.

        Returns:
            What is to be logged of them; may be empty.
        """
        ...


@runtime_checkable
class Validated(Protocol):
    """A task that is judged every ``validation.every`` steps; all methods are called with the averaged weights."""

    def validation(self, averaged: nn.Module, rank: int, processes: int) -> dict[str, tuple[float, float]]:
        """Name -> (sum, count) over this process's share of what is held out; ``validation_NAME`` in the log.

        Everything random is fixed, so that the values of two moments can be compared. Processes may name others.
        """
        ...

    def draw_validation(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        """This process's share of the fixed pictures, as in :meth:`Task.draw`; may be none."""
        ...

    def write_validation(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        """As :meth:`Task.write_sheet`; not called without pictures."""
        ...


@runtime_checkable
class Following(Protocol):
    """A task with a use for the moving average while it trains, as distillation has."""

    def follow(self, averaged: nn.Module) -> None:
        """Called once: ``averaged`` is a copy of the first player that follows it, step by step."""
        ...


@runtime_checkable
class Paced(Protocol):
    """A task whose parameters do not all learn at one rate."""

    def pace(self, player: str, parameter: str) -> float:
        """What ``train.learning_rate`` is multiplied by for a parameter of a player, given its name in the module."""
        ...


def mean_of(values: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(sum, count) of per-sample values (B,), of the ``chosen`` ones (B,) bool when given."""
    if chosen is None:
        return values.detach().sum(), values.new_full((), float(values.numel()))  # new_tensor would wait for a GPU
    return (values.detach() * chosen).sum(), chosen.sum().to(values.dtype)


def recompute_activations(transformer: Any) -> None:
    """Have one of transformers' networks, while it trains, keep the inputs of its layers and compute them again."""
    newer = getattr(transformer, "activation_checkpointing_enable", None)  # its name from 6 on
    (newer or transformer.gradient_checkpointing_enable)({"use_reentrant": False})
