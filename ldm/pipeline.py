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
from pydantic import Field
from torch import Tensor

from ldm.conditioner import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Guided
from ldm.diffusion.samplers import Sampler, Step, find_sampler, sample, with_eta
from ldm.errors import UserError
from ldm.images import to_pil
from ldm.schema import Settings
from ldm.weights.model import Model, load_model, resolve

EMBEDDED = Path(__file__).parent / "assets" / "mnist_text"
Progress = Callable[[int, int, Step], None]  # moves made, moves in all, the last move


class Drawing(Settings):
    """How to draw; ``None`` is the model's own default.

    Attributes:
        sampler: a name of ``ldm.diffusion.samplers.SAMPLERS``, or as other programs spell it.
        steps: moves of the sampler.
        eta: of the sampler ddim: share of fresh noise, 0 (none; the default) to 1.
        spacing: of its times; see ``ldm.diffusion.grid``.
        guidance: classifier-free guidance scale; 1 is none.
        guidance_rescale: 0..1.
        guidance_interval: part of the way, in t / T, in which to guide.
        negative: what to guide away from; the empty condition by default.
        height, width: in pixels, multiples of the codec's factor.
        batch_size: pictures drawn together.
    """

    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    eta: float | None = Field(default=None, ge=0, le=1)
    spacing: str | None = None
    guidance: float | None = None
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative: Condition = None
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)


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
        progress: Progress | None = None,
        **options: object,
    ) -> list[Image.Image]:
        """Draw one picture per prompt: PIL images; the k-th has seed ``seed`` + k.

        Args:
            prompt: a prompt or label, or several.
            seed: of the first picture.
            progress: called after each move.
            **options: fields of ``Drawing``.
        """
        conditions = [prompt] if prompt is None or isinstance(prompt, str | int) else list(prompt)
        seeds = [seed + k for k in range(len(conditions))]
        return to_pil(self.generate(conditions, seeds, progress=progress, **options))

    @torch.inference_mode()
    def generate(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        *,
        progress: Progress | None = None,
        **options: object,
    ) -> Tensor:
        """Draw pictures: (N, C, H, W) float32 in -1..1, on the CPU.

        Args:
            conditions: one prompt, label or None per picture.
            seeds: one per picture.
            progress: called after each move of each batch.
            **options: fields of ``Drawing``.

        Raises:
            UserError: an option is out of range or does not fit the model.
        """
        _check_request(conditions, seeds)
        how = self.settle(Drawing.checked(options))
        batches = self.batches(conditions, how)
        drawn = [self._batch([conditions[i] for i in b], [seeds[i] for i in b], how, progress) for b in batches]
        place = torch.tensor([i for batch in batches for i in batch]).argsort()
        return torch.cat(drawn)[place]

    def batches(self, conditions: Sequence[Condition], how: Drawing) -> list[list[int]]:
        """Which pictures are drawn together, as indices into ``conditions``; ``how`` is settled.

        At most ``batch_size``, all with contexts of one length: a short prompt is not padded for the sake of
        a long neighbour, which would change its picture.
        """
        length = self.model.conditioner.length
        least = length(how.negative) if how.guidance != 1 else 0
        by_length: dict[int, list[int]] = {}
        for i, condition in enumerate(conditions):
            by_length.setdefault(max(length(condition), least), []).append(i)
        size = how.batch_size
        return [rows[k : k + size] for rows in by_length.values() for k in range(0, len(rows), size)]

    def settle(self, how: Drawing) -> Drawing:
        """Fill in the model's defaults and check what depends on the model."""
        defaults, factor = self.model.defaults, self.model.codec.factor
        name = how.sampler or defaults.get("sampler", "ddim")
        row = _row(name, how.eta)
        # The model's number of steps belongs to the model's sampler.
        usual = row.steps if how.sampler else defaults.get("steps", row.steps)
        usual = min(usual, self.model.process.num_train_timesteps)
        guidance = defaults.get("guidance", 1.0) if how.guidance is None else how.guidance
        if how.negative not in (None, "") and guidance == 1:
            raise UserError(f"negative {how.negative!r} needs guidance: at scale 1 it would do nothing")
        height, width = how.height or self.model.size[0], how.width or self.model.size[1]
        for side, value in (("height", height), ("width", width)):
            if value % factor:
                near = max(factor, round(value / factor) * factor)
                raise UserError(
                    f"{side} {value} is not a multiple of {factor}, as this model needs; {near} is the nearest"
                )
        return how.model_copy(
            update={
                "sampler": name,
                "steps": how.steps or usual,
                "guidance": guidance,
                "height": height,
                "width": width,
            }
        )

    def _batch(
        self, conditions: Sequence[Condition], seeds: Sequence[int], how: Drawing, progress: Progress | None
    ) -> Tensor:
        assert how.sampler is not None
        assert how.steps is not None
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
        grid = row.grid(process, how.steps, how.spacing, config.steps_offset, config.end)
        shape = (len(seeds), codec.channels, how.height // codec.factor, how.width // codec.factor)
        x = noise(torch.empty(shape, device=self.device))
        guided = self._guided(conditions, how)
        for i, step in enumerate(sample(row, guided, x, grid, noise, process)):
            x = step.x
            if progress is not None:
                progress(i + 1, how.steps, step)
        return codec.decode(x).cpu()

    def _guided(self, conditions: Sequence[Condition], how: Drawing) -> Guided:
        """The denoiser bound to the contexts of these conditions."""
        scale = 1.0 if how.guidance is None else how.guidance
        asked = [*conditions, how.negative] if scale != 1 else list(conditions)
        context = self.model.conditioner.encode(asked)
        context = None if context is None else context.to(self.device, self.denoiser.dtype)
        unconditional = None
        if scale != 1 and context is not None:
            context, last = context[:-1], context[-1:]
            unconditional = last.expand_as(context)
        return Guided(self.denoiser, context, unconditional, scale, how.guidance_rescale, how.guidance_interval)


def _row(name: str, eta: float | None) -> Sampler:
    row = find_sampler(name)
    return row if eta is None else with_eta(row, eta)


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
) -> Pipeline:
    """Read a model and make it ready to draw.

    Args:
        place: a model folder, a run of ``ldm train``, or None for the model that comes with the package.
        device: ``cpu``, ``cuda``, ...; None picks.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None picks the fastest that the device computes well in.
        attention: ``sdpa``, ``xformers`` or ``math``.
        compile: compile the U-Net with ``torch.compile``; pays after some dozens of pictures.

    Raises:
        UserError: the model or an option is not to be had.
    """
    from ldm import accel

    where = accel.pick_device(device)
    kind = accel.pick_dtype(dtype, where)
    model = load_model(EMBEDDED if place is None else resolve(place))
    return Pipeline(accel.prepare_model(model, where, kind, attention, compile), where, kind)
