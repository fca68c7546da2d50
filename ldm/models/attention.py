"""Attention, softmax(Q K^T / sqrt(d)) V, and the kernels that can compute it.

A kernel is a row of ``BACKENDS``. ``Attention`` remembers only its name, so a model is built the same
everywhere and ``set_backend`` chooses afterwards; weights do not depend on it.

- ``sdpa``: ``torch.nn.functional.scaled_dot_product_attention``: memory grows with L, not L^2, wherever a
  fused kernel fits. Where it is slow, in training on a CPU in bfloat16 with few keys, the two products themselves.
- ``xformers``: ``memory_efficient_attention``, for CUDA devices.
- ``math``: the formula as written, L^2 memory; every product is visible to a FLOP counter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError, choose, need

# Up to so many, there and back, the products take a third to three quarters of the fused kernel's time; and though they
# are rounded before the softmax, the gradients of a U-Net are as near to those in float32.
UNFUSED_KEYS = 600


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.requires_grad and k.shape[-2] <= UNFUSED_KEYS and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = need("xformers.ops", "xformers")
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # xformers counts heads after positions
    return ops.memory_efficient_attention(q, k, v).transpose(1, 2)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, L, M); scaled first: fp16 stays finite
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "xformers": _xformers,
    "math": _math,
}


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v for every head (Vaswani et al. 2017, eq. 1).

    Args:
        q: queries (B, heads, L, D).
        k: keys (B, heads, M, D).
        v: values (B, heads, M, D).
        backend: a key of ``BACKENDS``.

    Returns:
        (B, heads, L, D).

    Raises:
        UserError: the backend is unknown, or its package is missing.
    """
    return BACKENDS[choose(backend, BACKENDS, "attention backend")](q, k, v)


def check_backend(name: str, device: torch.device | str) -> None:
    """Raise unless attention backend ``name`` can run on ``device``.

    Raises:
        UserError: the name is unknown, its package is missing, or the device is not one it supports.
    """
    choose(name, BACKENDS, "attention backend")
    if name == "xformers":
        need("xformers.ops", "xformers")
        if torch.device(device).type != "cuda":
            raise UserError(
                f"attention backend 'xformers' needs a CUDA device, not {str(device)!r}; 'sdpa' runs anywhere"
            )


def set_backend(model: nn.Module, name: str) -> None:
    """Let every ``Attention`` inside ``model`` use backend ``name``.

    Raises:
        UserError: as ``check_backend``, for the device that the model's parameters are on.
    """
    check_backend(name, next(model.parameters()).device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = name


class Attention(nn.Module):
    """Multi-head attention over a sequence: of itself, or of a context.

    Args:
        channels: width of the sequence, C; the inner width is the same.
        heads: number of heads; must divide ``channels``.
        context_channels: width of the context; ``None``: the sequence attends to itself.
        bias: whether queries, keys and values have a bias (the output always has one).
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False) -> None:
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        self.heads = heads
        self.backend = "sdpa"
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))  # diffusers has a dropout beside it, as to_out.1

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``x`` (B, L, C) to (B, L, C), reading ``context`` (B, M, context_channels), or ``x`` itself."""
        context = x if context is None else context
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, C) -> (B, heads, L, D)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attend(q, k, v, self.backend)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, heads, L, D) -> (B, L, C)


class ImageAttention(Attention):
    """Self-attention of one head over the positions of an image, with its norm and residual (the VAE's)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map (B, C, H, W) to (B, C, H, W)."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C)
        tokens = super().forward(tokens).unflatten(1, x.shape[-2:])  # (B, H, W, C)
        return x + tokens.permute(0, 3, 1, 2)
