"""What a batch of pictures is drawn from: all that a network reads beside x_t and t."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Context(NamedTuple):
    """The inputs of a network for a batch of B pictures; those it does not read are None.

    Attributes:
        tokens: states of a text encoder or label tokens, for cross-attention, (B, L, D).
        pooled: one vector for the whole prompt (SDXL), (B, P).
        sizes: original height and width, top and left of the crop, target height and width (SDXL), (B, 6).
        guidance: guidance scale minus 1, for networks that have learned to follow it (LCM), (B,).
        beside: channels that are put after those of x_t (the mask and the masked picture of inpainting
            networks), (B, C', H, W).
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    beside: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Context:
        """Apply ``function`` to each input there is."""
        return Context(*(None if value is None else function(value) for value in self))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Context:
        """All inputs on ``device``; in ``dtype``, but for sizes and guidance, which half precision would round."""
        moved = self.map(lambda value: value.to(device))
        if dtype is None:
            return moved
        parts = {name: getattr(moved, name) for name in ("tokens", "pooled", "beside")}
        return moved._replace(**{name: value.to(dtype) for name, value in parts.items() if value is not None})

    def rows(self, start: int, stop: int) -> Context:
        """Those of pictures ``start`` to ``stop`` - 1."""
        return self.map(lambda value: value[start:stop])

    def repeat(self, count: int) -> Context:
        """A single picture's inputs, for ``count`` pictures alike."""
        return self.map(lambda value: value.expand(count, *value.shape[1:]))

    def inputs(self) -> dict[str, Tensor]:
        """What the network is called with beside x_t and t, by the names of its arguments."""
        named = {"context": self.tokens, "pooled": self.pooled, "sizes": self.sizes, "guidance": self.guidance}
        return {name: value for name, value in named.items() if value is not None}


def join(first: Context, second: Context) -> Context:
    """The pictures of one context after those of another; both have the same inputs."""
    pairs = zip(first, second, strict=True)
    return Context(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))
