"""What a run keeps of its pictures and texts, so that training need not encode them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from ldm.schema import Settings

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class CacheConfig(Settings):
    """A folder of what the VAE and the text encoder give; ``cache: {}`` takes the defaults.

    Attributes:
        path: the folder; ``cache`` in the run's own by default. Runs that encode alike can share one.
        crops: parts kept of each picture, where ``frame.crop`` is ``random``.
        dtype: of what is kept. fp16 is finer, bf16 reaches further, fp32 keeps every bit.
        texts: keep the text encoder's states too; off for a text encoder that is trained.
    """

    path: Path | None = None
    crops: int = Field(default=1, ge=1)
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    texts: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        return DTYPES[self.dtype]
