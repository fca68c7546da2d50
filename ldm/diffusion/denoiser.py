"""A network, the process it was trained on, and what it predicts: together, a denoiser.

Samplers see only ``denoiser(x_t, point) -> Estimate(x0, eps)``; training sees only ``loss``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.diffusion.context import Context
from ldm.diffusion.prediction import Estimate, min_snr_weight, target, to_estimate
from ldm.diffusion.process import Point, Process, per_sample
from ldm.errors import UserError, choose
from ldm.flops import metered

Network = Callable[..., Tensor]  # (x_t, t of shape (B,), **Context.inputs()) -> output


class Estimator(Protocol):
    """What a sampler needs: the clean sample and the noise in x_t at a noise level."""

    def __call__(self, x_t: Tensor, at: Point) -> Estimate: ...


@dataclass(frozen=True)
class Denoiser:
    """Turns a network's output into (x0, eps).

    Attributes:
        net: (x_t (B, C, H, W), t (B,), and what a context has) -> (B, C, H, W).
        process: gives alpha and sigma at t.
        prediction: what the output means, one of ``prediction.PREDICTIONS``.
        dtype: the network computes in it; everything else here is float32.
        clip: data are known to lie in -clip .. clip; estimates of x0 are clamped to it. None for latents.
    """

    net: Network
    process: Process
    prediction: str = "epsilon"
    clip: float | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        choose(self.prediction, ("epsilon", "x0", "v", "flow"), "prediction")
        if self.prediction == "epsilon" and self.process.point(self.process.last).alpha == 0:
            raise UserError(
                "epsilon prediction says nothing about the picture where alpha is 0: "
                "with zero terminal SNR or a flow process use prediction v, flow or x0"
            )

    def predict(self, x_t: Tensor, at: Point, context: Context | None = None) -> Tensor:
        """The network's raw output at one noise level for the whole batch, in float32."""
        times = torch.full((len(x_t),), at.t, device=x_t.device)
        return self._call(x_t.to(self.dtype), times, context or Context())

    def _call(self, x_t: Tensor, t: Tensor, context: Context, **more: Any) -> Tensor:
        if context.beside is not None:
            x_t = torch.cat([x_t, context.beside], dim=1)  # (B, C + C', H, W)
        inputs = context.inputs()
        with metered(self.net, x=x_t, t=t, **inputs):
            return self.net(x_t, t, **inputs, **more).float()

    def estimate(self, output: Tensor, x_t: Tensor, at: Point) -> Estimate:
        """What a raw output at this noise level says about (x0, eps)."""
        found = to_estimate(self.prediction, output, x_t, at.alpha, at.sigma)
        if self.clip is None:
            return found
        x0 = found.x0.clamp(-self.clip, self.clip)
        return Estimate(x0, (x_t - at.alpha * x0) / at.sigma)

    def __call__(self, x_t: Tensor, at: Point, context: Context | None = None) -> Estimate:
        return self.estimate(self.predict(x_t, at, context), x_t, at)

    def loss(
        self,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        context: Context | None = None,
        snr_gamma: float | None = None,
    ) -> Tensor:
        """L_simple of each sample, shape (B,): mean squared error of the output (Ho et al., equation 14).

        Args:
            x0: clean samples (B, C, H, W).
            t: training times (B,) from ``process.draw_times``.
            eps: noise of the shape of ``x0`` from ``process.noise``.
            context: of the B samples.
            snr_gamma: weight by min-SNR-gamma (5 is usual); None for no weight.
        """
        alpha, sigma = self.process.alpha_sigma(t)
        broad_alpha, broad_sigma = per_sample(alpha, x0), per_sample(sigma, x0)
        output = self._call(broad_alpha * x0 + broad_sigma * eps, t, context or Context())
        error = output - target(self.prediction, x0, eps, broad_alpha, broad_sigma)
        loss = error.square().flatten(1).mean(1)
        if snr_gamma is not None:
            loss = loss * min_snr_weight(self.prediction, alpha, sigma, snr_gamma)
        return loss
