"""The names by which a setting may be called, in files of prompts and for the axes of a table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ldm.drawing import Drawing
from ldm.errors import UserError

ALIASES = {  # as the command line, AUTOMATIC1111's web UI and diffusers call the fields of Drawing
    "sampler_name": "sampler",
    "num_inference_steps": "steps",
    "scheduler": "spacing",
    "schedule": "spacing",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
    "denoising_strength": "strength",
    "w": "width",
    "h": "height",
}


def find_key(name: str, more: Iterable[str] = ()) -> str:
    """The field of ``Drawing``, or the name in ``more``, that ``name`` means; capitals do not matter, nor - for _.

    Raises:
        UserError: none; the message has the nearest.
    """
    plain = name.strip().lower().replace("-", "_")
    canonical = [*more, *Drawing.model_fields]
    plain = ALIASES.get(plain, plain)
    if plain in canonical:
        return plain
    near = difflib.get_close_matches(plain, [*canonical, *ALIASES], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown key {name!r}{hint} (one of: {', '.join(canonical)}; also {', '.join(ALIASES)})")
