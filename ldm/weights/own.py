"""What a model that was trained here says of itself, in its ``model_index.json`` under ``_ldm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from ldm.diffusion.samplers import find_sampler
from ldm.errors import UserError
from ldm.schema import Settings


class Defaults(Settings):
    """How the model likes to be drawn with."""

    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = None


class Own(Settings):
    """What ``model_index.json`` says under ``_ldm``."""

    defaults: Defaults = Defaults()
    provenance: dict[str, Any] = Field(default_factory=dict)
    size: tuple[PositiveInt, PositiveInt] | None = None


def read_own(index: dict[str, Any], path: Path) -> Own:
    """What an index, read from ``path``, says under ``_ldm``.

    Raises:
        UserError: it says what it may not.
    """
    found = index.get("_ldm", {})
    try:
        own = Own.checked(found if isinstance(found, dict) else {"_ldm": found})
        if own.defaults.sampler is not None:
            find_sampler(own.defaults.sampler)
    except UserError as error:
        raise UserError(f"{path}: _ldm: {error}") from error
    return own
