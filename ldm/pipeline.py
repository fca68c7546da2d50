"""Prompts or labels to pictures.

    condition -> conditioner -> guided denoiser -> sampler over the process's times -> codec.decode

Every picture has a CPU generator of its own, seeded with its own seed, so that a picture does not depend on
the batch it was drawn in, nor its noise on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.batch import Batch, Progress, follows_scale, guides, sampler_row
from ldm.begun import Begun
from ldm.codec import VAECodec
from ldm.conditioner import Condition
from ldm.diffusion.control import Control
from ldm.diffusion.denoiser import Denoiser
from ldm.drawing import Drawing, Inputs
from ldm.errors import IdleError, UserError
from ldm.models.unet import UNet
from ldm.open_picture import MAX_PIXELS
from ldm.text_conditioner import TextConditioner
from ldm.weights.model import Model

NOTHING = Inputs()


class Pipeline:
    """A model, ready to draw.

    Attributes:
        model: its parts, on their device and in their dtype.
        denoiser: the network with its process.
    """

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        """``model``'s networks are already on ``device``; ``dtype`` is that of its network."""
        self.model = model
        self.device = device
        self.denoiser = Denoiser(
            model.net, model.process.build(), model.prediction, clip=model.codec.bounds, dtype=dtype
        )

    @torch.inference_mode()
    def generate(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        *,
        inputs: Inputs = NOTHING,
        progress: Progress | None = None,
        **options: object,
    ) -> Tensor:
        """Draw pictures: (N, C, H, W) float32 in -1..1, on the CPU.

        Args:
            conditions: one prompt, label or None per picture.
            seeds: one per picture.
            inputs: pictures to begin from or to follow.
            progress: called after each move of each batch.
            **options: fields of ``Drawing``.

        Raises:
            UserError: an option is out of range or does not fit the model.
        """
        check_request(conditions, seeds)
        how = self.settle(Drawing.checked(options), inputs)
        assert how.height is not None
        assert how.width is not None
        inputs.check(len(conditions), how.height, how.width)
        batches = self.batches(conditions, how)
        drawn = [
            Batch(self.model, self.denoiser, [conditions[i] for i in b], [seeds[i] for i in b], how).draw(
                inputs.rows(b), progress
            )
            for b in batches
        ]
        place = torch.tensor([i for batch in batches for i in batch]).argsort()
        return torch.cat(drawn)[place]

    def batches(self, conditions: Sequence[Condition], how: Drawing) -> list[list[int]]:
        """Which pictures are drawn together, as indices into ``conditions``; ``how`` is settled.

        At most ``batch_size``, all with contexts of one length: a short prompt is not padded for the sake of
        a long neighbour, which would change its picture. On a CPU in float32 each by itself, as products of
        another number of rows are rounded in another order.
        """
        least = self._length(how.negative, how) if guides(self.model, how) else 0
        by_length: dict[int, list[int]] = {}
        for i, condition in enumerate(conditions):
            by_length.setdefault(max(self._length(condition, how), least), []).append(i)
        exact = self.device.type == "cpu" and self.denoiser.dtype == torch.float32
        size = 1 if exact else how.batch_size
        return [rows[k : k + size] for rows in by_length.values() for k in range(0, len(rows), size)]

    def settle(self, how: Drawing, inputs: Inputs = NOTHING) -> Drawing:
        """Fill in the model's defaults and check what depends on the model."""
        defaults, model = self.model.defaults, self.model
        name = defaults.get("sampler", "ddim") if how.sampler is None else how.sampler
        row = sampler_row(name, how.eta)
        # The model's number of steps belongs to the model's sampler.
        usual = row.steps if how.sampler is not None else defaults.get("steps", row.steps)
        guidance = defaults.get("guidance", 1.0) if how.guidance is None else how.guidance
        own = model.size if inputs.init is None else tuple(inputs.init.shape[-2:])
        height, width = how.height or own[0], how.width or own[1]
        if row.spacing_named and how.spacing not in (None, row.spacing):
            told = f"the sampler {name!r} has {row.spacing} times by its name"
            raise UserError(f"{told}, and spacing says {how.spacing!r}")
        settled = how.model_copy(
            update={
                "sampler": name,
                "steps": how.steps or min(usual, model.process.num_train_timesteps),
                "spacing": how.spacing or row.usual_spacing(self.denoiser.process),
                "guidance": guidance,
                "strength": how.strength if inputs.init is None else Begun.strength(how, model),
                "height": height,
                "width": width,
            }
        )
        _check_sides(height, width, model.codec.factor)
        _check_area(height, width, how.hires_scale)
        _check_fields(settled, model, inputs)
        return settled

    def _length(self, condition: Condition, how: Drawing) -> int:
        conditioner = self.model.conditioner
        if isinstance(conditioner, TextConditioner):
            return conditioner.length(condition, weighted=how.prompt_syntax == "a1111")
        return conditioner.length(condition)


