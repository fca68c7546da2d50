"""Settings of the composed pictures as training data. Imported with every configuration: nothing heavy here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ldm.errors import UserError
from ldm.schema import Settings

Kind = Literal["single", "colours", "pairs", "triples", "glyphs", "avatars"]
Group = Literal[
    "smileys-emotion",
    "people-body",
    "component",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
    "flags",
]
Language = Literal["en", "ko"]
Share = Annotated[float, Field(ge=0)]


class StarterConfig(Settings):
    """Pictures composed of emoji, icons and avatars as they are asked for.

    Attributes:
        path: the folder that ``ldm data prepare starter`` wrote.
        size: side of the pictures in pixels.
        crop: a square part with a side of so many pixels in place of the whole, around a place on one of its things;
            the whole is drawn at any size from ``crop`` to ``size``. For autoencoders: such pictures have no captions,
            since those tell of the whole.
        split: ``train``, or the combinations that are never in it.
        kinds: kind of scene -> its share: ``single`` (one thing on white), ``colours`` (one on a named colour, at a
            place and of a size, maybe painted), ``pairs`` and ``triples`` (with their relations), ``glyphs``
            (icons in a named colour) and ``avatars``.
        groups: of emoji, as Unicode names them, such as ``food-drink``; empty for all. Icons and avatars have none.
        least_styles: emoji in fewer styles are left out. A smaller world is learned sooner.
        captions: language -> how many captions a picture has in it, ``en`` and ``ko``; training draws one of all.
        seed: another seed gives other scenes.
        length: so many different pictures, after which they come again. There is no end to them: long trainings want
            millions; what looks at all captions first, as training CLIP does, takes 0.1 ms for each.
    """

    source: Literal["starter"] = "starter"
    path: Path
    size: int = Field(default=256, ge=32, le=1024, multiple_of=8)
    crop: int | None = Field(default=None, ge=32, multiple_of=8)
    split: Literal["train", "held_out"] = "train"
    kinds: dict[Kind, Share] = Field(
        default={"single": 5, "colours": 5, "pairs": 4, "triples": 2, "glyphs": 3, "avatars": 1}
    )
    groups: tuple[Group, ...] = ()
    least_styles: int = Field(default=1, ge=1)
    captions: dict[Language, Annotated[int, Field(ge=0, le=8)]] = Field(default={"en": 2, "ko": 1})
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    length: int = Field(default=200_000, ge=1)

    @field_validator("kinds", "captions")
    @classmethod
    def _not_nothing(cls, given: dict[str, float]) -> dict[str, float]:
        if not any(given.values()):
            raise UserError("should give at least one of them a share")
        return given

    @model_validator(mode="after")
    def _check_crop(self) -> StarterConfig:
        if self.crop is not None and self.crop > self.size:
            raise UserError(f"crop should be at most size, {self.size}, got {self.crop}")
        return self
