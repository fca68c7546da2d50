"""What of a model is trained: all of its network, low-rank changes, or a new word; and what a checkpoint keeps of it.

A checkpoint of a whole network is a model. One of a LoRA or a word has the files that other programs read beside the
model that training started from:

    pytorch_lora_weights.safetensors, NAME.kohya.safetensors      a LoRA, in both namings
    learned_embeds.safetensors, or for SDXL TOKEN.safetensors     a word
    tuned.json                                                    for which model, and how it was trained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ldm.conditioner import LabelConditioner
from ldm.errors import UserError
from ldm.text_conditioner import TextConditioner
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.lora_training import add_lora, halve, lora_of, write_lora
from ldm.training.settings import DiffusionRun
from ldm.training.start import FROZEN, Start
from ldm.training.textual_inversion import add_word, rows_of, write_word
from ldm.training.tune_settings import FullTune, InversionTune, LoraTune
from ldm.weights.files import write_json
from ldm.weights.model import Model, save_model
from ldm.weights.opening import lora_targets
from ldm.weights.parts import TEXT_ENCODERS
from ldm.weights.tuned import TUNED

_CONTEXT_OF_SD2 = 1024


class Tuning(Protocol):
    """A way to train a model; made once its parts are read, which it changes."""

    def encoders(self) -> list[nn.Module]:
        """The text encoders, where something in them is trained."""
        ...

    def save(self, folder: Path, player: DiffusionPlayer, provenance: dict[str, Any]) -> None:
        """Write a checkpoint from a player, which may be an averaged copy."""
        ...


def tuning_of(run: DiffusionRun, start: Start) -> Tuning:
    """The way that a run's settings ask for; from now on, what it trains of the model alone has gradients."""
    tune, model = run.tune, start.model
    dtype = FROZEN[run.frozen_dtype]
    if isinstance(tune, FullTune):
        return _Full(start, tune)
    model.net.requires_grad_(False)
    if isinstance(model.conditioner, LabelConditioner):
        model.conditioner.requires_grad_(False)  # no file of a LoRA has a place for its tokens
    if dtype == torch.float32:
        model.net.float()
    else:
        halve(model.net, dtype)
    return _Lora(run, start, tune) if isinstance(tune, LoraTune) else _Word(run, start, tune)


def _owned(module: nn.Module) -> None:
    """Give a module float32 weights of its own, not those mapped from a file, and train them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.float32, copy=True)
        parameter.requires_grad_(True)


def _text_encoders(model: Model) -> list[Any]:
    conditioner = model.conditioner
    return [tower.encoder for tower in conditioner.towers] if isinstance(conditioner, TextConditioner) else []


def _trained_encoders(model: Model, wanted: bool) -> list[Any]:
    if wanted and not isinstance(model.conditioner, TextConditioner):
        raise UserError("tune.text_encoder: this model has none to train")
    return _text_encoders(model) if wanted else []


def _freeze_unread(encoders: list[Any]) -> None:
    """Of the first of two text encoders, the states before the last layer are read: what follows has no gradient."""
    if len(encoders) < 2:
        return
    last = f"encoder.layers.{encoders[0].config.num_hidden_layers - 1}."
    for name, parameter in encoders[0].named_parameters():
        if last in name or "final_layer_norm." in name:
            parameter.requires_grad_(False)


class _Full:
    """Every weight of the network, and maybe of the text encoders."""

    def __init__(self, start: Start, tune: FullTune) -> None:
        self._start, model = start, start.model
        _owned(model.net)
        self._encoders = _trained_encoders(model, tune.text_encoder)
        for encoder in self._encoders:
            _owned(encoder)
        _freeze_unread(self._encoders)
        if isinstance(model.conditioner, LabelConditioner):
            _owned(model.conditioner)

    def encoders(self) -> list[nn.Module]:
        return self._encoders

    def save(self, folder: Path, player: DiffusionPlayer, provenance: dict[str, Any]) -> None:
        model = player.model(self._start.model, provenance)
        # what is not trained is written as it was read, to the bit, whatever dtype it has here
        codec, conditioner = self._start.parts()
        model.codec = codec
        if isinstance(conditioner, TextConditioner) and self._encoders:
            for tower, own in zip(conditioner.towers, player.encoders, strict=True):
                tower.encoder.load_state_dict(own.encoder.state_dict(), assign=True)  # pyright: ignore
        if not isinstance(conditioner, LabelConditioner):
            model.conditioner = conditioner
        save_model(model, folder)


class _Lora:
    """Low-rank changes of the network, and maybe of the text encoders."""

    def __init__(self, run: DiffusionRun, start: Start, tune: LoraTune) -> None:
        self._run, model = run, start.model
        self._encoders = _trained_encoders(model, tune.text_encoder)
        names = ("unet", *TEXT_ENCODERS[: len(self._encoders)])
        targets = lora_targets(model)
        add_lora({name: targets[name] for name in names}, tune)
        _freeze_unread(self._encoders)
        self._names = names
        # Stable Diffusion 2 comes in two kinds that no shape tells apart
        v2 = getattr(model.net.config, "cross_attention_dim", None) == _CONTEXT_OF_SD2
        self._architecture = "stable-diffusion-v2-768-v" if v2 and model.prediction == "v" else None

    def encoders(self) -> list[nn.Module]:
        return self._encoders

    def save(self, folder: Path, player: DiffusionPlayer, provenance: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = [player.net, *(part.encoder for part in player.encoders)]  # pyright: ignore
        name = self._run.output.name
        lora = lora_of(dict(zip(self._names, own, strict=True)), name, {"ss_output_name": name})
        write_lora(folder, lora, self._architecture)
        _write_note(folder, self._run, provenance)


class _Word:
    """A word in the text encoders' tables."""

    def __init__(self, run: DiffusionRun, start: Start, tune: InversionTune) -> None:
        self._run, self._token, conditioner = run, tune.token, start.model.conditioner
        assert isinstance(conditioner, TextConditioner)  # see ``start_of``
        for encoder in _text_encoders(start.model):
            encoder.float()
        add_word(conditioner.towers, tune)
        self._encoders = _text_encoders(start.model)

    def encoders(self) -> list[nn.Module]:
        return self._encoders

    def save(self, folder: Path, player: DiffusionPlayer, provenance: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        vectors = {name: rows_of(own) for name, own in zip(TEXT_ENCODERS, player.encoders, strict=False)}
        write_word(folder, self._token, vectors)
        _write_note(folder, self._run, provenance)


def _write_note(folder: Path, run: DiffusionRun, provenance: dict[str, Any]) -> None:
    loading = run.loading.model_dump(mode="json", exclude_defaults=True)
    write_json(folder / TUNED, {"model": run.model, "loading": loading, "provenance": provenance})
