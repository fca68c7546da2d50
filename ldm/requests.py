"""What the flags of a command ask for, as the library takes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.drawing import RANDOM
from ldm.errors import UserError
from ldm.weights.lora_syntax import parse_lora

_DRAWING = (
    "sampler",
    "steps",
    "eta",
    "guidance",
    "guidance_rescale",
    "guidance_interval",
    "apg",
    "prompt_syntax",
    "clip_skip",
    "negative",
    "height",
    "width",
    "strength",
    "variation_seed",
    "variation_strength",
    "hires_scale",
    "hires_upscaler",
    "hires_strength",
    "hires_steps",
    "tiled",
    "batch_size",
)
_LOADING = (
    "device",
    "dtype",
    "attention",
    "compile",
    "variant",
    "revision",
    "vae",
    "ema",
    "prediction",
    "allow_pickle",
)
_PICTURES = (
    "init",
    "mask",
    "fit",
    "invert_mask",
    "mask_blur",
    "only_masked",
    "padding",
    "outpaint",
    "outpaint_fill",
)
_CONTROL = re.compile(
    r"(?P<net>.+?)=(?P<hint>.+?)(:(?P<scale>[+-]?[\d.]+(e[+-]?\d+)?)(:(?P<start>[\d.]+)-(?P<end>[\d.]+))?)?",
    re.IGNORECASE,
)
_ENDING = ".safetensors"  # of a LoRA, which may be left out


def drawing_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ldm.drawing.Drawing``."""
    return {**{key: flags[key] for key in _DRAWING}, "spacing": flags["scheduler"]}


def loading_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What ``ldm.load`` takes beside the model; only what was asked for."""
    found = {key: flags[key] for key in _LOADING if flags[key] not in (None, False)}
    lists = {"loras": loras_of(flags["loras"]), "embeddings": tuple(flags["embeddings"] or ())}
    return {**found, **{key: value for key, value in lists.items() if value}}


def loras_of(texts: Sequence[str] | None) -> tuple[tuple[Path, float], ...]:
    """``FILE[:WEIGHT]`` each, as ``ldm.weights.opening.Loading`` has them."""
    return tuple((_lora_file(file), weight) for file, weight in map(parse_lora, texts or ()))


def _lora_file(name: str) -> Path:
    whole = name + _ENDING
    return Path(whole if not os.path.exists(name) and os.path.exists(whole) else name)


def series_seed(seed: int | None) -> int | None:
    """The seed of the first picture, where one was asked for; -1 asks for none, as in AUTOMATIC1111's web UI."""
    return None if seed == RANDOM else seed


def only(values: Sequence[str] | None, flag: str) -> str | None:
    """What was given with a flag that can be given once.

    Raises:
        UserError: it was given more often.
    """
    if values and len(values) > 1:
        raise UserError(f"{flag} is given {len(values)} times ({' and '.join(map(repr, values))}): give it once")
    return values[0] if values else None


def pictures_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ldm.workpieces.PictureFiles``."""
    found = {key: flags[key] for key in _PICTURES}
    pickles = {"allow_pickle": flags["allow_pickle"]}
    return {**found, "controls": tuple({**parse_control(text), **pickles} for text in flags["controls"] or ())}


def parse_control(text: str) -> dict[str, Any]:
    """``NET=HINT[:SCALE[:START-END]]`` as fields of ``ldm.workpieces.ControlFile``.

    Raises:
        UserError: it has another form.
    """
    match = _CONTROL.fullmatch(text)
    if match is None:
        raise UserError(f"--control is NET=HINT, NET=HINT:SCALE or NET=HINT:SCALE:START-END, got {text!r}")
    try:
        numbers = {key: float(match[key]) for key in ("scale", "start", "end") if match[key]}
    except ValueError as error:
        raise UserError(f"--control {text!r}: {error}") from error
    return {"net": Path(match["net"]), "hint": Path(match["hint"]), **numbers}
