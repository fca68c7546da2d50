"""The shape of a ControlNet, told from its tensors: a single file says nothing else of it.

Levels, widths, transformers and what reads the hint show in names and shapes. How many heads attend does not: it is
that of the family, which the width of the text tells.
"""

from __future__ import annotations

from typing import Any

from ldm.errors import UserError
from ldm.models.controlnet import ControlNetConfig
from ldm.models.unet_config import SIZES
from ldm.weights.families import FAMILIES, Family
from ldm.weights.stored import Shapes

_HINT = "controlnet_cond_embedding."
_HEADS, _HEAD_WIDTH = 8, 64  # Stable Diffusion 1 has so many heads, the others heads so wide


def family_of_controlnet(shapes: Shapes) -> Family | None:
    """The family whose U-Net a ControlNet with these shapes, by diffusers' names, was copied from; None if unknown."""
    context, pooled = _context(shapes), "add_embedding.linear_1.weight" in shapes
    for family in FAMILIES:
        fits = context == family.context or (context is None and pooled)  # small ones of SDXL read no text
        if fits and ("addition_embed_type" in family.unet) == pooled:
            return family
    return None


def controlnet_config(shapes: Shapes) -> dict[str, Any]:
    """The ``config.json`` of the ControlNet whose tensors have these shapes.

    Args:
        shapes: by diffusers' names.

    Raises:
        UserError: a tensor is missing, or they are of no shape that can be built or of no known family.
    """
    blocks = _numbered(shapes, "down_blocks")
    widths = [_side(shapes, f"{block}.resnets.0.conv1.weight", 0) for block in blocks]
    family = family_of_controlnet(shapes)
    if family is None:
        raise UserError(f"it is of no family that is known (it reads text of width {_context(shapes)}): use a folder")
    sd1 = family.name.startswith("sd1")
    found = {
        "in_channels": _side(shapes, "conv_in.weight", 1),
        "block_out_channels": tuple(widths),
        "layers_per_block": len(_numbered(shapes, "down_blocks.0.resnets")),
        "attention": tuple(_attends(shapes, block) for block in blocks),
        "mid_attention": _attends(shapes, "mid_block"),
        "num_attention_heads": _HEADS if sd1 else tuple(max(1, width // _HEAD_WIDTH) for width in widths),
        "transformer_layers_per_block": _depths(shapes, blocks),
        "cross_attention_dim": family.context,
        "use_linear_projection": any(k.endswith(".proj_in.weight") and len(v) == 2 for k, v in shapes.items()),
        "conditioning_channels": _side(shapes, f"{_HINT}conv_in.weight", 1),
        "conditioning_embedding_out_channels": _hint_widths(shapes),
        **_added(shapes, family),
    }
    return ControlNetConfig.checked(found).to_diffusers()


def _numbered(shapes: Shapes, start: str) -> list[str]:
    """``start.0``, ``start.1``, ..., as many as there are."""
    count = 0
    while any(name.startswith(f"{start}.{count}.") for name in shapes):
        count += 1
    return [f"{start}.{k}" for k in range(count)]


def _attends(shapes: Shapes, block: str) -> bool:
    return f"{block}.attentions.0.norm.weight" in shapes


def _depths(shapes: Shapes, blocks: list[str]) -> int | tuple[int, ...]:
    """Of each level, or one for all; the middle is as deep as the last level, which need not attend itself."""
    telling = [block if _attends(shapes, block) else "" for block in blocks]
    telling = [*telling[:-1], telling[-1] or "mid_block"] if telling else []
    depths = [len(_numbered(shapes, f"{block}.attentions.0.transformer_blocks")) for block in telling]
    found = [depth if _attends(shapes, block) else 1 for block, depth in zip(telling, depths, strict=True)]
    return 1 if set(found) == {1} else tuple(found)


def _hint_widths(shapes: Shapes) -> tuple[int, ...]:
    blocks = _numbered(shapes, f"{_HINT}blocks")[1::2]  # every second halves the size and widens
    names = [f"{_HINT}conv_in", *blocks]
    return tuple(_side(shapes, f"{name}.weight", 0) for name in names)


def _added(shapes: Shapes, family: Family) -> dict[str, int]:
    name = "add_embedding.linear_1.weight"
    if name not in shapes:
        return {}
    waves = family.unet["addition_time_embed_dim"]
    return {"pooled_dim": _side(shapes, name, 1) - SIZES * waves, "size_embed_dim": waves}


def _context(shapes: Shapes) -> int | None:
    keys = (shape for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight"))
    return next((shape[1] for shape in keys if len(shape) == 2), None)


def _side(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise UserError(f"{name} {f'has the shape {shape}' if name in shapes else 'is missing'}")
    return shape[axis]
