"""LoRAs in training: put beside the layers of a network through peft, and written for the programs that read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError, need
from ldm.training.tune_settings import LoraTune
from ldm.weights.lora import Lora, LoraLayer
from ldm.weights.lora_files import save_lora
from ldm.weights.lora_names import layers_of
from ldm.weights.tuned import LORA_FILE

KOHYA_ENDING = ".kohya.safetensors"
_ADAPTER = "default"
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks|(text_model\.)?encoder\.layers)\.")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def add_lora(targets: Mapping[str, nn.Module], tune: LoraTune) -> None:
    """Put a LoRA that changes nothing yet beside the layers of networks; it alone is trained from now on.

    Its weights are float32, whatever those of the network are.

    Args:
        targets: the networks, as "unet", "text_encoder" and "text_encoder_2".
        tune: which layers, and how.

    Raises:
        UserError: no layer of a network is meant, or peft is missing.
    """
    peft = need("peft", "lora")
    chosen = {name: _chosen(module, tune, name) for name, module in targets.items()}
    for name, module in targets.items():
        module.requires_grad_(False)
        config = peft.LoraConfig(
            r=tune.rank,
            lora_alpha=tune.rank if tune.alpha is None else tune.alpha,
            target_modules=chosen[name],
            lora_dropout=tune.dropout,
        )
        peft.inject_adapter_in_model(config, module, _ADAPTER)
        for part in _tuners(module):
            for factor in (part.lora_A[_ADAPTER], part.lora_B[_ADAPTER]):
                factor.float().requires_grad_(True)
            part.reset_lora_parameters(_ADAPTER, init_lora_weights=True)  # drawn anew, in full precision


def _tuners(module: nn.Module) -> list[Any]:
    tuner = need("peft.tuners.tuners_utils", "lora").BaseTunerLayer
    return [part for part in module.modules() if isinstance(part, tuner)]


def _chosen(module: nn.Module, tune: LoraTune, name: str) -> list[str]:
    """The paths of the layers that are changed."""
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    if tune.targets in ("conv", "all-linear"):
        # those of the blocks: what lies before and after them has no name in kohya's naming that everybody reads
        kinds = nn.Linear | nn.Conv2d if tune.targets == "conv" else nn.Linear
        return [path for path, part in layers.items() if isinstance(part, kinds) and _BLOCK.match(path)]
    ends = _ATTENTION if tune.targets == "attention" else tune.targets
    found = {end: [path for path in layers if path == end or path.endswith("." + end)] for end in ends}
    lacking = [end for end, paths in found.items() if not paths] if ends is not _ATTENTION else []
    if name == "unet" and (lacking or not any(found.values())):
        kinds = sorted({path.rpartition(".")[2] for path in layers if not path.rpartition(".")[2].isdigit()})
        told = f"tune.targets: the network has no layer {', '.join(lacking or ends)}"
        raise UserError(f"{told}; its layers end in {', '.join(kinds)}")
    return list(dict.fromkeys(path for paths in found.values() for path in paths))


def lora_of(targets: Mapping[str, nn.Module], name: str, metadata: Mapping[str, str] | None = None) -> Lora:
    """The LoRA that is beside the layers of networks.

    Args:
        targets: as those of ``add_lora``.
        name: to call it.
        metadata: for the header of its file.
    """
    found: dict[str, dict[str, LoraLayer]] = {}
    for target, module in targets.items():
        # the paths that its files are to have, which are not always those in memory
        names = {id(layer): path for path, layer in layers_of(module).items()}
        found[target] = {names[id(part.get_base_layer())]: _layer(part) for part in _tuners(module)}
    return Lora(name, found, metadata or {})


def _layer(part: Any) -> LoraLayer:
    down, up = part.lora_A[_ADAPTER].weight, part.lora_B[_ADAPTER].weight
    return LoraLayer(down.detach(), up.detach(), float(part.lora_alpha[_ADAPTER]))


def write_lora(folder: Path, lora: Lora, architecture: str | None = None) -> None:
    """Write a LoRA in both namings: ``pytorch_lora_weights.safetensors`` and ``NAME.kohya.safetensors``."""
    save_lora(lora, folder / LORA_FILE, "peft", architecture)
    save_lora(lora, folder / f"{lora.name}{KOHYA_ENDING}", "kohya", architecture)


def halve(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring the weights that are multiplied, nearly all there are, to half precision; norms stay in float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding):
            part.to(dtype)
        else:
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter.data.float(), requires_grad=False))
