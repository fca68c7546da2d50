"""Adaptive projected guidance (Sadat et al. 2024, https://arxiv.org/abs/2410.02416): strong, and not oversaturated.

Classifier-free guidance adds (scale - 1) times the difference d = cond - uncond to cond. APG works on the
denoised predictions, estimates of x0, and changes d in three ways, each for every picture by itself:

    momentum     d <- d + momentum * (the d of the step before); negative, it damps what keeps its direction (4.3)
    threshold    d is shortened to a norm of ``norm_threshold``                                              (4.2)
    projection   d = parallel + orthogonal to cond; the parallel part, which mostly saturates, counts eta    (4.1)

With momentum 0, no threshold and eta 1 it is classifier-free guidance, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass
class ProjectedGuidance:
    """The guidance of one batch from its first step to its last: it remembers, so each batch needs its own.

    Attributes:
        eta: share of the part parallel to the conditional estimate, 0 (the paper's choice) to 1 (all of it).
        norm_threshold: largest Euclidean norm of a picture's difference; 15 is usual for Stable Diffusion's
            latents, ``inf`` is none.
        momentum: weight of the differences before, between -1 and 1; -0.5 is usual, 0 is none.

    Raises:
        UserError: a setting is out of range.
    """

    eta: float = 0.0
    norm_threshold: float = 15.0
    momentum: float = -0.5
    _average: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise UserError(f"apg eta must be a number, usually between 0 and 1, got {self.eta}")
        if not self.norm_threshold > 0:
            raise UserError(f"apg norm threshold must be above 0 (inf for none), got {self.norm_threshold}")
        if not -1 < self.momentum < 1:
            raise UserError(f"apg momentum must lie between -1 and 1, got {self.momentum}")

    def __call__(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """Guide one step.

        Args:
            cond: the conditional estimate of x0, (B, ...), float32.
            uncond: the unconditional one.
            scale: guidance scale as in classifier-free guidance: 1 is ``cond``.

        Returns:
            The guided estimate of x0, (B, ...).
        """
        difference = cond - uncond
        if self.momentum != 0:
            if self._average is not None:
                difference = difference + self.momentum * self._average
            self._average = difference
        axes = tuple(range(1, cond.ndim))
        norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
        difference = difference * (self.norm_threshold / norm).clamp(max=1.0)
        # a difference of 0 makes inf above, which is clamped; a cond of 0 has no direction and makes 0 here
        squared = cond.square().sum(axes, keepdim=True)
        along = (difference * cond).sum(axes, keepdim=True) / squared.clamp(min=torch.finfo(cond.dtype).tiny)
        return cond + (scale - 1) * (difference + (self.eta - 1) * along * cond)
