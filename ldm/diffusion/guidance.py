"""Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    output = uncond + scale * (cond - uncond)

so scale 1 is no guidance and costs one network call, not two. ``rescale`` pulls the result's standard
deviation back to that of the conditional output (Lin et al. 2023, section 3.4); ``interval`` guides only in
a part of the way (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.diffusion.apg import ProjectedGuidance
from ldm.diffusion.context import Context, join
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.prediction import Estimate
from ldm.diffusion.process import Point
from ldm.errors import UserError


@dataclass(frozen=True)
class Guided:
    """A denoiser bound to its context, guided: ``guided(x_t, point) -> Estimate``.

    Attributes:
        denoiser: the unguided denoiser.
        context: of the prompts; None for an unconditional network.
        unconditional: of the negative or empty prompts; needed when ``scale`` is not 1.
        scale: guidance scale, any real number; 1 is no guidance.
        rescale: 0 (off) to 1 (the conditional output's standard deviation).
        projected: adaptive projected guidance in place of the plain kind; it belongs to one run of a sampler.
        interval: guide only where t / T lies in (low, high); (0, 1) is everywhere.
    """

    denoiser: Denoiser
    context: Context | None = None
    unconditional: Context | None = None
    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    projected: ProjectedGuidance | None = None
    _both: Context | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale must be between 0 and 1, got {self.rescale}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval must be two numbers 0 <= low <= high <= 1, got {self.interval}")
        if self.scale == 1:
            return
        if self.context is None:
            raise UserError(f"guidance {self.scale} needs a conditional model; an unconditional one takes only 1")
        if self.unconditional is None:
            raise UserError(f"guidance {self.scale} needs the unconditional context of the negative or empty prompts")
        # joined once here, not at every step
        object.__setattr__(self, "_both", join(self.unconditional, self.context))

    def __call__(self, x_t: Tensor, at: Point) -> Estimate:
        low, high = self.interval
        place = at.t / self.denoiser.process.num_train_timesteps
        if self._both is None or not low <= place <= high:
            return self.denoiser(x_t, at, self.context)
        uncond, cond = self.denoiser.predict(torch.cat([x_t, x_t]), at, self._both).chunk(2)
        if self.projected is None:
            return self.denoiser.estimate(self._guided(cond, uncond), x_t, at)
        with_words, without = (self.denoiser.estimate(output, x_t, at).x0 for output in (cond, uncond))
        x0 = self.projected(with_words, without, self.scale)
        return Estimate(x0, (x_t - at.alpha * x0) / at.sigma)

    def _guided(self, cond: Tensor, uncond: Tensor) -> Tensor:
        guided = uncond + self.scale * (cond - uncond)
        if self.rescale == 0:
            return guided
        axes = tuple(range(1, cond.ndim))
        matched = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return torch.lerp(guided, matched, self.rescale)
