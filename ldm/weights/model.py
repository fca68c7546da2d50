"""A whole model as a folder: its parts, and how it likes to be drawn with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.codec import Codec, PixelCodec, VAECodec
from ldm.conditioner import Conditioner, LabelConditioner, NoConditioner
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import UserError
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL
from ldm.publishing import disk_trouble, replacing
from ldm.text_conditioner import TextConditioner
from ldm.weights.absent import check_file, near, told_address
from ldm.weights.components import AS_THEY_ARE, Reading, load_module, load_tower, save_module, save_tower
from ldm.weights.embedded import as_path
from ldm.weights.files import read_json, write_json
from ldm.weights.habits import habits
from ldm.weights.own import read_own
from ldm.weights.parts import CONFIG, INDEX, PARTS, TOWER_SUFFIXES, UNREAD_PARTS, listed_parts


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
        commit: of the hub, if it is from there.
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
    commit: str | None = None

    @property
    def inpaints(self) -> bool:
        """Whether the network reads a mask and the masked picture beside x_t."""
        config = self.net.config
        return isinstance(config, UNetConfig) and config.in_channels == _inpainting_channels(config.out_channels)


def _inpainting_channels(channels: int) -> int:
    return 2 * channels + 1  # x_t, the mask, the masked picture


def save_model(model: Model, folder: Path, dtype: torch.dtype | None = None, max_shard_size: str | None = None) -> None:
    """Write a model folder; diffusers' ``StableDiffusionPipeline`` opens those with text and VAE.

    A model that was there is replaced once the new one is complete.

    Args:
        model: what to write.
        folder: where to; missing, empty or a model folder.
        dtype: of the tensors in the files; their own by default.
        max_shard_size: of a file of weights, such as ``40MB``; one file a part by default.

    Raises:
        UserError: ``folder`` holds something else, which stays; or it cannot be written.
    """
    check_replaceable(folder)
    with disk_trouble(str(folder)), replacing(folder) as new:
        _write_parts(model, new, dtype, max_shard_size)


def check_replaceable(folder: Path) -> None:
    """Refuse to write a model where something else is.

    Raises:
        UserError: ``folder`` holds something that is no model.
    """
    if folder.exists() and not (folder / INDEX).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no model, and would be overwritten: name another folder")


def _write_parts(model: Model, folder: Path, dtype: torch.dtype | None, size: str | None) -> None:
    save_module(model.net, folder / "unet", dtype, size)
    (folder / "scheduler").mkdir()
    scheduler = model.process.to_diffusers(model.prediction, clip=model.codec.bounds is not None)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if isinstance(model.codec, VAECodec):
        save_module(model.codec.vae, folder / "vae", dtype, size)
    if isinstance(model.conditioner, LabelConditioner):
        save_module(model.conditioner, folder / "label_encoder", dtype, size)
    if isinstance(model.conditioner, TextConditioner):
        for tower, suffix in zip(model.conditioner.towers, TOWER_SUFFIXES, strict=False):
            save_tower(tower, folder, dtype, suffix, size)
    own = {"defaults": model.defaults, "provenance": model.provenance, "size": list(model.size)}
    write_json(folder / INDEX, {**index_of(model, scheduler["_class_name"]), "_ldm": own})


def index_of(model: Model, scheduler: str) -> dict[str, Any]:
    """The ``model_index.json`` of a model whose scheduler has the class ``scheduler``, without ``_ldm``."""
    kind = type(model.net).__name__
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"] if kind == "UNet" else ["ldm", kind],
        "scheduler": ["diffusers", scheduler],
    }
    if isinstance(model.codec, VAECodec):
        parts["vae"] = ["diffusers", "AutoencoderKL"]
    if isinstance(model.conditioner, LabelConditioner):
        parts["label_encoder"] = ["ldm", "LabelConditioner"]
    if isinstance(model.conditioner, TextConditioner):
        for tower, suffix in zip(model.conditioner.towers, TOWER_SUFFIXES, strict=False):
            parts[f"text_encoder{suffix}"] = ["transformers", type(tower.encoder).__name__]
            parts[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    name, extra = _pipeline_of_diffusers(model)
    # whose inpainting pipeline will not open a folder that names no version; it is that of the layout, not of a program
    return {"_class_name": name, "_diffusers_version": "0.31.0", **parts, **extra}


def _pipeline_of_diffusers(model: Model) -> tuple[str, dict[str, Any]]:
    """Which of its pipelines opens a model, and what that asks for beside the parts."""
    if not isinstance(model.codec, VAECodec) or not isinstance(model.conditioner, TextConditioner):
        return "Pipeline", {}
    inpaint = "Inpaint" if model.inpaints else ""
    if len(model.conditioner.towers) > 1:
        empty = {name: [None, None] for name in ("image_encoder", "feature_extractor")}
        extra = {**empty, "force_zeros_for_empty_prompt": model.conditioner.zero_for_none}
        return f"StableDiffusionXL{inpaint}Pipeline", extra
    return f"StableDiffusion{inpaint}Pipeline", {
        **{n: [None, None] for n in UNREAD_PARTS},
        "requires_safety_checker": False,
    }


def load_model(folder: Path, how: Reading = AS_THEY_ARE) -> Model:
    """Read a model folder.

    Raises:
        UserError: a part is missing or damaged, or the folder holds no model that draws.
    """
    index = read_json(folder / INDEX)
    parts = listed_parts(index)
    if "unet" not in parts:
        held = ", ".join(sorted(parts)) or "nothing"
        told = "a VAE or CLIP run is a part of a model, and a GAN is none"
        raise UserError(f"{folder} holds {held} but no unet: it cannot draw ({told})")
    unknown = sorted(parts - {*PARTS, *UNREAD_PARTS})
    if unknown:
        raise UserError(f"{folder / INDEX} lists {', '.join(unknown)}; known parts are {', '.join(PARTS)}")
    net = load_module(folder / "unet", how)
    if not isinstance(net, UNet | ToyUNet):
        raise UserError(f"{folder / 'unet'} holds a {type(net).__name__}, not a network that denoises")
    codec = VAECodec(load_vae(folder, how)) if "vae" in parts else PixelCodec(net.config.in_channels)
    conditioner = _load_conditioner(folder, parts, bool(index.get("force_zeros_for_empty_prompt", False)), how)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    model = assemble(net, codec, conditioner, read_json(scheduler), folder, scheduler)
    take_own(model, index, folder / INDEX)
    return model


def take_own(model: Model, index: dict[str, Any], path: Path) -> None:
    """Give a model what its index, read from ``path``, says under ``_ldm``.

    Raises:
        UserError: it says what it may not.
    """
    own = read_own(index, path)
    model.size = own.size or model.size
    # those of a model that was trained here are its own; of others, their scheduler tells
    model.defaults = own.defaults.model_dump(exclude_none=True) if "_ldm" in index else model.defaults
    model.provenance = own.provenance


def assemble(
    net: UNet | ToyUNet,
    codec: Codec,
    conditioner: Conditioner,
    scheduler: dict[str, Any],
    place: Path,
    scheduler_place: Path,
) -> Model:
    """A model of these parts, which were read from ``place``.

    Args:
        scheduler: the ``scheduler_config.json``, from ``scheduler_place``.

    Raises:
        UserError: they are not parts of one model, or the scheduler cannot be honoured.
    """
    try:
        process, prediction = ProcessConfig.from_diffusers(scheduler)
    except (ValueError, TypeError) as error:
        raise UserError(f"{scheduler_place}: {error}") from error
    _check_fit(place, net.config, codec, conditioner)
    side = codec.factor * getattr(net.config, "sample_size", 1)
    towers = len(conditioner.towers) if isinstance(conditioner, TextConditioner) else 0
    return Model(
        net=net,
        process=process,
        prediction=prediction,
        codec=codec,
        conditioner=conditioner,
        size=(side, side),
        defaults=habits(scheduler, towers),
        folder=place,
    )


def _check_fit(place: Path, config: UNetConfig | ToyUNetConfig, codec: Codec, conditioner: Conditioner) -> None:
    """Refuse parts that are each whole, but not of one model."""
    read, given = config.in_channels, getattr(config, "out_channels", config.in_channels)
    if given != codec.channels or read not in (given, _inpainting_channels(given)):
        raise UserError(
            f"{place}: the U-Net maps {read} channels to {given}, but what it diffuses has {codec.channels}"
        )
    read = config.cross_attention_dim if isinstance(config, UNetConfig) and config.reads_context else None
    given = conditioner.width if isinstance(conditioner, LabelConditioner | TextConditioner) else None
    if read != given:
        raise UserError(
            f"{place}: the U-Net reads {f'a context {read} wide' if read else 'no context'}, but the "
            f"conditioning is {f'{given} wide' if given else 'nothing'}"
        )
    pooled = conditioner.pooled_width if isinstance(conditioner, TextConditioner) else None
    wanted = getattr(config, "pooled_dim", None)
    if wanted != pooled:
        raise UserError(
            f"{place}: the U-Net reads a pooled prompt {wanted} wide, but the text encoders give one {pooled} wide"
        )


def load_vae(folder: Path, how: Reading = AS_THEY_ARE) -> AutoencoderKL:
    """The autoencoder in a folder of its own, or in that of a model.

    Raises:
        UserError: a file is missing or damaged, or it is no autoencoder.
    """
    if not folder.is_dir():
        check_file(folder)
    place = folder if (folder / CONFIG).is_file() else folder / "vae"
    vae = load_module(place, how)
    if not isinstance(vae, AutoencoderKL):
        raise UserError(f"{place} holds a {type(vae).__name__}, not an AutoencoderKL")
    return vae


def _load_conditioner(folder: Path, parts: set[str], zero_for_none: bool, how: Reading) -> Conditioner:
    towers = [load_tower(folder, suffix, how) for suffix in TOWER_SUFFIXES if f"text_encoder{suffix}" in parts]
    if towers:
        return TextConditioner(*towers, zero_for_none=zero_for_none)
    if "label_encoder" in parts:
        encoder = load_module(folder / "label_encoder", how._replace(dtype=None))
        if not isinstance(encoder, LabelConditioner):
            raise UserError(f"{folder / 'label_encoder'} holds a {type(encoder).__name__}, not a LabelConditioner")
        return encoder
    return NoConditioner()


_A_MODEL = f"a model is a .safetensors file, a folder (with {INDEX}, or a run of `ldm train`), or owner/name on the hub"


def resolve(place: str | Path) -> Path:
    """The model folder that ``place`` means: itself, the newest checkpoint of a run, or one in the package.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    folder = as_path(place)
    if (folder / INDEX).is_file():
        return folder
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a model is a folder in the layout of diffusers, with {INDEX} in it")
    if not folder.is_dir():
        raise UserError(told_address(folder) or f"{folder}: no such folder or file{near(folder)}; {_A_MODEL}")
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
