"""The parts of a model and their files, by the names that diffusers gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
TEXT_ENCODERS, TOKENIZERS = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")  # SDXL has two
TOWER_SUFFIXES = ("", "_2")  # of both, in that order
DRAWING_PARTS = ("unet", "scheduler", "vae", *TEXT_ENCODERS, *TOKENIZERS)
PARTS = (*DRAWING_PARTS, "label_encoder")
UNREAD_PARTS = ("safety_checker", "feature_extractor", "image_encoder")  # StableDiffusionPipeline asks for them too


def listed_parts(index: Mapping[str, Any]) -> set[str]:
    """The parts in a ``model_index.json``; ``[null, null]`` is none, and names with an underscore are remarks."""
    return {name for name, value in index.items() if not name.startswith("_") and is_part(value)}


def is_part(value: Any) -> bool:
    """Whether a value of a ``model_index.json`` is a part: the library and the class that read it."""
    return isinstance(value, list) and bool(value) and value[0] is not None
