"""Floating-point operations: of a call that is not made, and of all the calls while a picture is drawn.

A multiplication and an addition are two. Matrix products and convolutions count; norms, activations and softmax do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Call = tuple[str, bool, tuple[tuple[str, tuple[int, ...]], ...]]  # a method, in tiles?, the shapes of its inputs


def count_flops(build: Callable[[], nn.Module], call: Callable[..., Any], inputs: Sequence[Tensor]) -> int:
    """The operations of ``call(build(), *inputs)``, on ``meta``: nothing is computed."""
    with torch.device("meta"):
        model = build().eval()
    meta = [x.to("meta") for x in inputs]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, *meta)
    return counter.get_total_flops()


class Meter:
    """Sums what networks do. The first call of each kind is counted as it runs, the others cost the same.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        self.flops = 0
        self._known: WeakKeyDictionary[nn.Module, dict[Call, float]] = WeakKeyDictionary()  # of one row of a batch

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count from 0 what is ``metered`` within."""
        self.flops = 0
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    @contextmanager
    def counted(self, network: nn.Module, call: Call, rows: int) -> Iterator[None]:
        """Around a call for so many rows of a batch."""
        known = self._known.setdefault(network, {})
        if call not in known and network._compiled_call_impl is not None:
            known[call] = _uncalled(network, call)  # a counter would make torch.compile give up on it for good
        if call in known:
            yield
        else:
            with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
                yield
            known[call] = counter.get_total_flops() / rows
        self.flops += round(rows * known[call])


_running: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def unmetered() -> Iterator[None]:
    """Nothing within is counted: it is no part of the drawing."""
    token = _running.set(None)
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def metered(network: Any, method: str = "forward", tiled: bool = False, /, **inputs: Tensor) -> Iterator[None]:
    """Around a call of a network with these inputs, each (B, ...): counted, where a meter runs.

    ``tiled`` tells a call in tiles, which overlap, from one without.
    """
    meter = _running.get()
    if meter is None:
        yield
        return
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in inputs.items())
    with meter.counted(network, (method, tiled, shapes), len(next(iter(inputs.values())))):
        yield


def _uncalled(network: nn.Module, call: Call) -> int:
    """The operations of a call with one row, of a plain network of the same shape."""
    method, _, shapes = call
    names = [name for name, _ in shapes]

    def again(model: nn.Module, *inputs: Tensor) -> None:
        getattr(model, method)(**dict(zip(names, inputs, strict=True)))

    inputs = [torch.empty(1, *shape, device="meta") for _, shape in shapes]
    return count_flops(lambda: type(network)(network.config), again, inputs)


def formulas() -> dict[Any, Callable[..., int]]:
    """Operators of CPUs that torch's counter has no formula for: fused attention, and those of ``ldm.cpu_fastpath``."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def linear(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * x.numel() * out_shape[-1]

    def convolution(x: Any, first: Any, second: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        weight = second if second is not None and len(second) == 4 else first  # first is what is added, if anything is
        return 2 * out_shape.numel() * weight[1:].numel()

    aten = torch.ops.aten
    found = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    if torch.backends.mkldnn.is_available():
        found |= {torch.ops.mkldnn._linear_pointwise: linear, torch.ops.mkldnn._convolution_pointwise: convolution}
    return found
