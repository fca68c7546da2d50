"""A whole model as a folder: its parts, and how it likes to be drawn with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.codec import Codec, PixelCodec, VAECodec
from ldm.conditioner import Conditioner, LabelConditioner, NoConditioner, TextConditioner
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import UserError
from ldm.models.vae import AutoencoderKL
from ldm.weights.components import load_module, load_text_encoder, save_module, save_text_encoder
from ldm.weights.files import read_json, write_json

INDEX = "model_index.json"
_NULL = ("safety_checker", "feature_extractor", "image_encoder")  # what StableDiffusionPipeline asks for


@dataclass
class Model:
    """The parts of a model that draws.

    Attributes:
        net: U-Net or toy network.
        process: settings of the noising process.
        prediction: what the network's output means.
        codec: pixels or a VAE.
        conditioner: nothing, labels or text.
        size: (height, width) in pixels that it was trained at.
        defaults: ``sampler``, ``steps`` and ``guidance`` for drawing.
        provenance: how it was trained, for ``ldm info``.
        folder: where it was read from.
    """

    net: nn.Module
    process: ProcessConfig
    prediction: str
    codec: Codec
    conditioner: Conditioner
    size: tuple[int, int]
    defaults: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def save_model(model: Model, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model folder; diffusers' ``StableDiffusionPipeline`` opens those with text and VAE."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(model.net, folder / "unet", dtype)
    (folder / "scheduler").mkdir()
    scheduler = model.process.to_diffusers(model.prediction, clip=model.codec.bounds is not None)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    kind = type(model.net).__name__
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"] if kind == "UNet" else ["ldm", kind],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    if isinstance(model.codec, VAECodec):
        save_module(model.codec.vae, folder / "vae", dtype)
        parts["vae"] = ["diffusers", "AutoencoderKL"]
    if isinstance(model.conditioner, LabelConditioner):
        save_module(model.conditioner, folder / "label_encoder", dtype)
        parts["label_encoder"] = ["ldm", "LabelConditioner"]
    if isinstance(model.conditioner, TextConditioner):
        save_text_encoder(model.conditioner.encoder, model.conditioner.tokenizer, folder, dtype)
        parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    whole = {"vae", "text_encoder"} <= parts.keys()
    extra = {**{name: [None, None] for name in _NULL}, "requires_safety_checker": False} if whole else {}
    own = {"defaults": model.defaults, "provenance": model.provenance, "size": list(model.size)}
    name = "StableDiffusionPipeline" if whole else "Pipeline"
    write_json(folder / INDEX, {"_class_name": name, **parts, **extra, "_ldm": own})


def load_model(folder: Path) -> Model:
    """Read a model folder.

    Raises:
        UserError: a part is missing or damaged, or the folder holds no model that draws.
    """
    index = read_json(folder / INDEX)
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None}
    if "unet" not in parts:
        held = ", ".join(sorted(parts)) or "nothing"
        raise UserError(f"{folder} holds {held} but no unet: it cannot draw (a VAE or CLIP run is a part of a model)")
    process, prediction = ProcessConfig.from_diffusers(read_json(folder / "scheduler" / "scheduler_config.json"))
    net = load_module(folder / "unet")
    config: Any = net.config
    codec = VAECodec(load_vae(folder)) if "vae" in parts else PixelCodec(config.in_channels)
    own = index.get("_ldm", {})
    side = codec.factor * getattr(config, "sample_size", 1)
    return Model(
        net=net,
        process=process,
        prediction=prediction,
        codec=codec,
        conditioner=_load_conditioner(folder, parts),
        size=tuple(own.get("size", (side, side))),
        defaults=own.get("defaults", {}),
        provenance=own.get("provenance", {}),
        folder=folder,
    )


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder in ``folder/vae``."""
    vae = load_module(folder / "vae")
    if not isinstance(vae, AutoencoderKL):
        raise UserError(f"{folder / 'vae'} holds a {type(vae).__name__}, not an AutoencoderKL")
    return vae


def _load_conditioner(folder: Path, parts: set[str]) -> Conditioner:
    if "text_encoder" in parts:
        return TextConditioner(*load_text_encoder(folder))
    if "label_encoder" in parts:
        encoder = load_module(folder / "label_encoder")
        assert isinstance(encoder, LabelConditioner)
        return encoder
    return NoConditioner()


def resolve(place: str | Path) -> Path:
    """The model folder that ``place`` means: itself, or the newest checkpoint of a run.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    folder = Path(place)
    if (folder / INDEX).is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a model is a folder with {INDEX}, or a run of `ldm train`")
    newest = latest_checkpoint(folder)
    if newest is None:
        raise UserError(
            f"{folder}: found neither {INDEX} nor checkpoints/step_*: no model, and no run with a checkpoint"
        )
    return newest


def latest_checkpoint(run: Path) -> Path | None:
    """The newest published checkpoint of a run, or None."""
    found = sorted((run / "checkpoints").glob("step_*"))
    return found[-1] if found else None
