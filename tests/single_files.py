"""Single files for the tests: full-size ones without numbers, and small ones with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tokenizer_of_words
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.weights.compvis import UNET
from ldm.weights.families import Family, Part, text_config, vae_config
from ldm.weights.single_file import write_single_file
from ldm.weights.stored import Shapes, Stored

TEXT_CLASSES = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}


def clip_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A text encoder's tensors with the names of its file, whatever this version of transformers calls them."""
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    return {key if key.startswith("text_") else f"text_model.{key}": value for key, value in state.items()}


def theirs(config: dict[str, Any]) -> torch.nn.Module:
    """A model of diffusers or transformers, built from one of our configurations."""
    kind = config.get("_class_name")
    if kind == "UNet2DConditionModel":
        return UNet2DConditionModel.from_config(config)
    if kind == "AutoencoderKL":
        return AutoencoderKL.from_config(config)
    settings = {key: value for key, value in config.items() if key != "architectures"}
    return TEXT_CLASSES[config["architectures"][0]](CLIPTextConfig(**settings))


def part_of(config: dict[str, Any]) -> Part:
    model = theirs(config)
    return Part(config, clip_state(model) if "architectures" in config else dict(model.state_dict()))


def full_size(family: Family) -> dict[str, Part]:
    side = family.side or 768
    with torch.device("meta"):
        found = {
            "unet": part_of(family.unet_config(side)),
            "vae": part_of(vae_config(family.scaling_factor, side)),
        }
        widths = WIDTHS[family.name.split("-")[0]]
        return found | {
            name: part_of(text_config(width)) for name, width in zip(family.text_encoders, widths, strict=True)
        }


def shapes_of(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stored(shapes: Shapes, metadata: dict[str, str] | None = None, numbers: dict[str, float] | None = None) -> Stored:
    return Stored(shapes, metadata or {}, numbers or {}, lambda names, dtype: {}, {})


def announced(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of any size, its tensors all holes."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return path


SMALL_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SMALL_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}
SMALL_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2],
}


def small_text(width: int, activation: str, projects: bool) -> dict[str, Any]:
    tokenizer = tokenizer_of_words()
    return {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": activation,
        "projection_dim": 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {**SMALL_UNET, "cross_attention_dim": 24},
        "vae": SMALL_VAE,
        "text_encoder": small_text(24, "quick_gelu", False),
    },
    "sd2": {
        "unet": {**SMALL_UNET, "cross_attention_dim": 32, "use_linear_projection": True},
        "vae": SMALL_VAE,
        "text_encoder": small_text(32, "gelu", False),
    },
    "sdxl": {
        "unet": {**SMALL_UNET, **SMALL_XL, "cross_attention_dim": 56},
        "vae": SMALL_VAE,
        "text_encoder": small_text(24, "quick_gelu", False),
        "text_encoder_2": small_text(32, "gelu", True),
    },
}
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}


def small(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Part]:
    torch.manual_seed(0)
    parts = {name: part_of(config) for name, config in SMALL[kind].items()}
    for part in parts.values():
        part.tensors = {key: (value + 0.1 * torch.randn_like(value)).to(dtype) for key, value in part.tensors.items()}
    return {**parts, "scheduler": Part(SCHEDULER)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **metadata: str) -> Path:
    """A file changed as other programs would, with its header kept."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(change(load_file(path)), path, metadata={**header, **metadata})
    return path


def file_of(kind: str, folder: Path) -> Path:
    write_single_file(small(kind), folder / "model.safetensors")
    return folder / "model.safetensors"


def with_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    net = {name: value for name, value in tensors.items() if name.startswith(UNET)}
    average = {"model_ema." + name.removeprefix("model.").replace(".", ""): -value for name, value in net.items()}
    return {**tensors, **average, "model_ema.decay": torch.tensor(0.99), "betas": torch.ones(10)}
