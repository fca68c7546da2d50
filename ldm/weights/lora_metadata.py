"""The headers of LoRA files: alpha in peft's naming, and what web UIs and catalogues look for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.weights.files import read_json
from ldm.weights.lora import Lora, LoraLayer
from ldm.weights.lora_names import TARGETS

_PEFT = "lora_adapter_metadata"  # diffusers' field: peft's settings as JSON, each with its network before it
_BESIDE = ("adapter_model.safetensors", "adapter_config.json")  # what peft itself writes, for one network
_NAME = re.compile(r"\^?[\w.]+")
_OF_THE_FILE = ("format", _PEFT, "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # not of the LoRA
_BY_CONTEXT = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2-512", 2048: "stable-diffusion-xl-v1-base"}
_BASE_MODELS = {  # kohya's word for each
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}


@dataclass(frozen=True)
class PeftSettings:
    """What peft's settings say of one network's scales.

    Attributes:
        rank: of every layer that ``ranks`` does not name.
        lora_alpha: of every layer that ``alphas`` does not name.
        ranks: path of a layer, or the end of one, -> its rank.
        alphas: the same for alpha.
        root: whether the scale is alpha / sqrt(rank) (Kalajdzievski 2023) and not alpha / rank.
    """

    rank: int
    lora_alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    root: bool = False

    def alpha(self, path: str) -> float:
        """Alpha of a layer, such that its scale is alpha / rank."""
        alpha = _look_up(self.alphas, path, self.lora_alpha)
        return alpha * math.sqrt(_look_up(self.ranks, path, self.rank)) if self.root else alpha


def _look_up(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^").removeprefix("text_model.")
        if path == name or (pattern == name and path.endswith("." + name)):
            return value
    return default


def read_peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """What a LoRA's header, or the ``adapter_config.json`` beside it, says of each network's alpha.

    Raises:
        UserError: it is no JSON, has values of the wrong kind, or asks for what is no LoRA.
    """
    place = f"{_PEFT} in the header of {path}"
    if _PEFT in metadata:
        try:
            found = json.loads(metadata[_PEFT])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not readable JSON: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{place} should be a JSON object, found {type(found).__name__}")
        groups = {target: _below(found, target + ".") for target in TARGETS}
    elif path.name == _BESIDE[0] and (path.parent / _BESIDE[1]).is_file():
        place = str(path.parent / _BESIDE[1])
        groups = dict.fromkeys(TARGETS, read_json(path.parent / _BESIDE[1]))
    else:
        return {}
    return {target: _settings(values, place) for target, values in groups.items() if values}


def _below(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _settings(values: Mapping[str, Any], place: str) -> PeftSettings:
    for key, meaning in (("use_dora", "a DoRA"), ("lora_bias", "a LoRA with biases")):
        if values.get(key):
            raise UserError(f"{place} says {key}: {meaning} is not read, only LoRA and LoCon are")
    rank = _rank(values.get("r"), f"r in {place}")
    ranks = _patterns(values, "rank_pattern", place)
    return PeftSettings(
        rank,
        _number(values.get("lora_alpha", rank), f"lora_alpha in {place}"),
        {name: _rank(value, f"rank_pattern of {name} in {place}") for name, value in ranks.items()},
        _patterns(values, "alpha_pattern", place),
        bool(values.get("use_rslora")),
    )


def _patterns(values: Mapping[str, Any], key: str, place: str) -> dict[str, float]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{key} in {place} should be a JSON object, found {type(found).__name__}")
    # peft takes the names for regular expressions; those of a stranger's file are not run
    strange = [name for name in found if not _NAME.fullmatch(name)]
    if strange:
        raise UserError(f"{key} in {place} has {strange[0]!r}: only the names of layers are read, no patterns")
    return {name: _number(value, f"{key} of {name} in {place}") for name, value in found.items()}


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise UserError(f"{what} should be a number, found {value!r:.60}")
    return value


def _rank(value: Any, what: str) -> int:
    number = _number(value, what)
    if number < 1 or number != int(number):
        raise UserError(f"{what} should be a whole number of at least 1, found {value!r}")
    return int(number)


def header(lora: Lora, naming: str, architecture: str | None) -> dict[str, str]:
    """The header of a file: what the LoRA's own said, modelspec 1.0.1, and what readers of ``naming`` look for."""
    kept = {key: value for key, value in lora.metadata.items() if key not in _OF_THE_FILE}
    architecture = (architecture or kept.get("modelspec.architecture") or _guess(lora)).removesuffix("/lora")
    layers = [layer for _, _, layer in lora]
    fields = {
        "modelspec.title": lora.name,
        **kept,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
    }
    if naming == "peft":
        return {**fields, _PEFT: json.dumps(_peft_settings(lora), sort_keys=True)}
    if architecture in _BASE_MODELS:
        fields.setdefault("ss_base_model_version", _BASE_MODELS[architecture])
    fields.setdefault("ss_network_module", "networks.lora")
    dims, alphas = {layer.rank for layer in layers}, {layer.alpha for layer in layers}
    return fields | {"ss_network_dim": _one(dims), "ss_network_alpha": _one(alphas)}


def _one(values: set[int] | set[float]) -> str:
    return str(next(iter(values))) if len(values) == 1 else "Dynamic"  # kohya's word where layers differ


def _guess(lora: Lora) -> str:
    """The family, from the width of the text that cross-attention reads."""
    widths = {layer.down.shape[1] for target, path, layer in lora if target == "unet" and path.endswith("attn2.to_k")}
    return _BY_CONTEXT.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"


def _peft_settings(lora: Lora) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for target, layers in lora.layers.items():
        (rank, ranks), (alpha, alphas) = _most(layers, "rank"), _most(layers, "alpha")
        values = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": sorted(layers),
        }
        found |= {f"{target}.{key}": value for key, value in values.items()}
    return found


def _most(layers: Mapping[str, LoraLayer], attribute: str) -> tuple[Any, dict[str, Any]]:
    """The most common value, and the values of the layers that have another."""
    values = {path: getattr(layer, attribute) for path, layer in layers.items()}
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {path: value for path, value in values.items() if value != common}
