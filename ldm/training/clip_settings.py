"""The settings of a CLIP: what a configuration with ``task: clip`` may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ldm.schema import Settings
from ldm.training.settings import RunSettings


class ClipTextSettings(Settings):
    """The text tower: transformers' CLIPTextConfig, and the size of the vocabulary to learn."""

    vocab_size: int = Field(default=1024, ge=514)
    hidden_size: int = Field(default=128, ge=1)
    intermediate_size: int = Field(default=512, ge=1)
    num_hidden_layers: int = Field(default=3, ge=1)
    num_attention_heads: int = Field(default=4, ge=1)
    max_position_embeddings: int = Field(default=77, ge=3)


class ClipImageSettings(Settings):
    """The image tower: transformers' CLIPVisionConfig."""

    hidden_size: int = Field(default=128, ge=1)
    intermediate_size: int = Field(default=512, ge=1)
    num_hidden_layers: int = Field(default=3, ge=1)
    num_attention_heads: int = Field(default=4, ge=1)
    patch_size: int = Field(default=4, ge=1)


class ClipRun(RunSettings):
    """A CLIP, contrastively, from captions and pictures."""

    task: Literal["clip"]
    text: ClipTextSettings = ClipTextSettings()
    image: ClipImageSettings = ClipImageSettings()
    projection_dim: int = Field(default=128, ge=1)
