"""Inference in bfloat16 on a CPU, through oneDNN's own operators: the same sums, fewer trips to memory.

A bfloat16 product on a CPU with matrix units is so fast that what surrounds it costs as much. Two things are
saved, both exact up to rounding:

- *Packing.* oneDNN multiplies by weights in a blocked layout of its own. Given a plain tensor it rearranges it
  at every call; a weight of 1280x1280x3x3 then costs more to rearrange than to use on a small image. Here each
  weight is rearranged once for each shape of input. No plain copy is kept beside it.
- *Post-operations.* oneDNN can finish an output, while it is in cache, with a GELU, a product or a sum. GEGLU is
  two such calls, and every residual sum joins the layer before it.

``apply_cpu_fastpath`` rewrites a finished model in place. There is no way back: the result has no gradients and
no state dict, and cannot be moved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.attention import Attention
from ldm.models.layers import GEGLU, ResnetBlock, TransformerBlock

SHAPES_KEPT = 2  # with and without guidance, or a last batch that is smaller: a third shape takes the oldest's place


def cpu_fastpath_supported() -> bool:
    """Whether this CPU computes in bfloat16 and this build of torch has oneDNN."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def apply_cpu_fastpath(model: nn.Module) -> nn.Module:
    """Rewrite every layer of ``model`` that has a faster form; return the model, changed in place.

    Args:
        model: on the CPU, in bfloat16, its weights loaded. A layer of any other type stays as it is.

    Raises:
        UserError: this CPU or this build of torch cannot.
    """
    if not cpu_fastpath_supported():
        raise UserError("the fast path needs a CPU with bfloat16 instructions and a build of torch with oneDNN")
    return _rewrite(model)


def _rewrite(module: nn.Module) -> nn.Module:
    """Rewrite the parts, then the whole, whose fused form asks that its parts be packed."""
    for name, child in module.named_children():
        setattr(module, name, _rewrite(child))
    fast = _FAST.get(type(module))
    return module if fast is None else fast(module)


class _Packed(nn.Module, ABC):
    """A layer whose weight is kept in oneDNN's layout, for the last few shapes of input."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else bias.detach()
        self.dtype = weight.dtype
        self._plain: Tensor | None = weight.detach()  # until the first call
        self._packed: dict[torch.Size, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """The weight in some layout; its dtype and shape are those of the plain one."""
        return next(iter(self._packed.values())) if self._plain is None else self._plain

    @abstractmethod
    def _pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """Rearrange a plain weight for inputs of this shape."""

    def _weight_for(self, x: Tensor) -> Tensor:
        if x.requires_grad or x.dtype != self.dtype:
            raise UserError(
                f"a model on the CPU fast path reads {self.dtype} without gradients, not {x.dtype} with requires_grad "
                f"= {x.requires_grad}; prepare it with inference=False to differentiate"
            )
        packed = self._packed.get(x.shape)
        if packed is None:
            weight = self.weight
            packed = self._pack(weight.to_dense(self.dtype) if weight.is_mkldnn else weight, x.shape)
            while len(self._packed) >= SHAPES_KEPT:
                del self._packed[next(iter(self._packed))]
            self._packed[x.shape] = packed
            self._plain = None
        return packed

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        raise UserError("a model on the CPU fast path cannot be moved or cast: prepare a freshly loaded one")


class PackedLinear(_Packed):
    """``nn.Linear``, and what may be fused to it."""

    def _pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, shape[:-1].numel())

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Map (..., C_in) to (..., C_out), and add ``plus`` of that shape."""
        if plus is not None:
            return self.binary(x, plus, "add")
        return self.unary(x, "none")

    def unary(self, x: Tensor, name: str) -> Tensor:
        """Apply the layer, then the function that oneDNN has under ``name``."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight_for(x), self.bias, name, [], "none")

    def binary(self, x: Tensor, other: Tensor, name: str) -> Tensor:
        """Apply the layer, then "add" or "mul" ``other`` (..., C_out)."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight_for(x), self.bias, name)


