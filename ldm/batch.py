"""One batch of pictures, from conditions and seeds to pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.begun import Begun
from ldm.codec import VAECodec
from ldm.conditioner import Condition
from ldm.diffusion.apg import ProjectedGuidance
from ldm.diffusion.context import Context
from ldm.diffusion.control import Control, controlled
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Guided
from ldm.diffusion.samplers import Sampler, Step, find_sampler, sample, with_eta
from ldm.drawing import Drawing, Inputs, slerp
from ldm.errors import UserError
from ldm.images import resize
from ldm.models.damage import damaged_weight
from ldm.text_conditioner import TextConditioner
from ldm.weights.model import Model
from ldm.weights.parts import TEXT_ENCODERS

Progress = Callable[[int, int, Step], None]  # moves made, moves in all, the last move


def sampler_row(name: str, eta: float | None) -> Sampler:
    """The sampler that a drawing names."""
    row = find_sampler(name)
    return row if eta is None else with_eta(row, eta)


def follows_scale(model: Model) -> bool:
    """Whether the network was distilled to follow a guidance scale that it is told (LCM)."""
    return getattr(model.net.config, "time_cond_proj_dim", None) is not None


def guides(model: Model, how: Drawing) -> bool:
    """Whether the network is asked twice a step; one that follows a scale never is."""
    return how.guidance != 1 and not follows_scale(model)


def moves(how: Drawing, inputs: Inputs, model: Model) -> int:
    """How many moves a batch takes, for a progress bar."""
    steps, strength = how.steps or 0, 1.0
    if inputs.init is not None:
        strength = Begun.strength(how, model)
    second = int((how.hires_steps or steps) * how.hires_strength) if how.hires_scale > 1 else 0
    return int(steps * strength) + second


class Batch:
    """Pictures that are drawn together: one condition and one seed each."""

    def __init__(
        self, model: Model, denoiser: Denoiser, conditions: Sequence[Condition], seeds: Sequence[int], how: Drawing
    ) -> None:
        """``how`` is settled."""
        self._model, self._denoiser, self._conditions, self._how = model, denoiser, conditions, how
        self._device = next(model.net.parameters(), torch.empty(0)).device
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, inputs: Inputs, progress: Progress | None) -> Tensor:
        """Pictures (B, C, H, W) float32 in -1..1, on the CPU.

        Raises:
            UserError: the inputs do not fit the model, or the network gave what is no number.
        """
        how, codec = self._how, self._model.codec
        total, done = moves(how, inputs, self._model), 0

        def told(step: Step) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total, step)

        begun = self._begin(how, inputs)
        x = self._walk(begun, how, inputs.controls, told)
        if how.hires_scale > 1:
            larger = self._larger(how)
            controls = tuple(_resized(control, larger) for control in inputs.controls)
            begun = self._begin(larger, Inputs(), self._enlarged(x, larger))
            x = self._walk(begun, larger, controls, told)
        return begun.paste(codec.decode(begun.finish(x), how.tiled).cpu())

    def _noise(self, like: Tensor) -> Tensor:
        # Drawn picture by picture on the CPU: the same numbers in any batch and on any device.
        process, shape = self._denoiser.process, tuple(like.shape[1:])
        noise = torch.stack([process.noise(shape, generator) for generator in self._generators])
        if like.is_cuda:  # copied while the GPU goes on
            return noise.pin_memory().to(like, non_blocking=True)
        return noise.to(like)

    def _begin(self, how: Drawing, inputs: Inputs, x0: Tensor | None = None) -> Begun:
        assert how.sampler is not None
        assert how.height is not None
        assert how.width is not None
        codec, config = self._model.codec, self._model.process
        row = sampler_row(how.sampler, how.eta)
        grid = row.grid(self._denoiser.process, how.steps or row.steps, how.spacing, config.steps_offset, config.end)
        size = (how.height // codec.factor, how.width // codec.factor)
        start = self._noise(torch.empty(len(self._generators), codec.channels, *size, device=self._device))
        return Begun(self._model, inputs, grid, self._varied(start), how, x0)

    def _varied(self, noise: Tensor) -> Tensor:
        """Start noise (B, C, h, w), turned towards that of the variation seed."""
        how, process = self._how, self._denoiser.process
        if how.variation_seed is None or not how.variation_strength:
            return noise
        other = process.noise(tuple(noise.shape[1:]), torch.Generator().manual_seed(how.variation_seed)).to(noise)
        return torch.stack([slerp(one, other, how.variation_strength) for one in noise])

    def _walk(self, begun: Begun, how: Drawing, controls: tuple[Control, ...], told: Callable[[Step], None]) -> Tensor:
        """From where the batch begins to its latents, (B, C, h, w)."""
        assert how.sampler is not None
        guided = self._guided(how, controlled(self._denoiser, controls, begun.grid), begun.beside)
        row, x = sampler_row(how.sampler, how.eta), begun.x
        for step in sample(row, begun.keep(guided), x, begun.grid, self._noise, self._denoiser.process):
            x = step.x
            told(step)
        if not bool(x.isfinite().all()):
            raise UserError(f"the network gave what is no number: {self._cause(controls)}")
        return x

    def _cause(self, controls: tuple[Control, ...]) -> str:
        """Why there was no number: looked for only then."""
        model, parts = self._model, dict[str, nn.Module]()
        if isinstance(model.conditioner, TextConditioner):
            towers = zip(TEXT_ENCODERS, model.conditioner.towers, strict=False)
            parts |= {name: tower.encoder for name, tower in towers}
        if isinstance(model.codec, VAECodec):
            parts["vae"] = model.codec.vae
        parts |= {f"ControlNet {k}": control.net for k, control in enumerate(controls, 1)} | {"unet": model.net}
        found = damaged_weight(parts)
        if found is not None:
            return f"{model.folder}, {found} holds NaN or infinity"
        half = self._denoiser.dtype == torch.float16
        return "it overflows in fp16; use dtype bf16 or fp32" if half else "its inputs are too large for it"

    def _guided(self, how: Drawing, denoiser: Denoiser, beside: Tensor | None) -> Guided:
        """The denoiser bound to the contexts of the conditions."""
        scale = 1.0 if how.guidance is None else how.guidance
        twice, count = guides(self._model, how), len(self._conditions)
        context = self._context([*self._conditions, how.negative] if twice else list(self._conditions), how)
        if context is None:
            return Guided(denoiser, None if beside is None else Context(beside=beside), None, scale)
        context = context.to(self._device, denoiser.dtype)
        unconditional = context.rows(count, count + 1).repeat(count)._replace(beside=beside) if twice else None
        context = context.rows(0, count)._replace(beside=beside)
        if follows_scale(self._model):
            return Guided(denoiser, context._replace(guidance=torch.full((count,), scale - 1, device=self._device)))
        projected = ProjectedGuidance(how.apg_eta, how.apg_norm_threshold, how.apg_momentum) if how.apg else None
        interval, rescale = how.guidance_interval, how.guidance_rescale
        return Guided(denoiser, context, unconditional, scale, rescale, interval, projected)

    def _context(self, conditions: list[Condition], how: Drawing) -> Context | None:
        conditioner = self._model.conditioner
        if not isinstance(conditioner, TextConditioner):
            return conditioner.encode(conditions)
        weighted = how.prompt_syntax == "a1111"
        context = conditioner.encode(conditions, weighted=weighted, clip_skip=how.clip_skip)
        if context.pooled is None:
            return context
        own = (how.height or 0, how.width or 0)
        numbers = (*(how.original_size or own), *(how.crop_top_left or (0, 0)), *(how.target_size or own))
        return context._replace(sizes=torch.tensor([numbers] * len(conditions), dtype=torch.float32))

    # ---------------------------------------------------------- the second, larger pass

    def _larger(self, how: Drawing) -> Drawing:
        """The settings of the second pass."""
        factor = self._model.codec.factor
        sides = {
            side: max(factor, round((getattr(how, side) or 0) * how.hires_scale / factor) * factor)
            for side in ("height", "width")
        }
        return how.model_copy(update={**sides, "strength": how.hires_strength, "steps": how.hires_steps or how.steps})

    def _enlarged(self, x: Tensor, how: Drawing) -> Tensor:
        """Latents (B, C, h, w) of the first pass at the size of the second."""
        codec = self._model.codec
        assert how.height is not None
        assert how.width is not None
        if how.hires_upscaler == "latent":
            return F.interpolate(x, size=(how.height // codec.factor, how.width // codec.factor), mode="bilinear")
        pictures = resize(codec.decode(x, how.tiled).cpu(), how.width, how.height)
        return codec.mean(codec.encode(pictures.to(self._device), how.tiled)).to(x)


def _resized(control: Control, how: Drawing) -> Control:
    hint = F.interpolate(control.hint, size=(how.height or 0, how.width or 0), mode="bilinear")
    return Control(control.net, hint, control.scale, control.start, control.end)
