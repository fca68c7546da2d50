"""What a single file lacks to draw by itself, told from its header alone."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.weights.components import build_empty, fill_module
from ldm.weights.outline import Outline
from ldm.weights.parts import TEXT_ENCODERS
from ldm.weights.stored import Shapes

_CHECKED = ("unet", "vae", "controlnet")  # text encoders are transformers', whose import takes seconds


def fault_of(outline: Outline, shapes: Shapes) -> str | None:
    """Why a file of these tensors cannot be used, or None where nothing is seen to be wrong.

    Args:
        outline: of the file.
        shapes: of its tensors.
    """
    return _lost(outline) or next((fault for part in _CHECKED if (fault := _misfit(part, outline, shapes))), None)


def _lost(outline: Outline) -> str | None:
    """Parts that are missing; a part alone lacks none."""
    held = outline.sources
    if "unet" not in held or len(held) == 1:
        return None
    encoders = outline.family.text_encoders if outline.family else TEXT_ENCODERS[:1]
    lost = [part for part in ("vae", *encoders) if part not in held]
    return f"it holds no {', '.join(lost)}{'; one can be given as --vae' if lost == ['vae'] else ''}" if lost else None


def _misfit(part: str, outline: Outline, shapes: Shapes) -> str | None:
    if part not in outline.sources:
        return None
    name = Path(part)
    try:
        module = build_empty(outline.configs[part], name)
        tensors = {
            key: source.read(torch.empty(shapes[source.name], device="meta"))
            for key, source in outline.sources[part].items()
        }
        fill_module(module, tensors, name)
    except UserError as error:
        return str(error)
    return None
