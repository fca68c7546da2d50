"""The forms of a caption that training sees: a word put before it, its parts in another order, some left out.

Captions made of tags are lists without an order, and a model that always sees one order learns it. A form is drawn anew
for every sample, or, where ``variants`` is given, is one of so many fixed ones: then all texts of a run are known
beforehand and can be encoded once and kept.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from ldm.data.order import mix
from ldm.errors import IdleError
from ldm.schema import Settings


class CaptionConfig(Settings):
    """What is done to captions.

    Attributes:
        prefix: put before every caption as it is, such as ``"photo of sks dog, "``.
        shuffle: parts come in a random order.
        separator: what lies between the parts of a caption.
        keep: so many parts at the front keep their place, and are never left out.
        drop_parts: probability that a part is left out.
        variants: so many fixed forms of each caption, in place of a new one for each sample.
    """

    prefix: str = ""
    shuffle: bool = False
    separator: str = Field(default=",", min_length=1)
    keep: int = Field(default=0, ge=0)
    drop_parts: float = Field(default=0.0, ge=0, lt=1)
    variants: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> CaptionConfig:
        for name in ("keep", "variants"):
            if getattr(self, name) and not self.changes:
                raise IdleError(name, f"{name} does nothing while captions are neither shuffled nor lose parts")
        return self

    @property
    def changes(self) -> bool:
        """Whether a caption has more than one form."""
        return self.shuffle or self.drop_parts > 0


def form(caption: str, config: CaptionConfig, seed: int, pick: float) -> str:
    """A form of a caption.

    Args:
        caption: as it is in the data.
        config: what is done to it.
        seed: of the run; with ``variants``, it and the caption determine the forms.
        pick: in [0, 1), which form.
    """
    if not config.changes:
        return config.prefix + caption
    if config.variants is None:
        return _rearranged(caption, config, mix(seed, 4, int(pick * 2**53)))
    return _variant(caption, config, seed, int(pick * config.variants))


def forms(caption: str, config: CaptionConfig, seed: int) -> tuple[str, ...]:
    """All forms of a caption that ``form`` can give, each once; ``variants`` must be given where there are several."""
    if not config.changes:
        return (config.prefix + caption,)
    assert config.variants is not None
    return tuple(dict.fromkeys(_variant(caption, config, seed, k) for k in range(config.variants)))


def _variant(caption: str, config: CaptionConfig, seed: int, k: int) -> str:
    letters = caption.encode()
    parts = [int.from_bytes(letters[i : i + 7], "little") for i in range(0, len(letters), 7)]
    return _rearranged(caption, config, mix(seed, 5, k, *parts))


def _rearranged(caption: str, config: CaptionConfig, seed: int) -> str:
    parts = [part.strip() for part in caption.split(config.separator)]
    fixed, loose = parts[: config.keep], parts[config.keep :]
    generator = torch.Generator().manual_seed(seed)
    if config.shuffle:
        loose = [loose[i] for i in torch.randperm(len(loose), generator=generator)]
    stays = (torch.rand(len(loose), generator=generator) >= config.drop_parts).tolist()
    kept = [*fixed, *(part for part, stay in zip(loose, stays, strict=True) if stay)]
    glue = config.separator if config.separator.isspace() else f"{config.separator} "
    return config.prefix + glue.join(kept)
