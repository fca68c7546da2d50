"""What may be said about how to draw, and the pictures that a drawing may begin from."""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from ldm.conditioner import Condition
from ldm.diffusion.control import Control
from ldm.diffusion.grid import SPACINGS
from ldm.errors import UserError
from ldm.schema import Settings

RANDOM = -1  # as a seed, in AUTOMATIC1111's web UI
ALIASES = {  # as the command line, AUTOMATIC1111's web UI, ComfyUI and diffusers call the fields of Drawing
    "sampler_name": "sampler",
    "num_inference_steps": "steps",
    "ddim_steps": "steps",
    "ddim_eta": "eta",
    "scheduler": "spacing",
    "schedule": "spacing",
    "schedule_type": "spacing",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
    "denoising_strength": "strength",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "hr_scale": "hires_scale",
    "hr_upscaler": "hires_upscaler",
    "hr_second_pass_steps": "hires_steps",
    "w": "width",
    "h": "height",
}
_SPACINGS = {  # what others call the same times
    "automatic": None,
    "ddim": "leading",
    "ddim_uniform": "leading",
    "uniform": "linspace",
    "normal": "linspace",
    "sgm_uniform": "trailing",
    "align_your_steps": "ays",
}
_ELSEWHERE = {  # arguments of others that are no fields of Drawing, and what to write
    **dict.fromkeys(("image", "init", "init_image"), 'pictures={"init": ...}'),
    **dict.fromkeys(("mask", "mask_image"), 'pictures={"init": ..., "mask": ...}'),
    "control_image": 'pictures={"controls": [{"net": ..., "hint": ...}]}',
    "generator": "seed=, a whole number",
    "num_images_per_prompt": "the prompt as often as you want pictures",
}


def plain_key(name: str) -> str:
    """The field of ``Drawing`` that ``name`` means, where it is one of ``ALIASES``; capitals, - and spaces are _."""
    plain = re.sub(r"[-\s]+", "_", name.strip().lower())
    return ALIASES.get(plain, plain)


