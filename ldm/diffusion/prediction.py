"""What the network says, and what it means: (x0, eps).

For x_t = alpha x0 + sigma eps a network may be trained to output any of

    epsilon   eps                                   Ho et al. 2020
    x0        x0
    v         alpha eps - sigma x0                  Salimans and Ho 2022, https://arxiv.org/abs/2202.00512
    flow      eps - x0                              rectified flow, Liu et al. 2022

Each is a linear function of (x0, eps), and together with x_t it determines both: two equations, two
unknowns. v and flow never divide by alpha, so they stay exact where alpha is 0.

Loss weights. The squared error of each output is a multiple of the squared error of x0 (substitute
eps_error = -(alpha / sigma) x0_error); min-SNR-gamma (Hang et al. 2023, https://arxiv.org/abs/2303.09556)
asks for the weight min(alpha^2 / sigma^2, gamma) on the x0 error, divided here by that multiple.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ldm.errors import choose

Prediction = Literal["epsilon", "x0", "v", "flow"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Scale = float | Tensor  # a number, or a tensor that broadcasts over the sample


class Estimate(NamedTuple):
    """The clean sample and the noise that a network sees in x_t; alpha x0 + sigma eps = x_t."""

    x0: Tensor
    eps: Tensor


def target(prediction: str, x0: Tensor, eps: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """What a network of this prediction type should output; the shape of ``x0``."""
    if prediction == "epsilon":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":
        return alpha * eps - sigma * x0
    choose(prediction, PREDICTIONS, "prediction")
    return eps - x0


def to_estimate(prediction: str, output: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Estimate:
    """The inverse of :func:`target`, given x_t.

    ``epsilon`` divides by alpha and ``x0`` by sigma: those two say nothing about the other quantity where
    the divisor is 0.
    """
    if prediction == "epsilon":
        return Estimate((x_t - sigma * output) / alpha, output)
    if prediction == "x0":
        return Estimate(output, (x_t - alpha * output) / sigma)
    if prediction == "v":
        norm = alpha * alpha + sigma * sigma  # 1 for a variance-preserving process
        return Estimate((alpha * x_t - sigma * output) / norm, (sigma * x_t + alpha * output) / norm)
    choose(prediction, PREDICTIONS, "prediction")
    norm = alpha + sigma
    return Estimate((x_t - sigma * output) / norm, (x_t + alpha * output) / norm)


def convert(output: Tensor, source: str, to: str, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """Rewrite a network's output of one prediction type as another's."""
    if source == to:
        return output
    return target(to, *to_estimate(source, output, x_t, alpha, sigma), alpha, sigma)


def x0_error_multiple(prediction: str, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The factor m(t), shape (B,), in |output error|^2 = m(t) |x0 error|^2."""
    if prediction == "epsilon":
        return (alpha / sigma) ** 2
    if prediction == "x0":
        return torch.ones_like(alpha)
    if prediction == "v":
        return ((alpha * alpha + sigma * sigma) / sigma) ** 2
    choose(prediction, PREDICTIONS, "prediction")
    return ((alpha + sigma) / sigma) ** 2


def min_snr_weight(prediction: str, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """min-SNR-gamma weight (B,) on the squared error of the output.

    At alpha = 0 an epsilon network learns nothing of x0: SNR and multiple are both 0 and the ratio's
    limit, 1, is taken.
    """
    snr = (alpha / sigma) ** 2
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / x0_error_multiple(prediction, alpha, sigma)