def _check_sides(height: int, width: int, factor: int) -> None:
    for side, value in (("height", height), ("width", width)):
        if value % factor:
            near = max(factor, round(value / factor) * factor)
            raise UserError(f"{side} {value} is not a multiple of {factor}, as this model needs; {near} is the nearest")


def _check_area(height: int, width: int, scale: float) -> None:
    if height * width * scale**2 > MAX_PIXELS:
        larger = f", {scale:g} times enlarged," if scale > 1 else ""
        raise UserError(f"{width} x {height}{larger} is more than the {MAX_PIXELS:,} pixels that a picture may have")


def _check_fields(how: Drawing, model: Model, inputs: Inputs) -> None:
    """Refuse what would do nothing with this model or these inputs."""
    if how.strength is not None and inputs.init is None:
        told = "strength says how much of a picture to redraw: give the picture (init) too"
        raise UserError(f"{told}; of a second pass it is hires_strength")
    seeded = how.variation_seed is not None
    if (seeded and how.variation_strength is None) or (how.variation_strength and not seeded):
        raise UserError("a variation takes a variation_seed to turn towards, and a variation_strength, by how much")
    _check_parts(how, model)
    if how.hires_scale > 1 and inputs.init is not None:
        raise UserError("hires draws from words twice; a picture to begin from (init) is drawn at its own size")
    for name in ("hires_upscaler", "hires_strength", "hires_steps"):
        if _said(how, name) and how.hires_scale == 1:
            raise IdleError(name, f"{name} is of the second, larger pass: hires_scale says how much larger")
    _check_guidance(how, model)
    init, colours = inputs.init, model.codec.colours
    if init is not None and (init.ndim != 4 or init.shape[1] != colours):
        raise UserError(f"init should be (N, {colours}, H, W), as this model draws; got {tuple(init.shape)}")
    _check_controls(inputs.controls, model)


def _check_parts(how: Drawing, model: Model) -> None:
    """Refuse settings of a part that the model lacks."""
    for name in ("clip_skip", "prompt_syntax"):
        if _said(how, name) and not isinstance(model.conditioner, TextConditioner):
            raise UserError(f"{name} is about a text encoder, and this model has none")
    for name in ("original_size", "crop_top_left", "target_size"):
        if getattr(how, name) is not None and not getattr(model.net.config, "pooled_dim", None):
            raise UserError(f"{name} is for models that read it (SDXL), and this one does not")
    if how.tiled and not isinstance(model.codec, VAECodec):
        raise UserError("tiled is about an autoencoder, and this model diffuses pixels")


def _check_guidance(how: Drawing, model: Model) -> None:
    """Refuse settings of a guidance that there is not."""
    if how.apg and how.guidance_rescale:
        raise UserError("guidance_rescale is of plain guidance; with apg, leave it out")
    for name in ("apg_eta", "apg_norm_threshold", "apg_momentum"):
        if _said(how, name) and not how.apg:
            raise IdleError(name, f"{name} is a setting of apg, which is off")
    if guides(model, how):
        return
    why = "this network is told its scale" if follows_scale(model) else "at scale 1 there is none"
    if how.negative not in (None, ""):
        told = f"negative {how.negative!r} would do nothing: it is what guidance leads away from, and {why}"
        raise IdleError("negative", told)
    for name in ("guidance_rescale", "guidance_interval", "apg"):
        if _said(how, name):
            raise IdleError(name, f"{name} would do nothing: it changes guidance, and {why}")


def _said(how: Drawing, name: str) -> bool:
    return getattr(how, name) != Drawing.model_fields[name].default


def _check_controls(controls: Sequence[Control], model: Model) -> None:
    """Refuse ControlNets that were made for another network."""
    if not controls:
        return
    if not isinstance(model.net, UNet):
        raise UserError("a ControlNet steers a U-Net, and this model has none")
    for i, control in enumerate(controls):
        net, steered = control.net, model.net
        for what, own, wanted in (
            ("number of channels", net.config.in_channels, model.codec.channels),
            ("width of the context", net.config.cross_attention_dim, steered.config.cross_attention_dim),
            ("width of the pooled prompt", net.config.pooled_dim, steered.config.pooled_dim),
            ("widths on the way down", net.skip_channels, steered.skip_channels),
            ("factor from hint to latents", net.config.factor, model.codec.factor),
            ("dtype", net.conv_in.weight.dtype, steered.conv_in.weight.dtype),
        ):
            if own != wanted:
                raise UserError(f"ControlNet {i + 1} does not fit this model: its {what} is {own}, and here {wanted}")


def check_request(conditions: Sequence[Condition], seeds: Sequence[int]) -> None:
    """Refuse a request for no picture, and one whose conditions and seeds are not as many.

    Raises:
        UserError: naming what is wrong.
    """
    if len(conditions) != len(seeds):
        raise UserError(f"{len(conditions)} conditions but {len(seeds)} seeds: one of each per picture")
    if not conditions:
        raise UserError("there is nothing to draw: give one prompt, label or None per picture")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UserError(f"seed {seed} is not between 0 and 2**64 - 1")