def find_key(name: str, more: Iterable[str] = ()) -> str:
    """The field of ``Drawing``, or the name in ``more``, that ``name`` means.

    Raises:
        UserError: none; the message has the nearest.
    """
    canonical = [*more, *Drawing.model_fields]
    plain = plain_key(name)
    if plain in canonical:
        return plain
    near = difflib.get_close_matches(plain, [*canonical, *ALIASES], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown key {name!r}{hint} (one of: {', '.join(canonical)}; also {', '.join(ALIASES)})")


class Drawing(Settings):
    """How to draw; ``None`` is the model's own default.

    Attributes:
        sampler: a name of ``ldm.diffusion.samplers.SAMPLERS``, or as other programs spell it.
        steps: moves of the sampler.
        eta: of the sampler ddim: share of fresh noise, 0 (none; the default) to 1.
        spacing: of its times; see ``ldm.diffusion.grid``; or as the web UI or ComfyUI call it.
        guidance: classifier-free guidance scale; 1 is none. Networks that were distilled to follow a scale (LCM) are
            told it, and are called once.
        guidance_rescale: 0..1.
        guidance_interval: part of the way, in t / T, in which to guide.
        apg: adaptive projected guidance in place of the plain kind; see ``ldm.diffusion.apg``, also for
        apg_eta, apg_norm_threshold, apg_momentum.
        negative: what to guide away from; the empty condition by default.
        prompt_syntax: ``a1111``: brackets weigh words, see ``ldm.prompts``; ``plain``: they are brackets.
        clip_skip: which layer of the text encoder is read, from the last: 1 is the one it was trained with.
        height, width: in pixels, multiples of the codec's factor.
        strength: with a picture to begin from, the part of the way that is drawn, above 0 to 1; 0.75 by default, and
            1 for an inpainting network.
        variation_seed: each picture's start noise is turned towards the noise of this seed (-1: of a random one),
        variation_strength: by this part of the way, 0..1.
        original_size, crop_top_left, target_size: what SDXL is told: height and width that the picture is to look
            as if scaled from, the corner it is to look as if cropped at, and its own; by default its own size
            twice, and uncropped.
        hires_scale: draw a second time, this much larger, from the enlarged first picture; 1 is off,
        hires_upscaler: what is enlarged: ``latent`` or, decoded, by ``lanczos``,
        hires_strength, hires_steps: as ``strength`` and ``steps``, of the second time; by default 0.7 and the same.
        tiled: decode and encode in bands: less memory, the same picture.
        batch_size: pictures drawn together; on a CPU in float32 each is drawn by itself.
    """

    other_names: ClassVar[tuple[str, ...]] = tuple(ALIASES)

    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    spacing: str | None = None
    guidance: float | None = None
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    apg: bool = False
    apg_eta: float = 0.0
    apg_norm_threshold: float = Field(default=15.0, gt=0)
    apg_momentum: float = Field(default=-0.5, gt=-1, lt=1)
    negative: Condition = None
    prompt_syntax: Literal["a1111", "plain"] = "a1111"
    clip_skip: int = Field(default=1, ge=1)
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    strength: float | None = Field(default=None, gt=0, le=1)
    variation_seed: int | None = Field(default=None, ge=0, lt=2**64)
    variation_strength: float | None = Field(default=None, ge=0, le=1)
    original_size: tuple[PositiveInt, PositiveInt] | None = None
    crop_top_left: tuple[int, int] | None = None
    target_size: tuple[PositiveInt, PositiveInt] | None = None
    hires_scale: float = Field(default=1.0, ge=1, le=16)
    hires_upscaler: Literal["latent", "lanczos"] = "latent"
    hires_strength: float = Field(default=0.7, gt=0, le=1)
    hires_steps: int | None = Field(default=None, ge=1)
    tiled: bool = False
    batch_size: int = Field(default=16, ge=1)

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Validate flat values, by the names of the fields or by ``ALIASES``.

        Raises:
            UserError: with a line for every value that is wrong.
        """
        typed: dict[str, str] = {}
        for name in values:
            if name in _ELSEWHERE:
                raise UserError(f"{name!r} is no setting of how to draw: give {_ELSEWHERE[name]}")
            field = plain_key(name)
            if field in typed:
                raise UserError(f"{typed[field]!r} and {name!r} are the same setting: give one")
            typed[field] = name
        return super().checked({field: values[name] for field, name in typed.items()})

    @field_validator("spacing")
    @classmethod
    def _find_spacing(cls, name: str | None) -> str | None:
        plain = re.sub(r"[-\s]+", "_", (name or "").strip().lower())
        if plain in SPACINGS:
            return plain
        return _SPACINGS.get(plain, name)  # whether the process has it, and what is near, the grid knows

    @field_validator("hires_upscaler", "prompt_syntax", mode="before")
    @classmethod
    def _in_small_letters(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("variation_seed", mode="before")
    @classmethod
    def _draw_seed(cls, value: Any) -> Any:
        return secrets.randbelow(2**32) if isinstance(value, int | str) and str(value) == str(RANDOM) else value

    @field_validator("hires_steps", mode="before")
    @classmethod
    def _refuse_none(cls, value: Any) -> Any:
        if isinstance(value, int | str) and str(value) == "0":
            raise ValueError("should be 1 or more; leave it out for the same number as the first time")
        return value


@dataclass(frozen=True)
class Inputs:
    """Pictures that a drawing begins from or follows: one for all that are drawn, or one for each of the N.

    Attributes:
        init: (N or 1, C, H, W) in -1..1, of the size of what is drawn.
        mask: (N or 1, 1, H, W): 0 where ``init`` is kept, 1 where it is drawn anew, soft in between.
        controls: ControlNets and their hints.
    """

    init: Tensor | None = None
    mask: Tensor | None = None
    controls: tuple[Control, ...] = ()

    def __post_init__(self) -> None:
        if self.mask is not None:
            if self.init is None:
                raise UserError("a mask says which part of a picture to keep: give the picture (init) too")
            if self.mask.ndim != 4 or self.mask.shape[1] != 1:
                raise UserError(f"the mask should be (N, 1, H, W), got {tuple(self.mask.shape)}")
            if not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
                raise UserError(
                    f"values of the mask should be 0 to 1, got {float(self.mask.min())} to {float(self.mask.max())}"
                )
            if self.mask.shape[-2:] != self.init.shape[-2:]:
                raise UserError(
                    f"the mask is {_size(self.mask)} and the picture {_size(self.init)}: they must be of one size"
                )

    def check(self, count: int, height: int, width: int) -> None:
        """Refuse pictures of another number or size than is drawn.

        Raises:
            UserError: naming which.
        """
        hints = {f"hint {i + 1}": control.hint for i, control in enumerate(self.controls)}
        for name, picture in {"init": self.init, "mask": self.mask, **hints}.items():
            if picture is None:
                continue
            if picture.shape[-2:] != (height, width):
                raise UserError(f"{name} is {_size(picture)}, but {width}x{height} is drawn: they must be of one size")
            if len(picture) not in (1, count):
                usable = "1" if count == 1 else f"1 or {count}"
                raise UserError(f"{name} holds {len(picture)} pictures, and {count} are drawn: give {usable}")

    def rows(self, indices: list[int]) -> Inputs:
        """Those of the pictures numbered ``indices``."""

        def take(picture: Tensor | None) -> Tensor | None:
            return picture if picture is None or len(picture) == 1 else picture[indices]

        controls = tuple(
            Control(c.net, c.hint if len(c.hint) == 1 else c.hint[indices], c.scale, c.start, c.end)
            for c in self.controls
        )
        return Inputs(take(self.init), take(self.mask), controls)


def _size(picture: Tensor) -> str:
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


def shrunk(mask: Tensor, factor: int) -> Tensor:
    """A mask (B, 1, H, W) at the size of the latents: the mean over each of their positions."""
    return F.avg_pool2d(mask, factor) if factor > 1 else mask


def slerp(start: Tensor, end: Tensor, part: float) -> Tensor:
    """Turn noise (C, H, W) towards other noise along the sphere that both lie near, so that its norm stays."""
    if part == 0:
        return start
    cosine = (start * end).sum() / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-4:  # nearly parallel: the sphere is flat there
        return torch.lerp(start, end, part)
    return (torch.sin((1 - part) * angle) * start + torch.sin(part * angle) * end) / angle.sin()
