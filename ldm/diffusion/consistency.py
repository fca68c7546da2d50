"""Consistency distillation of a diffusion model (LCM, Luo et al. 2023, https://arxiv.org/abs/2310.04378).

A teacher with classifier-free guidance of scale g describes, from each x_t, one path to a clean sample: the probability
flow ODE. A consistency function f jumps from anywhere on a path straight to its end, so a few jumps draw a picture:

    f(x_t, t) = c_skip(t) x_t + c_out(t) x0(x_t, t)                          equation 9; x0 is the network's estimate

It is learned from two facts. At the end of the path it is the identity, which the two scalings see to (Song et al.
2023, appendix C, https://arxiv.org/abs/2303.01469). And it has one value along a path: with x_s one DDIM step of the
guided teacher from x_t, and f' a slow copy of f that takes no gradient,

    loss = huber( f(x_t, t) - f'(x_s, s) )                                   equations 14 to 17

The steps are not between neighbouring times but between the N = 50 of a grid, t = k T/N - 1 (section 4.3: so the value
travels to the noisy end in N steps rather than T). The student is either told g, drawn anew for every sample
(section 4.2), or trained for a single g, as LCM-LoRA is (https://arxiv.org/abs/2311.05556).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.context import Context, join
from ldm.diffusion.denoiser import Network
from ldm.diffusion.prediction import Estimate, to_estimate
from ldm.diffusion.process import DiscreteProcess, per_sample

SIGMA_DATA = 0.5  # standard deviation of the data, in the scalings
TIMESTEP_SCALING = 10.0  # times are multiplied by it there: c_skip is nearly 0 from t = 1 on


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, shape of ``t``, float64; 1 and 0 at t = 0."""
    scaled = TIMESTEP_SCALING * t.double()
    total = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """sqrt(error^2 + c^2) - c, averaged over all but the first axis: (B, ...) to (B,).

    The absolute value, rounded off where it is smaller than about ``c``.
    """
    return ((error.square() + c * c).sqrt() - c).flatten(1).mean(1)


class Ladder:
    """The times of distillation, and where the teacher's step from each of them ends.

    Args:
        process: that of the teacher, T times long.
        steps: N of them, at most T.
    """

    def __init__(self, process: DiscreteProcess, steps: int) -> None:
        self.steps, self.stride = steps, process.num_train_timesteps // steps

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A rung for each of the numbers (B,) uniform in [0, 1).

        Returns:
            Its time t and that of the next one down, s (0 below the first), int64 (B,); and numbers (B,) uniform in
            [0, 1), independent of the rung.
        """
        place = uniform.double() * self.steps
        rung = place.long().clamp(max=self.steps - 1)
        t = (rung + 1) * self.stride - 1
        return t, (t - self.stride).clamp(min=0), (place - rung).float()


@dataclass(frozen=True)
class Consistency:
    """The consistency function of a network; two of them, student and target, make the loss.

    Attributes:
        net: as in ``ldm.diffusion.denoiser.Denoiser``.
        process: gives alpha and sigma at t.
        prediction: what the output means, one of ``prediction.PREDICTIONS``.
        clip: estimates of x0 are clamped to -clip .. clip, where there is to be no gradient; None leaves them.
    """

    net: Network
    process: DiscreteProcess
    prediction: str
    clip: float | None = None

    def __call__(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """f(x_t, t): (B, C, H, W) float32.

        Args:
            x_t: (B, C, H, W).
            t: (B,), one time for each sample.
            context: of the B samples.
        """
        c_skip, c_out = (per_sample(c, x_t) for c in boundary(t))
        output = self.net(x_t, t, **context.inputs()).float()
        return c_skip * x_t + c_out * self.estimate(output, x_t, t).x0

    def estimate(self, output: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """What a raw output at the times ``t`` (B,) says about (x0, eps)."""
        alpha, sigma = (per_sample(scale, x_t) for scale in self.process.alpha_sigma(t))
        found = to_estimate(self.prediction, output, x_t, alpha, sigma)
        if self.clip is None:
            return found
        x0 = found.x0.clamp(-self.clip, self.clip)
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    def ddim(
        self, x_t: Tensor, t: Tensor, s: Tensor, context: Context, without: Context | None, scale: Tensor
    ) -> Tensor:
        """One DDIM step of the guided network from t to s: x_s, (B, C, H, W).

        Song et al. 2020 (https://arxiv.org/abs/2010.02502), equation 12 with no noise, on the guided estimate.

        Args:
            x_t: (B, C, H, W).
            t, s: (B,).
            context: of the B samples.
            without: that of no condition, for B samples; None where nothing is guided.
            scale: of guidance (B,); 1 is none.
        """
        if without is None:
            output = self.net(x_t, t, **context.inputs()).float()
        else:
            both = join(without, context).inputs()
            uncond, cond = self.net(torch.cat([x_t, x_t]), torch.cat([t, t]), **both).float().chunk(2)
            output = uncond + per_sample(scale, cond) * (cond - uncond)
        x0, eps = self.estimate(output, x_t, t)
        alpha, sigma = (per_sample(value, x_t) for value in self.process.alpha_sigma(s))
        return alpha * x0 + sigma * eps
