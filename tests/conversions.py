"""What the tests of conversions have in common: models to convert, and a look into what was written."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from single_files import SMALL, part_of
from tiny_families import FAMILIES
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.families import Part
from ldm.weights.lora import Lora, LoraLayer
from ldm.weights.lora_names import layers_of
from ldm.weights.model import save_model
from ldm.weights.single_file import write_single_file

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_folders: list[tempfile.TemporaryDirectory[str]] = []
PNDM = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "skip_prk_steps": True, "beta_end": 0.012}
PNDM |= {"beta_start": 0.00085, "beta_schedule": "scaled_linear", "set_alpha_to_one": False, "steps_offset": 1}


@functools.cache
def kept() -> Path:
    """A folder that lives as long as the tests, for what several of them copy."""
    folder = tempfile.TemporaryDirectory()
    _folders.append(folder)
    return Path(folder.name)


def folder_of(family: str, place: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model folder with marks of other programs, which must not get lost."""
    made = kept() / f"{family} {dtype}"
    if not made.exists():
        save_model(FAMILIES[family](), made, dtype)
        change(made / "model_index.json", _diffusers_version="0.6.0")
        change(made / "unet" / "config.json", _name_or_path="somewhere", center_input_sample=False)
    return Path(shutil.copytree(made, place))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def contents(folder: Path) -> dict[str, Any]:
    """What each file of a folder holds; of JSON what it says, not how it is written."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = json.loads(raw) if path.suffix == ".json" else raw
    return found


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def tensors_of(folder: Path, variant: str = "") -> dict[str, dict[str, Tensor]]:
    return {path.parent.name: load_file(path) for path in folder.glob(f"*/*{variant}.safetensors")}


def foreign(kind: str, place: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A single file without our index, for CLIP's own vocabulary."""
    made = kept() / f"{kind} {dtype}.safetensors"
    if not made.exists():
        _write_foreign(kind, made, dtype)
    return Path(shutil.copy(made, place))


def _write_foreign(kind: str, place: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = {}
    for name, config in SMALL[kind].items():
        text = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
        parts[name] = part_of({**config, **(text if name.startswith("text") else {})})
        parts[name].tensors = {
            key: (value + 0.1 * torch.randn_like(value)).to(dtype) for key, value in parts[name].tensors.items()
        }
    write_single_file({**parts, "scheduler": Part({**PNDM, "prediction_type": "epsilon"})}, place, title="Käfer")


def made_lora(targets: dict[str, Any], dtype: torch.dtype = torch.float32) -> Lora:
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return (0.1 * torch.randn(shape, generator=generator)).to(dtype)

    found: dict[str, dict[str, LoraLayer]] = {}
    for target, module in targets.items():
        for k, (name, layer) in enumerate(list(layers_of(module).items())[3::4]):
            out, *inner = layer.weight.shape
            ones = [1] * (len(inner) - 1)
            found.setdefault(target, {})[name] = LoraLayer(noise(2 + k % 2, *inner), noise(out, 2 + k % 2, *ones), 1.5)
    return Lora("style", found)


def refused(run: Callable[[], object], place: Path, message: str) -> None:
    """The message, and that nothing has changed in ``place``."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        run()
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
