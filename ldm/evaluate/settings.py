"""What may be said about how to evaluate a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ldm.data.sources import SourceConfig
from ldm.errors import UserError
from ldm.evaluate.features import HOW
from ldm.evaluate.manifold import NEIGHBOURS
from ldm.schema import Settings


class EvaluateConfig(Settings):
    """How to evaluate a model.

    Attributes:
        data: the reference: real pictures, with the captions or labels that are asked for.
        floor: other real pictures, such as those it was trained on; as many of them as are drawn, measured in the same
            way, show what the best model could come to.
        features: networks, ``KIND:PLACE`` each; see ``ldm.evaluate.features``.
        clip: a CLIP whose scores and retrieval are measured: folder or run; see ``ldm.evaluate.clip_folder``.
        reconstruction: measure the autoencoder.
        count: pictures to draw for each setting; 0 draws none.
        reference_count: so many of the reference, at random; None is all.
        steps, guidance: every pair of them is a setting to draw with; empty is the model's own.
        sampler: None is the model's own.
        conditions: what is asked for; ``auto`` is what the model reads.
        seed: of the first picture and of all that is drawn at random.
        batch_size: pictures drawn together.
        neighbours: k of precision, recall, density and coverage.
        manifold_count: at most so many pictures are compared for these, as they take the square of it; always as many
            of the reference as drawn ones, or all it has.
        kernel_subsets, kernel_size: of the kernel distance.
        workers: processes that open pictures, for each process.
    """

    data: SourceConfig
    floor: SourceConfig | None = None
    features: tuple[str, ...] = ()
    clip: str | None = None
    reconstruction: bool = False
    count: int = Field(default=1000, ge=0)
    reference_count: int | None = Field(default=None, ge=2)
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    sampler: str | None = None
    conditions: Literal["auto", "none", "label", "text"] = "auto"
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=16, ge=1)
    neighbours: int = Field(default=NEIGHBOURS, ge=1)
    manifold_count: int = Field(default=10_000, ge=2)
    kernel_subsets: int = Field(default=100, ge=1)
    kernel_size: int = Field(default=1000, ge=2)
    workers: int = Field(default=2, ge=0)

    @field_validator("features", "steps", "guidance")
    @classmethod
    def _each_once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [value for k, value in enumerate(given) if value in given[:k]]
        if twice:
            raise UserError(f"{twice[0]} is named twice")
        return given

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        if not self.count and not self.reconstruction:
            raise UserError("count 0 draws nothing, and no reconstruction is asked for: there is nothing to evaluate")
        if self.count and not self.features and self.clip is None:
            raise UserError(f"nothing describes the pictures: --features takes {HOW}; or --clip, for its scores alone")
        if self.count and self.count <= self.neighbours:
            raise UserError(f"count {self.count}: draw more, as {self.neighbours} neighbours of each are looked at")
        return self
