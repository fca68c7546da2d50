"""Prompts or labels to pictures.

    condition -> conditioner -> guided denoiser -> sampler over the process's times -> codec.decode

Every picture has a CPU generator of its own, seeded with its own seed, so that a picture does not depend on
the batch it was drawn in, nor its noise on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.begun import Begun
from ldm.conditioner import Condition
from ldm.diffusion.context import Context
from ldm.diffusion.control import controlled
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Guided
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampler, Step, find_sampler, sample, with_eta
from ldm.drawing import Drawing, Inputs, slerp
from ldm.errors import UserError
from ldm.images import to_pil
from ldm.models.unet import UNet
from ldm.text_conditioner import TextConditioner
from ldm.weights.model import Model
from ldm.weights.opening import Loading, open_model

NOTHING = Inputs()
EMBEDDED = Path(__file__).parent / "assets" / "mnist_text"
Progress = Callable[[int, int, Step], None]  # moves made, moves in all, the last move


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

    def __call__(
        self,
        prompt: Condition | Sequence[Condition],
        *,
        seed: int = 0,
        inputs: Inputs = NOTHING,
        progress: Progress | None = None,
        **options: object,
    ) -> list[Image.Image]:
        """Draw one picture per prompt: PIL images; the k-th has seed ``seed`` + k.

        Args:
            prompt: a prompt or label, or several.
            seed: of the first picture.
            inputs: pictures to begin from or to follow.
            progress: called after each move.
            **options: fields of ``Drawing``.
        """
        conditions = [prompt] if prompt is None or isinstance(prompt, str | int) else list(prompt)
        seeds = [seed + k for k in range(len(conditions))]
        return to_pil(self.generate(conditions, seeds, inputs=inputs, progress=progress, **options))

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
        _check_request(conditions, seeds)
        how = self.settle(Drawing.checked(options), inputs)
        assert how.height is not None
        assert how.width is not None
        inputs.check(len(conditions), how.height, how.width)
        batches = self.batches(conditions, how)
        drawn = [
            self._batch([conditions[i] for i in b], [seeds[i] for i in b], how, inputs.rows(b), progress)
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
        least = self._length(how.negative, how) if self._guides(how) else 0
        by_length: dict[int, list[int]] = {}
        for i, condition in enumerate(conditions):
            by_length.setdefault(max(self._length(condition, how), least), []).append(i)
        exact = self.device.type == "cpu" and self.denoiser.dtype == torch.float32
        size = 1 if exact else how.batch_size
        return [rows[k : k + size] for rows in by_length.values() for k in range(0, len(rows), size)]

    def settle(self, how: Drawing, inputs: Inputs = NOTHING) -> Drawing:
        """Fill in the model's defaults and check what depends on the model."""
        defaults, model = self.model.defaults, self.model
        name = how.sampler or defaults.get("sampler", "ddim")
        row = _row(name, how.eta)
        # The model's number of steps belongs to the model's sampler.
        usual = row.steps if how.sampler else defaults.get("steps", row.steps)
        guidance = defaults.get("guidance", 1.0) if how.guidance is None else how.guidance
        own = model.size if inputs.init is None else tuple(inputs.init.shape[-2:])
        height, width = how.height or own[0], how.width or own[1]
        settled = how.model_copy(
            update={
                "sampler": name,
                "steps": how.steps or min(usual, model.process.num_train_timesteps),
                "guidance": guidance,
                "height": height,
                "width": width,
            }
        )
        if how.negative not in (None, "") and not self._guides(settled):
            raise UserError(f"negative {how.negative!r} needs guidance: at scale 1 it would do nothing")
        _check_sides(height, width, model.codec.factor)
        _check_fields(settled, model, inputs)
        return settled

    def _guides(self, how: Drawing) -> bool:
        """Whether the network is asked twice; one that follows a scale is told it instead."""
        return how.guidance != 1 and not self._follows_scale

    @property
    def _follows_scale(self) -> bool:
        return getattr(self.model.net.config, "time_cond_proj_dim", None) is not None

    def _length(self, condition: Condition, how: Drawing) -> int:
        conditioner = self.model.conditioner
        if isinstance(conditioner, TextConditioner):
            return conditioner.length(condition, weighted=how.prompt_syntax == "a1111")
        return conditioner.length(condition)

    def _batch(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        how: Drawing,
        inputs: Inputs,
        progress: Progress | None,
    ) -> Tensor:
        assert how.sampler is not None
        assert how.height is not None
        assert how.width is not None
        process, codec = self.denoiser.process, self.model.codec
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise(like: Tensor) -> Tensor:
            # Drawn picture by picture on the CPU: the same numbers in any batch and on any device.
            shape = tuple(like.shape[1:])
            return torch.stack([process.noise(shape, g) for g in generators]).to(like)

        row = _row(how.sampler, how.eta)
        config = self.model.process
        grid = row.grid(process, how.steps or row.steps, how.spacing, config.steps_offset, config.end)
        shape = (len(seeds), codec.channels, how.height // codec.factor, how.width // codec.factor)
        start = _varied(noise(torch.empty(shape, device=self.device)), process, how)
        work = Begun(self.model, self.device, inputs, grid, start, how)
        guided = self._guided(conditions, how, controlled(self.denoiser, inputs.controls), work.beside)
        denoise = work.keep(guided)
        for i, step in enumerate(sample(row, denoise, work.x, work.grid, noise, process)):
            work.x = step.x
            if progress is not None:
                progress(i + 1, len(work.grid) - 1, step)
        return work.paste(codec.decode(work.x).cpu())

    def _guided(
        self, conditions: Sequence[Condition], how: Drawing, denoiser: Denoiser, beside: Tensor | None
    ) -> Guided:
        """The denoiser bound to the contexts of these conditions."""
        scale = 1.0 if how.guidance is None else how.guidance
        twice, count = self._guides(how), len(conditions)
        context = self._context([*conditions, how.negative] if twice else list(conditions), how)
        if context is None and beside is not None:
            context = Context()
        if context is None:
            return Guided(denoiser, None, None, scale)
        context = context.to(self.device, denoiser.dtype)
        unconditional = context.rows(count, count + 1).repeat(count) if twice else None
        context = context.rows(0, count)._replace(beside=beside)
        if self._follows_scale:
            context = context._replace(guidance=torch.full((count,), scale - 1, device=self.device))
            return Guided(denoiser, context)
        unconditional = unconditional and unconditional._replace(beside=beside)
        return Guided(denoiser, context, unconditional, scale, how.guidance_rescale, how.guidance_interval)

    def _context(self, conditions: list[Condition], how: Drawing) -> Context | None:
        conditioner = self.model.conditioner
        if not isinstance(conditioner, TextConditioner):
            return conditioner.encode(conditions)
        weighted = how.prompt_syntax == "a1111"
        context = conditioner.encode(conditions, weighted=weighted, clip_skip=how.clip_skip)
        if context.pooled is None:
            return context
        own = (how.height or 0, how.width or 0)
        numbers = (*(how.original_size or own), *(how.crop_top_left or (0, 0)), *(how.target_size or own))
        return context._replace(sizes=torch.tensor([numbers] * len(conditions), dtype=torch.float32))


def _row(name: str, eta: float | None) -> Sampler:
    row = find_sampler(name)
    return row if eta is None else with_eta(row, eta)


def _varied(noise: Tensor, process: Process, how: Drawing) -> Tensor:
    """Start noise (B, C, h, w), turned towards that of the variation seed."""
    if how.variation_seed is None or how.variation_strength == 0:
        return noise
    other = process.noise(tuple(noise.shape[1:]), torch.Generator().manual_seed(how.variation_seed)).to(noise)
    return torch.stack([slerp(one, other, how.variation_strength) for one in noise])


def _check_sides(height: int, width: int, factor: int) -> None:
    for side, value in (("height", height), ("width", width)):
        if value % factor:
            near = max(factor, round(value / factor) * factor)
            raise UserError(f"{side} {value} is not a multiple of {factor}, as this model needs; {near} is the nearest")


def _check_fields(how: Drawing, model: Model, inputs: Inputs) -> None:
    """Refuse what would do nothing with this model or these inputs."""
    if how.strength is not None and inputs.init is None:
        raise UserError("strength says how much of a picture to redraw: give the picture (init) too")
    if how.variation_strength and how.variation_seed is None:
        raise UserError("variation_strength needs a variation_seed to turn towards")
    if how.clip_skip != 1 and not isinstance(model.conditioner, TextConditioner):
        raise UserError("clip_skip is about a text encoder, and this model has none")
    for name in ("original_size", "crop_top_left", "target_size"):
        if getattr(how, name) is not None and not getattr(model.net.config, "pooled_dim", None):
            raise UserError(f"{name} is for models that read it (SDXL), and this one does not")
    if inputs.controls and not isinstance(model.net, UNet):
        raise UserError("a ControlNet steers a U-Net, and this model has none")


def _check_request(conditions: Sequence[Condition], seeds: Sequence[int]) -> None:
    if len(conditions) != len(seeds):
        raise UserError(f"{len(conditions)} conditions but {len(seeds)} seeds: one of each per picture")
    if not conditions:
        raise UserError("there is nothing to draw: give one prompt, label or None per picture")
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UserError(f"seed {seed} is not between 0 and 2**64 - 1")


def load(
    place: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    attention: str = "sdpa",
    compile: bool = False,
    **weights: object,
) -> Pipeline:
    """Read a model and make it ready to draw.

    Args:
        place: a model folder, a run of ``ldm train``, a single file, ``owner/name`` on the Hugging Face hub, or None
            for the model that comes with the package.
        device: ``cpu``, ``cuda``, ...; None picks.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None picks the fastest that the device computes well in.
        attention: ``sdpa``, ``xformers`` or ``math``.
        compile: compile the U-Net with ``torch.compile``; pays after some dozens of pictures.
        **weights: fields of ``ldm.weights.opening.Loading``: ``variant``, ``vae``, ``loras``, ``embeddings``, ...

    Raises:
        UserError: the model or an option is not to be had.
    """
    from ldm import accel

    where = accel.pick_device(device)
    kind = accel.pick_dtype(dtype, where)
    model = open_model(EMBEDDED if place is None else place, Loading.checked(weights), kind)
    return Pipeline(accel.prepare_model(model, where, kind, attention, compile), where, kind)
