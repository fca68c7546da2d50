"""What training goes on from, beside the model in the same checkpoint: weights, averages and optimisers.

Networks that every process has whole are written by the main process:

    training/NAME.safetensors      the weights that are trained on, by player; ``average``
    training/state.pt              optimisers, gradient scaler

Where they are split, every process writes its share through ``torch.distributed.checkpoint``, and any number of
processes can read them:

    training/shards/               all of the above

``training/state.json`` has plain numbers: the step, samples of a step, keys of the examples that were skipped.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ldm.errors import UserError
from ldm.training.averaging import Average
from ldm.training.optimisers import begin_memory
from ldm.training.parallel import Team
from ldm.training.player import Player
from ldm.weights.files import read_json, read_tensors, write_json, write_tensors

_NUMBERS, _OPTIMIZERS, _SHARDS, _AVERAGE = "state.json", "state.pt", "shards", "average"


class TrainingState:
    """Everything that changes in training, to be written and read.

    Args:
        players: the first is the one that ``average`` is of.
        average: of its weights.
        scaler: of gradients, in fp16.
        team: the processes.
    """

    def __init__(self, players: Sequence[Player], average: Average, scaler: Any, team: Team) -> None:
        self._players, self._average, self._scaler, self._team = players, average, scaler, team
        self.sharded = players[0].sharded

    def write(self, folder: Path, numbers: dict[str, Any]) -> None:
        """Write ``training/`` into a checkpoint's folder, but for shares: called in the main process alone."""
        training = folder / "training"
        training.mkdir()
        write_json(training / _NUMBERS, numbers)
        if self.sharded:
            return
        for player in self._players:
            write_tensors(training / f"{player.name}.safetensors", player.weights())
        if averages := self._average.tensors():
            write_tensors(training / f"{_AVERAGE}.safetensors", averages)
        state = {
            "optimizers": {p.name: p.optimizer.optimizer.state_dict() for p in self._players},
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
        }
        torch.save(state, training / _OPTIMIZERS)

    def write_shares(self, folder: Path) -> None:
        """Write every process's share; called in all of them once :meth:`write` is done.

        Raises:
            OSError: it cannot be written.
        """
        if not self.sharded:
            return
        try:
            save(self._shares(), checkpoint_id=folder / "training" / _SHARDS, process_group=self._team.group)
        except CheckpointException as error:
            raise OSError(_first(error)) from error

    def read(self, folder: Path) -> None:
        """Take over what was written; every process calls it.

        Raises:
            UserError: it is of another network.
        """
        training = folder / "training"
        try:
            if self.sharded:
                self._read_shares(training / _SHARDS)
            else:
                self._read_files(training)
        except (KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{training} does not fit the run's configuration: {error}") from error

    def _read_files(self, training: Path) -> None:
        path = training / _OPTIMIZERS
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        for player in self._players:
            player.load(read_tensors(training / f"{player.name}.safetensors"))
            player.optimizer.optimizer.load_state_dict(state["optimizers"][player.name])
        if self._average.tensors():
            self._average.load(read_tensors(training / f"{_AVERAGE}.safetensors"))
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    # ------------------------------------------------------------------ shares

    def _shares(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for player in self._players:
            found |= {f"{player.name}.weights.{name}": value for name, value in player.weights().items()}
            for name, parameter in player.trained.items():
                memory = player.optimizer.optimizer.state[parameter]
                found |= {f"{player.name}.optimizer.{name}.{key}": value for key, value in memory.items()}
        return found | {f"{_AVERAGE}.{name}": value for name, value in self._average.tensors().items()}

    def _read_shares(self, folder: Path) -> None:
        for player in self._players:
            begin_memory(player.optimizer.optimizer)
        shares = self._shares()
        try:
            load(shares, checkpoint_id=folder, process_group=self._team.group)
        except CheckpointException as error:
            raise ValueError(_first(error)) from error
        if averages := self._average.tensors():
            self._average.load({name: shares[f"{_AVERAGE}.{name}"] for name in averages})


def _first(error: CheckpointException) -> str:
    """The message of one of the processes that failed."""
    found, _ = next(iter(error.failures.values()))
    return str(found) or type(found).__name__


def read_numbers(folder: Path) -> dict[str, Any]:
    """The plain numbers of a checkpoint.

    Raises:
        UserError: they are not there.
    """
    path = folder / "training" / _NUMBERS
    numbers = read_json(path)
    if not {"step", "samples_per_step", "skipped"} <= numbers.keys():
        raise UserError(f"{path} is of an older version of ldm, which cannot be resumed with this one")
    return numbers
