"""A model from wherever it is: a folder, a run, a single file, a name on the hub; with what is put into it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from torch import nn

from ldm.codec import VAECodec
from ldm.errors import UserError
from ldm.models.unet import UNet
from ldm.models.vae import AutoencoderKL
from ldm.schema import Settings
from ldm.text_conditioner import TextConditioner, Tower
from ldm.weights.components import Reading
from ldm.weights.embedded import as_path
from ldm.weights.embeddings import add_embedding, load_embedding
from ldm.weights.hub import fetch, looks_like_name
from ldm.weights.lora import merge_loras
from ldm.weights.lora_files import read_lora
from ldm.weights.model import Model, assemble, load_model, load_vae, resolve, take_own
from ldm.weights.modelspec import PREDICTIONS, told_index, told_tokenizers
from ldm.weights.papers import tokenizer_of, usual_tokenizer
from ldm.weights.parts import TEXT_ENCODERS
from ldm.weights.single_file import SingleFile, build_part, read_single_file
from ldm.weights.tuned import embedding_in, lora_in


class Loading(Settings):
    """What may be said about which weights are read.

    Attributes:
        variant: of a folder's or the hub's files, such as ``fp16``.
        revision: commit, tag or branch of a name on the hub.
        vae: a file or folder whose autoencoder takes the place of the model's.
        ema: of a single file with both, the U-Net's moving average.
        prediction: ``epsilon`` or ``v``, where a single file does not tell.
        allow_pickle: also read pickles, by torch's restricted reader.
        loras: files, or folders or runs that hold one, and weights.
        live: the LoRAs stay beside the weights, where ``ldm.studio.Studio.set_loras`` changes them, rather than being
            merged. Each changed layer then costs more, and on a CPU the fast path of bf16 is off.
        embeddings: files of textual inversion, or folders or runs that hold one.
    """

    variant: str | None = None
    revision: str | None = None
    vae: Path | None = None
    ema: bool = False
    prediction: str | None = None
    allow_pickle: bool = False
    loras: tuple[tuple[Path, float], ...] = ()
    live: bool = False
    embeddings: tuple[Path, ...] = ()

    @field_validator("loras")
    @classmethod
    def _lora_files(cls, given: tuple[tuple[Path, float], ...]) -> tuple[tuple[Path, float], ...]:
        return tuple((lora_in(place), weight) for place, weight in given)

    @field_validator("embeddings")
    @classmethod
    def _embedding_files(cls, given: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(embedding_in(place) for place in given)

    def files(self) -> dict[str, Path]:
        """What is put into the model, by its part."""
        found = {}
        if self.vae is not None:
            found["vae"] = self.vae / "vae" if (self.vae / "vae").is_dir() else self.vae
        found |= {f"lora {k}": file for k, (file, _) in enumerate(self.loras, 1)}
        return found | {f"embedding {k}": file for k, file in enumerate(self.embeddings, 1)}


def open_model(place: str | Path, how: Loading, dtype: torch.dtype | None = None) -> Model:
    """Read a model, and put into it what is asked for; live LoRAs come later.

    Args:
        place: a model folder, a run, a single file, ``owner/name`` on the hub, or ``ldm:NAME`` in the package.
        how: which weights.
        dtype: convert all to this one while reading.

    Raises:
        UserError: it is not to be had, or something in ``how`` is not for it.
    """
    predicted(how)  # before anything is fetched
    (path, commit), reading = _located(place, how), Reading(how.variant, dtype, how.allow_pickle)
    vae = None if how.vae is None else _read_vae(how.vae, reading)
    if path.is_file():
        model = _from_file(path, how, dtype, vae)
    else:
        if how.ema:
            raise UserError(f"ema is for single files that hold two U-Nets, and {path} is a folder")
        model = load_model(path, reading)
        model.prediction = how.prediction or model.prediction
    model.commit = commit
    if vae is not None:
        model.codec = VAECodec(_in_place(vae, model, how.vae))
    for file in how.embeddings:
        _add_embedding(model, file, how.allow_pickle)
    if how.loras and not how.live:
        targets = lora_targets(model)
        merge_loras(targets, [(read_lora(file, targets), weight) for file, weight in how.loras])
    return model


def predicted(how: Loading) -> str | None:
    """What the network is said to predict, in diffusers' words; None where nothing is said.

    Raises:
        UserError: it is said in other words.
    """
    if how.prediction is not None and how.prediction not in PREDICTIONS:
        raise UserError(f"prediction should be one of {', '.join(PREDICTIONS)}, got {how.prediction!r}")
    return PREDICTIONS[how.prediction] if how.prediction else None


def locate(place: str | Path, how: Loading) -> Path:
    """The file or folder that ``place`` means; what is on the hub is fetched.

    Raises:
        UserError: there is none, or ``how`` has a revision or variant that is not for it.
    """
    return _located(place, how)[0]


def _located(place: str | Path, how: Loading) -> tuple[Path, str | None]:
    """The file or folder, and the commit of what is on the hub."""
    if isinstance(place, str) and looks_like_name(place):
        fetched = fetch(place, how.revision, how.variant)
        return fetched.path, fetched.commit
    if how.revision is not None:
        raise UserError(f"revision is for names on the hub (owner/name), and {place} is none")
    path = as_path(place)
    if path.is_file() and how.variant is not None:
        raise UserError(f"variant is for folders with several files of weights, and {path} is a file")
    return (path if path.is_file() else resolve(path)), None


def _from_file(path: Path, how: Loading, dtype: torch.dtype | None, vae: AutoencoderKL | None) -> Model:
    found = read_single_file(path, ema=how.ema, prediction=predicted(how), dtype=dtype, allow_pickle=how.allow_pickle)
    wanted = {"unet", "text_encoder"} | ({"vae"} if vae is None else set())
    lacking = sorted(wanted - found.parts.keys())
    if lacking:
        held = ", ".join(sorted(found.parts)) or "nothing"
        told = f"{path} holds {held} and no {', '.join(lacking)}: it cannot draw by itself"
        raise UserError(f"{told}{_hint(lacking, found)}")
    if found.prediction_from == "assumed":
        print(f"{path.name} does not say what it predicts: {found.prediction} is assumed (prediction= says otherwise)")
    build = functools.partial(build_part, found, path=path)
    net: Any = build("unet")
    index = told_index(found.metadata)
    names = [name for name in TEXT_ENCODERS if name in found.parts]
    towers = [_tower(build(name), found, name, path) for name in names]
    zeros = len(towers) > 1 if index is None else bool(index.get("force_zeros_for_empty_prompt", False))
    codec = VAECodec(_vae(build) if vae is None else _scaled(vae, found))
    conditioner = TextConditioner(*towers, zero_for_none=zeros)
    model = assemble(net, codec, conditioner, found.parts["scheduler"].config, path, path)
    if index is not None:
        take_own(model, index, path)
    return model


def _hint(lacking: list[str], found: SingleFile) -> str:
    if "controlnet" in found.parts:
        return "; it is a ControlNet, to be given beside a model (control)"
    return "; an autoencoder of its own can be given (vae)" if lacking == ["vae"] else ""


def _tower(encoder: Any, found: SingleFile, name: str, path: Path) -> Tower:
    """A text encoder with the tokenizer in the header, or else with CLIP's own."""
    try:
        files = told_tokenizers(found.metadata).get(name.replace("text_encoder", "tokenizer"))
        tokenizer = usual_tokenizer(found.parts[name].config) if files is None else tokenizer_of(files)
    except UserError as error:
        raise UserError(f"{path}: the tokenizer in its header: {error}") from error
    size, known = len(tokenizer), encoder.config.vocab_size
    if size > known:
        raise UserError(f"{path}: its tokenizer has {size} tokens, and its {name} knows {known}")
    return Tower(encoder, tokenizer)


