"""LoRAs and words in the runs that made them, and the models that they are for.

A run that trains no more than these keeps, in each checkpoint, their file and a note of what it started from: together
they are a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.weights.files import read_json
from ldm.weights.model import latest_checkpoint

LORA_FILE = "pytorch_lora_weights.safetensors"  # both names are those that diffusers looks for
EMBEDDING_FILE = "learned_embeds.safetensors"
TUNED = "tuned.json"


def lora_in(place: Path) -> Path:
    """``place`` itself where it is no folder; else the LoRA in it, or in its newest checkpoint.

    Raises:
        UserError: a folder has none.
    """
    return _file_in(place, LORA_FILE)


def embedding_in(place: Path) -> Path:
    """``place`` itself where it is no folder; else the learned word in it, or in its newest checkpoint.

    The word of a model with two text encoders has a file of its own name, as readers take the word from there.

    Raises:
        UserError: a folder has none.
    """
    return _file_in(place, EMBEDDING_FILE, alone=True)


def _file_in(place: Path, name: str, alone: bool = False) -> Path:
    if not place.is_dir():
        return place
    folders = _looked_at(place)
    for folder in folders:
        found = list(folder.glob("*.safetensors"))
        if folder / name in found:
            return folder / name
        if alone and len(found) == 1 and found[0].name != LORA_FILE:
            return found[0]
    also = f", nor in {folders[1]}" if len(folders) > 1 else ", and it is no run with a checkpoint"
    raise UserError(f"{place} is a folder, and there is no {name} in it{also}")


def _looked_at(place: Path) -> list[Path]:
    newest = latest_checkpoint(place)
    return [place, newest] if newest else [place]


def tuned_folder(place: Path) -> Path | None:
    """The folder at a place, or in the newest checkpoint of the run there, that holds a LoRA or word and its note."""
    folders = _looked_at(place) if place.is_dir() else []
    return next((folder for folder in folders if (folder / TUNED).is_file()), None)


def told_base(folder: Path) -> tuple[str, dict[str, Any]]:
    """What the note in such a folder says: the model that it is for, and how that was loaded.

    Raises:
        UserError: the note is damaged.
    """
    note = read_json(folder / TUNED)
    base, loading = note.get("model"), note.get("loading")
    if not isinstance(base, str) or not isinstance(loading, dict):
        raise UserError(f"{folder / TUNED} is damaged: it should say `model` and `loading`")
    return base, loading


def whole_model(place: str | Path | None, weights: Mapping[str, Any]) -> tuple[str | Path | None, dict[str, Any]]:
    """The model that a run of a LoRA or word started from, and what to put into it; others are left as they are.

    Args:
        place: as ``ldm.load`` takes it.
        weights: fields of ``ldm.weights.opening.Loading`` that were asked for; they count before those of the run.

    Raises:
        UserError: the note of the run is damaged.
    """
    folder = None if place is None else tuned_folder(Path(place))
    if folder is None:
        return place, dict(weights)
    base, loading = told_base(folder)
    is_lora = (folder / LORA_FILE).is_file()
    own: dict[str, Any] = {"loras": [(lora_in(folder), 1.0)]} if is_lora else {"embeddings": [embedding_in(folder)]}
    lists = {
        name: (*loading.get(name, ()), *own.get(name, ()), *weights.get(name, ())) for name in ("loras", "embeddings")
    }
    return base, {**loading, **weights, **{name: found for name, found in lists.items() if found}}
