"""The parts that the U-Net and the autoencoder share, under the names of diffusers' state dicts.

Everything keeps the memory layout that it is given: in ``channels_last``, turning an image (B, C, H, W) into
tokens (B, H W, C) and back is a view.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import Attention


def timestep_embedding(t: Tensor, channels: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sines and cosines of t at wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017, section 3.5).

    Args:
        t: timesteps (B,), integer or floating, on the scale 0..1000.
        channels: width of the embedding; even.
        flip_sin_to_cos: cosines come first, as Stable Diffusion has it.
        freq_shift: 1 makes the last wavelength exactly 20000 pi; Stable Diffusion has 0.

    Returns:
        (B, channels) in float32, because neighbouring timesteps are equal in half precision.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponents)  # (B, channels / 2)
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


def run_block(block: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """Call ``block(*inputs)``; with ``recompute``, keep only its inputs and call it again in the backward."""
    return checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)


class ResnetBlock(nn.Module):
    """Two convolutions with group norm and SiLU around a residual; the time embedding enters between them.

    Args:
        in_channels: C_in.
        out_channels: C_out; where it differs, the residual passes through a 1x1 convolution.
        groups: groups of both norms.
        eps: of both norms.
        embedding_channels: width of the time embedding; ``None``: there is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        embedding_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if embedding_channels is None else nn.Linear(embedding_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) and an embedding (B, E), already through its SiLU, to (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution.

    Args:
        channels: C, in and out.
        pad_end: pad only below and to the right, as the autoencoder does, rather than all around.
    """

    def __init__(self, channels: int, pad_end: bool = False) -> None:
        super().__init__()
        self.pad_end = pad_end
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2)); rounded down with ``pad_end``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Enlarge to the nearest neighbour, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, *size); without a size, to twice the height and width."""
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020, eq. 6), the second half of ``proj``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_channels) to (..., out_channels)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 4 * channels
        # the identity stands where diffusers has a dropout, so that the last layer is net.2
        self.net = nn.Sequential(GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, C) to (B, L, C)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, feed-forward: each a pre-norm residual.

    Args:
        channels: width C.
        heads: number of attention heads.
        context_channels: width of the context; ``None``: no cross-attention, so neither ``attn2`` nor
            ``norm2``.
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = self.attn2 = None
        if context_channels is not None:
            self.norm2 = nn.LayerNorm(channels)
            self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map ``x`` (B, L, C) and ``context`` (B, M, context_channels) to (B, L, C)."""
        x = x + self.attn1(self.norm1(x))
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of an image (Rombach et al. 2022, appendix E.2.1).

    Args:
        channels: C.
        heads: number of attention heads.
        depth: number of transformer blocks.
        context_channels: width of the context, or ``None`` for self-attention alone.
        groups: groups of the norm before.
        linear_projection: project tokens with a linear layer (SD 2.x, SDXL) and not pixels with a 1x1
            convolution (SD 1.x): the same function under weights of another shape.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_channels: int | None,
        groups: int,
        linear_projection: bool,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_channels) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map ``x`` (B, C, H, W) and ``context`` (B, M, context_channels) to (B, C, H, W)."""
        h = self.norm(x)
        if not self.linear_projection:
            h = self.proj_in(h)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C)
        if self.linear_projection:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear_projection:
            h = self.proj_out(h)
        h = h.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)  # (B, C, H, W)
        if not self.linear_projection:
            h = self.proj_out(h)
        return x + h