def _vae(build: Callable[[str], nn.Module]) -> AutoencoderKL:
    vae = build("vae")
    assert isinstance(vae, AutoencoderKL)
    return vae


def _scaled(vae: AutoencoderKL, found: SingleFile) -> AutoencoderKL:
    """Another autoencoder with the scale of the model in a file."""
    scale = found.parts["vae"].config.get("scaling_factor") if "vae" in found.parts else None
    if scale is None and found.family is not None:
        scale = found.family.scaling_factor
    if scale is not None:
        vae.config = vae.config.model_copy(update={"scaling_factor": scale})
    return vae


def _in_place(vae: AutoencoderKL, model: Model, place: Path | None) -> AutoencoderKL:
    """The autoencoder from ``place``, with the model's scale: a file alone does not know which it is for."""
    if not isinstance(model.codec, VAECodec):
        raise UserError(f"vae is for latent models, and {model.folder} diffuses pixels")
    if vae.config.latent_channels != model.codec.channels:
        raise UserError(
            f"{place} has latents of {vae.config.latent_channels} channels, and the model {model.codec.channels}"
        )
    vae.config = vae.config.model_copy(update={"scaling_factor": model.codec.scale})
    return vae


def _read_vae(place: Path, reading: Reading) -> AutoencoderKL:
    if place.is_file():
        found = read_single_file(place, dtype=reading.dtype, allow_pickle=reading.allow_pickle)
        if "vae" not in found.parts:
            raise UserError(f"{place} holds {', '.join(found.parts) or 'nothing'} and no autoencoder")
        return _vae(functools.partial(build_part, found, path=place))
    return load_vae(place, reading)


def lora_targets(model: Model) -> dict[str, nn.Module]:
    """What a LoRA may change, by the names that its files use.

    Raises:
        UserError: the model has no U-Net.
    """
    if not isinstance(model.net, UNet):
        raise UserError("a LoRA changes a U-Net, and this model has none")
    towers = model.conditioner.towers if isinstance(model.conditioner, TextConditioner) else ()
    return {"unet": model.net, **{name: tower.encoder for name, tower in zip(TEXT_ENCODERS, towers, strict=False)}}


def _add_embedding(model: Model, file: Path, allow_pickle: bool) -> None:
    if not isinstance(model.conditioner, TextConditioner):
        raise UserError(f"{file} teaches a text encoder a word, and this model has none")
    embedding = load_embedding(file, allow_pickle)
    for name, tower in zip(TEXT_ENCODERS, model.conditioner.towers, strict=False):
        add_embedding(tower.encoder, tower.tokenizer, embedding, name)
