"""Floating-point operations: of a call that is not made, and of all the calls while a picture is drawn.

A multiplication and an addition are two. Matrix products and convolutions count; norms, activations and softmax do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Call = tuple[object, str, tuple[tuple[str, tuple[int, ...]], ...]]  # network, method, shapes of its inputs


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
        self._known: dict[Call, float] = {}  # operations of one row of the batch

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count from 0 what is ``metered`` within."""
        self.flops = 0
        token = _meter.set(self)
        try:
            yield
        finally:
            _meter.reset(token)

    @contextmanager
    def _counted(self, call: Call, rows: int) -> Iterator[None]:
        if call not in self._known and getattr(call[0], "_compiled_call_impl", None) is not None:
            self._known[call] = _uncalled(call)  # a counter would make torch.compile give up on it for good
        if call in self._known:
            yield
        else:
            with FlopCounterMode(display=False, custom_mapping=_of_cpus()) as counter:
                yield
            self._known[call] = counter.get_total_flops() / rows
        self.flops += round(rows * self._known[call])


def _uncalled(call: Call) -> int:
    """The operations of a call with one row."""
    network, method, shapes = call
    names = [name for name, _ in shapes]

    def again(model: nn.Module, *inputs: Tensor) -> None:
        getattr(model, method)(**dict(zip(names, inputs, strict=True)))

    assert isinstance(network, nn.Module)
    inputs = [torch.empty(1, *shape, device="meta") for _, shape in shapes]
    return count_flops(lambda: type(network)(network.config), again, inputs)


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def metered(network: object, method: str = "forward", /, **inputs: Tensor) -> Iterator[None]:
    """Around a call of a network with these inputs, each (B, ...): counted, where a meter runs."""
    meter = _meter.get()
    if meter is None:
        yield
        return
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in inputs.items())
    with meter._counted((network, method, shapes), len(next(iter(inputs.values())))):
        yield


def _of_cpus() -> dict[Any, Callable[..., int]]:
    """Operators of CPUs that torch's counter has no formula for: fused attention, and those of ``ldm.cpu_fastpath``."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def linear(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * x.numel() * out_shape[-1]

    def convolution(x: Any, first: Any, second: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        weight = second if second is not None and len(second) == 4 else first  # first is what is added, if anything is
        return 2 * out_shape.numel() * weight[1:].numel()

    found = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if torch.backends.mkldnn.is_available():
        found |= {torch.ops.mkldnn._linear_pointwise: linear, torch.ops.mkldnn._convolution_pointwise: convolution}
    return found
