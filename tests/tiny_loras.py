"""Files of random LoRAs in each naming, as other programs write them for the networks of a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline  # type: ignore[attr-defined]
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

UNET_LAYERS = "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut time_emb_proj"
TEXT_LAYERS = "q_proj k_proj v_proj out_proj fc1 fc2"


def networks_of(pipe: Any) -> dict[str, Any]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: pipe.components[name] for name in names if pipe.components.get(name) is not None}


def adapters(pipe: Any, alpha: float, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random LoRAs in every kind of layer, as peft names them; and the settings that they were made with."""
    torch.manual_seed(seed)
    found = {}
    for name, network in networks_of(pipe).items():
        layers = (UNET_LAYERS if name == "unet" else TEXT_LAYERS).split()
        network.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=layers, init_lora_weights=False), "made")
        tensors = get_peft_model_state_dict(network, adapter_name="made")
        found[name] = {key: 0.4 * value.detach().clone() for key, value in tensors.items()}
    return found


def settings_of(pipe: Any) -> dict[str, Any]:
    return {name: network.peft_config["made"].to_dict() for name, network in networks_of(pipe).items()}


def write_peft(folder: Path, pipe: Any) -> None:
    parts = adapters(pipe, 5.0)
    settings = settings_of(pipe)
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=parts["unet"],
        text_encoder_lora_layers=parts["text_encoder"],
        unet_lora_adapter_metadata=settings["unet"],
        text_encoder_lora_adapter_metadata=settings["text_encoder"],
        weight_name="style.safetensors",
    )


def write_older(folder: Path, pipe: Any) -> None:
    """As diffusers wrote them in 2023: attention in the U-Net and the text encoder, no alpha."""
    parts = adapters(pipe, 3.0)
    tensors = {}
    for key, value in parts["unet"].items():
        layer, part, _ = key.rsplit(".", 2)
        side = {"lora_A": "down", "lora_B": "up"}[part]
        if ".attn" in layer:
            block, leaf = layer.removesuffix(".0").rsplit(".", 1)
            tensors[f"unet.{block}.processor.{leaf}_lora.{side}.weight"] = value
        else:
            tensors[f"unet.{layer}.lora.{side}.weight"] = value
    for key, value in parts["text_encoder"].items():
        layer, part, _ = key.rsplit(".", 2)
        side = {"lora_A": "down", "lora_B": "up"}[part]
        tensors[f"text_encoder.text_model.{layer}.lora_linear_layer.{side}.weight"] = value
    save_file(tensors, folder / "style.safetensors")


def write_kohya(folder: Path, pipe: Any) -> None:
    parts = adapters(pipe, 3.0)
    named = {f"unet.{key}": value for key, value in parts["unet"].items()}
    named |= {f"text_encoder.text_model.{key}": value for key, value in parts["text_encoder"].items()}
    tensors = convert_state_dict_to_kohya(named)
    for key in [key for key in tensors if key.endswith(".alpha")]:
        tensors[key] = torch.tensor(1.5)
    save_file(tensors, folder / "style.safetensors")


def compvis_name(path: str, per_level: int = 2) -> str:
    """The name of a layer of the U-Net in CompVis' code, written down from that code's lists of blocks."""
    top = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    if path in top:
        return top[path]
    inner = {
        "conv1": "in_layers.2",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    parts = path.split(".")
    if parts[0] == "mid_block":
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[parts[1], parts[2]]
        return f"middle_block.{place}." + ".".join(inner.get(part, part) for part in parts[3:])
    level, kind, number = int(parts[1]), parts[2], int(parts[3])
    rest = ".".join(inner.get(part, part) for part in parts[4:])
    if parts[0] == "down_blocks":
        block = 1 + level * (per_level + 1)
        if kind == "downsamplers":
            return f"input_blocks.{block + per_level}.0.op"
        return f"input_blocks.{block + number}.{int(kind == 'attentions')}.{rest}"
    block = level * (per_level + 1)
    if kind == "upsamplers":
        return f"output_blocks.{block + per_level}.2.conv"
    return f"output_blocks.{block + number}.{int(kind == 'attentions')}.{rest}"


def write_kohya_xl(folder: Path, pipe: Any) -> None:
    """With the block names of CompVis, as kohya's trainer writes those for SDXL."""
    parts = adapters(pipe, 3.0)
    tensors: dict[str, Tensor] = {}
    prefixes = {"text_encoder": "lora_te1_text_model.", "text_encoder_2": "lora_te2_"}
    for target, layers in parts.items():
        for key, value in layers.items():
            layer, part, _ = key.rsplit(".", 2)
            name = f"lora_unet_{compvis_name(layer)}" if target == "unet" else prefixes[target] + layer
            name = name.replace(".", "_")
            tensors[f"{name}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
            tensors[f"{name}.alpha"] = torch.tensor(6.0)
    save_file(tensors, folder / "style.safetensors")


FILES: dict[str, tuple[Callable[[Path, Any], None], bool]] = {  # what writes it, and whether for SDXL
    "peft": (write_peft, False),
    "older diffusers": (write_older, False),
    "kohya": (write_kohya, False),
    "kohya, CompVis blocks": (write_kohya_xl, True),
}