class PackedConv2d(_Packed):
    """``nn.Conv2d`` without groups, and a sum that may be fused to it; the output is in channels_last."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(plain.weight, plain.bias)
        self.geometry = list(plain.padding), list(plain.stride), list(plain.dilation), plain.groups

    def _pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, list(shape))

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W'), and add ``plus`` of that shape."""
        weight = self._weight_for(x)
        if plus is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, "none", [], "none")
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, plus, weight, self.bias, *self.geometry, "add", 1.0, None, [], None
        )


class FusedGEGLU(nn.Module):
    """``GEGLU`` as two products: gelu(gate(x)), then value(x) times that."""

    def __init__(self, plain: GEGLU) -> None:
        super().__init__()
        proj = plain.proj
        assert isinstance(proj, PackedLinear)
        weights = [half.contiguous() for half in proj.weight.chunk(2)]
        biases = proj.bias.chunk(2) if proj.bias is not None else (None, None)
        self.value, self.gate = (PackedLinear(*pair) for pair in zip(weights, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_channels) to (..., out_channels)."""
        return self.value.binary(x, self.gate.unary(x, "gelu"), "mul")


class FusedResnetBlock(ResnetBlock):
    """``ResnetBlock`` whose residual joins the second convolution."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) and an embedding (B, E), already through its SiLU, to (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if self.time_emb_proj is not None:
            h += self.time_emb_proj(embedding)[:, :, None, None]
        h = F.silu(self.norm2(h), inplace=True)
        return self.conv2(h, plus=x if self.conv_shortcut is None else self.conv_shortcut(x))


class FusedAttention(nn.Module):
    """``Attention`` whose output layer adds the residual."""

    def __init__(self, plain: Attention) -> None:
        super().__init__()
        self.out = plain.to_out[0]
        plain.to_out = nn.Sequential()  # the identity
        self.attention = plain

    def forward(self, x: Tensor, context: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map ``x`` (B, L, C) to (B, L, C), reading ``context`` or ``x`` itself, and add ``plus``."""
        return self.out(self.attention(x, context), plus)


class FusedTransformerBlock(TransformerBlock):
    """``TransformerBlock`` whose residuals join the layers before them."""

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Map ``x`` (B, L, C) and ``context`` (B, M, context_channels) to (B, L, C)."""
        x = self.attn1(self.norm1(x), plus=x)
        if self.attn2 is not None and self.norm2 is not None:
            x = self.attn2(self.norm2(x), context, plus=x)
        return self.ff.net[2](self.ff.net[0](self.norm3(x)), plus=x)


def _fused_resnet(plain: ResnetBlock) -> nn.Module:
    return _become(FusedResnetBlock, plain, [plain.conv2])


def _fused_transformer_block(plain: TransformerBlock) -> nn.Module:
    return _become(FusedTransformerBlock, plain, [plain.attn1, plain.attn2, plain.ff.net[2]])


def _fused_attention(plain: Attention) -> nn.Module:
    return FusedAttention(plain) if isinstance(plain.to_out[0], PackedLinear) else plain


def _become(fused: type[nn.Module], plain: nn.Module, adders: list[nn.Module | None]) -> nn.Module:
    """Give a block its fused forward, if all its layers that must add the residual can: its parts stay."""
    if all(layer is None or isinstance(layer, (_Packed, FusedAttention)) for layer in adders):
        plain.__class__ = fused
    return plain


def _packed_convolution(plain: nn.Conv2d) -> nn.Module:
    simple = plain.groups == 1 and plain.padding_mode == "zeros" and not isinstance(plain.padding, str)
    return PackedConv2d(plain) if simple else plain


_FAST: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: lambda plain: PackedLinear(plain.weight, plain.bias),
    nn.Conv2d: _packed_convolution,
    GEGLU: lambda plain: FusedGEGLU(plain) if isinstance(plain.proj, PackedLinear) else plain,
    ResnetBlock: _fused_resnet,
    Attention: _fused_attention,
    TransformerBlock: _fused_transformer_block,
}
