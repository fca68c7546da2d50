"""Inpainting with any denoiser: what is kept of a picture is known, so its estimate is put right at every step.

Where the mask is 0 the estimate of x0 is the picture's own, and the noise is what leads there from x_t. Begun at
alpha x0 + sigma eps, a deterministic sampler then stays on that line, and ends at x0; what is drawn where the mask is
1 sees its surroundings at every noise level (cf. Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865, without
their resampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Estimator
from ldm.diffusion.prediction import Estimate
from ldm.diffusion.process import Point


@dataclass(frozen=True)
class Kept:
    """An estimator that knows part of the picture.

    Attributes:
        denoise: the estimator that draws the rest.
        x0: the known picture, (B, C, H, W).
        mask: 0 (keep) to 1 (draw), (B, 1, H, W).
        blank: the first point of the whole way, and the noise that is asked about there in place of x_t: a picture
            drawn from nothing has seen nothing of its surroundings at its first step, as in diffusers.
    """

    denoise: Estimator
    x0: Tensor
    mask: Tensor
    blank: tuple[Point, Tensor] | None = None

    def __call__(self, x_t: Tensor, at: Point) -> Estimate:
        asked = self.blank[1] if self.blank is not None and at == self.blank[0] else x_t
        x0 = torch.lerp(self.x0, self.denoise(asked, at).x0, self.mask)
        return Estimate(x0, (x_t - at.alpha * x0) / at.sigma)
