"""The files that are put into a model, found in a folder or in a run of ``ldm train``."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import UserError
from ldm.weights.model import latest_checkpoint

LORA_FILE = "pytorch_lora_weights.safetensors"  # both names are those that diffusers looks for
EMBEDDING_FILE = "learned_embeds.safetensors"


def file_in(place: Path, name: str) -> Path:
    """``place`` itself where it is no folder; else the file ``name`` in it, or in its newest checkpoint.

    Raises:
        UserError: a folder has none.
    """
    if not place.is_dir():
        return place
    newest = latest_checkpoint(place)
    for folder in (place, *([newest] if newest else [])):
        if (folder / name).is_file():
            return folder / name
    also = f", nor in {newest}" if newest else ", and it is no run with a checkpoint"
    raise UserError(f"{place} is a folder, and there is no {name} in it{also}")
