"""The parts of a model folder, each in its own subfolder, in the layout of diffusers.

model_index.json   which parts there are, and (under ``_ldm``) defaults for drawing and provenance
unet/ vae/         config.json + diffusion_pytorch_model.safetensors
text_encoder/      config.json + model.safetensors, as transformers writes them
tokenizer/         as transformers writes it
label_encoder/     config.json + diffusion_pytorch_model.safetensors (ours)
scheduler/         scheduler_config.json
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.weights.files import load_into, read_json, read_tensors, write_json, write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _label_encoder(config: dict[str, Any]) -> LabelConditioner:
    return LabelConditioner(config["classes"], config["width"])


# class name in config.json -> module of that shape
BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": lambda config: UNet(UNetConfig.from_diffusers(config)),
    "ToyUNet": lambda config: ToyUNet(ToyUNetConfig(in_channels=config["in_channels"])),
    "AutoencoderKL": lambda config: AutoencoderKL(VAEConfig.from_diffusers(config)),
    "LabelConditioner": _label_encoder,
}


def describe(module: nn.Module) -> dict[str, Any]:
    """The ``config.json`` of a module."""
    if isinstance(module, UNet | AutoencoderKL):
        return module.config.to_diffusers()
    if isinstance(module, ToyUNet):
        return {"_class_name": "ToyUNet", **module.config.model_dump()}
    if isinstance(module, LabelConditioner):
        return {"_class_name": "LabelConditioner", "classes": module.classes, "width": module.width}
    raise TypeError(f"no config.json is known for {type(module).__name__}")


def save_module(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and weights; ``dtype`` converts on the way out."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", describe(module))
    tensors = module.state_dict()
    write_tensors(folder / WEIGHTS, {k: v.to(dtype) if dtype else v for k, v in tensors.items()})


def load_module(folder: Path) -> nn.Module:
    """Build a module from its folder, on the CPU and in the dtype of its file.

    Built on ``meta`` and filled in place, so no time goes into random weights that are thrown away.

    Raises:
        UserError: a file is missing, damaged or of another kind.
    """
    config = read_json(folder / "config.json")
    path = folder / "config.json"
    kind = choose(str(config.get("_class_name")), BUILDERS, f"_class_name in {path}")
    try:
        with torch.device("meta"):
            module = BUILDERS[kind](config)
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    load_into(module, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return module.eval()


def save_text_encoder(encoder: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``text_encoder/`` and ``tokenizer/`` as transformers does; ``dtype`` converts on the way out."""
    tensors = {k: v.to(dtype) if dtype else v for k, v in encoder.state_dict().items()}
    encoder.save_pretrained(folder / "text_encoder", state_dict=tensors)
    tokenizer.save_pretrained(folder / "tokenizer")


def load_text_encoder(folder: Path) -> tuple[Any, Any]:
    """Read ``text_encoder/`` and ``tokenizer/`` of a model folder: (CLIPTextModel, CLIPTokenizer).

    Raises:
        UserError: a file is missing or damaged.
    """
    from transformers import CLIPTextModel, CLIPTokenizer  # takes seconds; only text models need it

    for name in ("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
    read_tensors(folder / "text_encoder/model.safetensors")  # names the file when it is damaged
    try:
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: text encoder or tokenizer cannot be read: {error}") from error
    return encoder.eval(), tokenizer
