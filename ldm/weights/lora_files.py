"""LoRA files, in (peft's, diffusers' older and kohya's naming) and out (peft's and kohya's).

A LoRA belongs to a family of models, and its file does not say to which. So it is read against the model that it is
meant for: every tensor in the file is used, or named in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldm.errors import UserError, choose
from ldm.publishing import disk_trouble, write_whole
from ldm.weights.files import read_tensors, write_tensors
from ldm.weights.identify import UNKNOWN, identify, with_article
from ldm.weights.lora import Lora, LoraLayer, check_targets
from ldm.weights.lora_metadata import header, read_peft_settings
from ldm.weights.lora_names import Finder, Key, Layer, kohya_keys, other_form, parse_key, peft_keys, some

_SUFFIX = ".safetensors"


@dataclass
class _Parts:
    """The tensors of one layer in a file: "down", "up", "alpha"."""

    key: Key
    tensors: dict[str, Tensor] = field(default_factory=dict)


def read_lora(path: Path, targets: Mapping[str, nn.Module]) -> Lora:
    """Read a LoRA in any of the namings.

    Args:
        path: a ``.safetensors`` file.
        targets: the networks it may change, as "unet", "text_encoder" and "text_encoder_2".

    Raises:
        UserError: the file is missing or damaged, holds something else than a LoRA, or does not fit the networks;
            or a network is packed for the CPU.
    """
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata() or {})
    _refuse_others(path, list(tensors))
    parts = _by_layer(path, tensors)
    settings = read_peft_settings(path, metadata)
    check_targets(str(path), dict.fromkeys(part.key.target for part in parts), targets)
    finders = {target: Finder(module) for target, module in targets.items()}
    layers: dict[str, dict[str, LoraLayer]] = {}
    absent, faults = [], []
    for part in parts:
        target, finder = part.key.target, finders[part.key.target]
        name = finder.find(part.key)
        if name is None:
            absent.append(f"{target}.{part.key.layer}")
            continue
        alpha = settings[target].alpha(name) if target in settings else None
        made = _layer(part.tensors, alpha, finder.layers[name])
        if isinstance(made, str):
            faults.append(f"{target}.{name} {made}")
        elif name in layers.setdefault(target, {}):
            faults.append(f"{target}.{name} is there under two names")
        else:
            layers[target][name] = made
    if absent or faults:
        raise UserError(_misfit(path, absent, faults, len(parts)))
    return Lora(path.name.removesuffix(_SUFFIX), layers, metadata)


def _refuse_others(path: Path, keys: list[str]) -> None:
    """Raise for files that are no LoRA, and for the relatives of LoRA that are not read."""
    forms = [(key, form) for key in keys if (form := other_form(key))]
    if forms:
        key, form = forms[0]
        raise UserError(f"{path} is {form} ({len(forms)} tensors such as {key}); only LoRA and LoCon are read")
    strange = [key for key in keys if parse_key(key) is None]
    if len(strange) == len(keys):
        kind = identify(path)["kind"]
        told = f"its tensors are {some(strange)}" if kind == UNKNOWN else f"it is {with_article(kind)}"
        raise UserError(f"{path} holds no LoRA: {told if keys else 'it is empty'}")
    if strange:
        raise UserError(f"{path} has {len(strange)} tensors that are no part of a LoRA ({some(strange)})")


def _by_layer(path: Path, tensors: Mapping[str, Tensor]) -> list[_Parts]:
    found: dict[tuple[str, str], _Parts] = {}
    for name, tensor in tensors.items():
        key = parse_key(name)
        assert key is not None, "_refuse_others has looked"
        parts = found.setdefault((key.target, key.layer), _Parts(key))
        if key.part in parts.tensors:
            raise UserError(f"{path} says twice what {key.part} of {key.target}.{key.layer} is; once in {name}")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            kind = "NaN or infinity" if tensor.is_floating_point() else str(tensor.dtype)
            raise UserError(f"{path}: {name} should hold real numbers, found {kind}")
        parts.tensors[key.part] = tensor
    return list(found.values())


def _layer(tensors: Mapping[str, Tensor], alpha: float | None, module: Layer) -> LoraLayer | str:
    """Put a layer together; a sentence about it where it cannot be.

    ``alpha`` is what the header says; a tensor of its own goes before it. Without both, the scale is 1.
    """
    if "down" not in tensors or "up" not in tensors:
        return f"has only {' and '.join(tensors)}: a LoRA has both down and up"
    down, up = tensors["down"], tensors["up"]
    out, *inner = module.weight.shape
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != len(down) or not len(down):
        return f"has no rank: down is {tuple(down.shape)}, up is {tuple(up.shape)}"
    if _core(down) != _core(torch.empty(len(down), *inner, device="meta")) or _core(up) != (out, len(down)):
        shape = (_core(up)[0], *_core(down)[1:])
        return f"changes a weight of {shape}, which is {tuple(module.weight.shape)} here"
    if "alpha" in tensors:
        if tensors["alpha"].numel() != 1:
            return f"has an alpha of shape {tuple(tensors['alpha'].shape)} in place of one number"
        alpha = float(tensors["alpha"])
    ones = [1] * (len(inner) - 1)  # 1x1 convolutions are at times stored as linear layers, and the reverse
    down, up = down.reshape(len(down), *inner), up.reshape(out, len(down), *ones)
    return LoraLayer(down, up, float(len(down)) if alpha is None else alpha)


def _core(tensor: Tensor) -> tuple[int, ...]:
    """The shape, without the kernel where that is 1x1."""
    shape = tuple(tensor.shape)
    return shape[:2] if set(shape[2:]) == {1} else shape


def _misfit(path: Path, absent: list[str], faults: list[str], total: int) -> str:
    told = []
    if faults:
        told.append("; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else ""))
    if absent:
        told.append(f"{len(absent)} of its {total} layers are not in this model ({some(absent)})")
    return f"{path} does not fit this model; a LoRA fits the family of models it was trained on: {'; '.join(told)}"


def save_lora(
    lora: Lora, path: Path, naming: Literal["peft", "kohya"] = "peft", architecture: str | None = None
) -> None:
    """Write a LoRA; its tensors are those in memory, bit for bit.

    diffusers reads both namings, web UIs read kohya's. In peft's, alpha is in the header.

    Args:
        lora: what to write.
        path: a ``.safetensors`` file; one that was there is replaced.
        naming: whose names the tensors get.
        architecture: of the model, for the header: an identifier of modelspec such as ``stable-diffusion-v1``. By
            default what the LoRA's own header says, else what the width of its text context tells.

    Raises:
        UserError: the naming is unknown, the name has another ending, or the file cannot be written.
    """
    choose(naming, ("peft", "kohya"), "naming of a LoRA")
    if path.suffix != _SUFFIX:
        raise UserError(f"a LoRA is written to a {_SUFFIX} file, not to {path.name!r}")
    metadata = header(lora, naming, architecture)
    xl = metadata["modelspec.architecture"].startswith("stable-diffusion-xl") or "text_encoder_2" in lora.layers
    tensors: dict[str, Tensor] = {}
    for target, name, layer in lora:
        if naming == "peft":
            down, up = peft_keys(target, name)
        else:
            down, up, alpha = kohya_keys(target, name, two_towers=xl)
            tensors[alpha] = _as_tensor(layer.alpha, layer.down.dtype)
        tensors |= {down: layer.down, up: layer.up}
    with disk_trouble(str(path)):
        write_whole(path, lambda file: write_tensors(file, tensors, metadata))


def _as_tensor(number: float, preferred: torch.dtype) -> Tensor:
    """A tensor of exactly this number, in the first dtype that holds it."""
    made = [torch.tensor(number, dtype=dtype) for dtype in (preferred, torch.float32, torch.float64)]
    return next(tensor for tensor in made if tensor.item() == number)
