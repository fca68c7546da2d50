"""What the header of a single file says of the model: the ``modelspec.*`` fields, version 1.0.1, and our own.

The fields are those of Stability AI's model metadata standard. Our own, which other programs pass over, are there so
that a model of any shape comes back as it was:

    ldm.configs      the configurations of the parts
    ldm.index        the model_index.json, with what the model likes to be drawn with and how it was trained
    ldm.tokenizers   the files of a tokenizer that is not CLIP's own: {"tokenizer": {"vocab.json": "...", ...}}
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.weights.families import SD_SCALE, SDXL_SCALE, Part
from ldm.weights.parts import TOKENIZERS as TOKENIZER_PARTS

CONFIGS, INDEX, TOKENIZERS = "ldm.configs", "ldm.index", "ldm.tokenizers"
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
VERSION = "1.0.1"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # in the standard's words -> in diffusers'
_ALONE = {"vae": "/vae", "text_encoder": "/text-encoder", "controlnet": "/controlnet"}  # as the standard has "/lora"
_NO_HASH = "0x" + 64 * "0"
_CODE = {
    "v1": "https://github.com/CompVis/stable-diffusion",
    "v2": "https://github.com/Stability-AI/stablediffusion",
    "xl": "https://github.com/Stability-AI/generative-models",
}


def describe_parts(parts: Mapping[str, Part], title: str) -> dict[str, str]:
    """The header of a single file of these parts; ``sign`` fills in the hash."""
    prediction = parts["scheduler"].config.get("prediction_type", "epsilon") if "scheduler" in parts else None
    fields = {
        "sai_model_spec": VERSION,
        "architecture": _architecture(parts, prediction),
        "implementation": _CODE[_generation(parts)],
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "hash_sha256": _NO_HASH,
    }
    names = {theirs: name for name, theirs in PREDICTIONS.items()}
    if prediction in names:
        fields["prediction_type"] = names[prediction]
    side = _side(parts)
    if side:
        fields["resolution"] = f"{side}x{side}"
    configs = json.dumps({name: part.config for name, part in parts.items()})
    return {**{f"modelspec.{key}": value for key, value in fields.items()}, CONFIGS: configs}


def _architecture(parts: Mapping[str, Part], prediction: str | None) -> str:
    kind = {"v1": "v1", "v2": "v2-768-v" if prediction == "v_prediction" else "v2-512", "xl": "xl-v1-base"}
    inpaints = "unet" in parts and parts["unet"].config.get("in_channels") == 9
    part = next((tail for name, tail in _ALONE.items() if [name] == [n for n in parts if n != "scheduler"]), "")
    return f"stable-diffusion-{kind[_generation(parts)]}{'-inpainting' if inpaints else ''}{part}"


def _generation(parts: Mapping[str, Part]) -> str:
    """The generation that these parts are of, as far as they tell: an autoencoder of 1 and 2 looks the same."""
    configs = {name: part.config for name, part in parts.items()}
    net = configs.get("unet") or configs.get("controlnet") or {}
    vae, text = configs.get("vae", {}), configs.get("text_encoder", {})
    if net.get("addition_embed_type") == "text_time" or (not net and vae.get("scaling_factor") == SDXL_SCALE):
        return "xl"
    return "v2" if 1024 in (net.get("cross_attention_dim"), text.get("hidden_size")) else "v1"


def _side(parts: Mapping[str, Part]) -> int | None:
    """Height and width of the pictures that a model was trained at."""
    size = parts["unet"].config.get("sample_size") if "unet" in parts else None
    if not isinstance(size, int) or "vae" not in parts:
        return None
    return size * 2 ** (len(parts["vae"].config["block_out_channels"]) - 1)


def sign(path: Path) -> None:
    """Put the hash of all tensors into the header of a file that ``describe_parts`` made the header of."""
    with path.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(start - 8)
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        # of the same length, so that nothing moves
        file.seek(8 + header.index(_NO_HASH.encode()))
        file.write(f"0x{digest.hexdigest()}".encode())


def told_prediction(metadata: Mapping[str, str]) -> str | None:
    """The prediction type that a header states, in diffusers' words."""
    return PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))


def told_scale(metadata: Mapping[str, str]) -> float:
    """The scale of the latents of an autoencoder alone: SDXL's where the header names it, that of the others if not."""
    xl = metadata.get("modelspec.architecture", "").startswith("stable-diffusion-xl")
    return SDXL_SCALE if xl else SD_SCALE


def told_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The configurations that we have put into a header; none in the files of others.

    Raises:
        UserError: they are damaged.
    """
    return _told_groups(metadata, CONFIGS)


def told_tokenizers(metadata: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The files of tokenizers, by the tokenizer's name and their own, that we have put into a header.

    Raises:
        UserError: they are damaged, or have names that no file of a tokenizer has: they are written to be read.
    """
    found = _told_groups(metadata, TOKENIZERS)
    for name, files in found.items():
        wrong = [file for file, text in files.items() if file not in VOCABULARY_FILES or not isinstance(text, str)]
        if wrong or name not in TOKENIZER_PARTS:
            place = f"{name}/{wrong[0]}" if wrong else name
            raise UserError(f"{TOKENIZERS} in its header has {place!r}, which is no file of a tokenizer")
    return found


def told_index(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The ``model_index.json`` that we have put into a header; None in the files of others.

    Raises:
        UserError: it is damaged.
    """
    return _told(metadata, INDEX) if INDEX in metadata else None


def _told_groups(metadata: Mapping[str, str], field: str) -> dict[str, dict[str, Any]]:
    found = _told(metadata, field)
    if not all(isinstance(group, dict) for group in found.values()):
        raise UserError(f"{field} in its header is damaged")
    return found


def _told(metadata: Mapping[str, str], field: str) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(field, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{field} in its header is damaged")
    return found
