"""What a computation takes, counted operator by operator: operations, bytes moved, and bytes held at once.

A computation is watched either as it runs on a CPU or on paper. On paper its tensors have shapes, dtypes and the device
"cpu", but no numbers (torch's ``FakeTensorMode``, which is ``meta`` with a device): so autocast casts, checkpointing
recomputes and attention chooses its kernel as they would, and Stable Diffusion XL is counted in seconds.

For each operator:

    operations     of products and convolutions, a multiplication and an addition being two (``ldm.flops``)
    bytes moved    of what it reads and writes, each tensor once; views move nothing
    bytes held     of the memory that tensors made within the computation own at one time; what was there before,
                   the weights, is not in it

A GPU differs from a CPU in two things that memory depends on: its autocast computes norms in float32, and attention
never writes down its probabilities.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ldm.cost.heap import Event
from ldm.flops import formulas
from ldm.models import attention

Clock = Callable[[], float]
_CONVOLUTIONS = ("convolution", "convolution_backward")


class Kind(NamedTuple):
    """An operator and the dtype it writes, such as ("convolution", "bfloat16")."""

    operator: str
    dtype: str


@dataclass
class Work:
    """What calls take.

    Attributes:
        flops: operations.
        moved: bytes read and written.
        calls: how many.
        seconds: where they were timed.
    """

    flops: float = 0
    moved: float = 0
    calls: float = 0
    seconds: float = 0

    def add(self, other: Work, times: float = 1) -> None:
        """Take in other calls, so many times."""
        self.flops += times * other.flops
        self.moved += times * other.moved
        self.calls += times * other.calls
        self.seconds += times * other.seconds


Works = dict[Kind, Work]


def add_all(works: Works, others: Works, times: float = 1) -> None:
    """Take in the work of others, so many times."""
    for kind, work in others.items():
        works.setdefault(kind, Work()).add(work, times)


def flops_of(works: Works) -> int:
    """Operations of all kinds."""
    return round(sum(work.flops for work in works.values()))


@dataclass
class Ledger:
    """What has been counted.

    Attributes:
        works: by part of the computation and by kind.
        calls: every call in turn, where there is a clock.
        live: bytes held now.
        peak: the most that were held at once.
        copies: a convolution also holds copies of all that it reads and writes, in a layout of its own, as on CPUs.
        trace: what was made and freed, in turn, such copies included.
    """

    works: dict[str, Works] = field(default_factory=dict)
    calls: list[tuple[Kind, Work]] = field(default_factory=list)
    live: int = 0
    peak: int = 0
    copies: bool = False
    trace: list[Event] = field(default_factory=list)
    _part: str = ""
    _held: dict[int, tuple[int, str, int]] = field(default_factory=dict)  # by the address of a storage
    _made: int = 0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What runs within belongs to this part."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    @property
    def flops(self) -> int:
        """Operations of all parts."""
        return sum(flops_of(works) for works in self.works.values())

    def by_dtype(self) -> dict[str, int]:
        """Bytes held now, by dtype."""
        found: Counter[str] = Counter()
        for size, dtype, _ in self._held.values():
            found[dtype] += size
        return dict(found)

    def note(self, kind: Kind, work: Work, sizes: list[int], timed: bool) -> None:
        """A call has been made, which read and wrote tensors of these sizes."""
        self.works.setdefault(self._part, {}).setdefault(kind, Work()).add(work)
        if self.copies and kind.operator in _CONVOLUTIONS:
            self.peak = max(self.peak, self.live + sum(sizes))
            copies = [Event(self._number(), size) for size in sizes if size]
            self.trace += [*copies, *(Event(copy.tensor) for copy in copies)]
        if timed:
            self.calls.append((kind, work))

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until nobody holds it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = (size, _name(tensor.dtype), self._number())
            if size:
                self.trace.append(Event(self._held[key][2], size))
            weakref.finalize(storage, self._free, key)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        size, _, number = self._held.pop(key)
        self.live -= size
        if size:
            self.trace.append(Event(number))

    def _number(self) -> int:
        self._made += 1
        return self._made


class _Counting(TorchDispatchMode):
    def __init__(self, ledger: Ledger, clock: Clock | None) -> None:
        super().__init__()
        self._ledger, self._timed, self._clock = ledger, clock is not None, clock or float
        self._formulas: dict[Any, Any] = FlopCounterMode(display=False, custom_mapping=formulas()).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        began = self._clock()
        out = func(*args, **kwargs)
        seconds = self._clock() - began
        if func.namespace != "prim":  # whose operators are questions about a tensor
            self._note(func, args, kwargs, out, seconds)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any, seconds: float) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in read}
        fresh = [tensor for tensor in written if tensor.untyped_storage()._cdata not in known]
        if not fresh and not func._schema.is_mutable:
            return  # a view
        for tensor in fresh:
            self._ledger.hold(tensor)
        formula = self._formulas.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        sizes = [_size(tensor) for tensor in (*read, *(fresh or read[:1]))]
        kind = Kind(func._overloadpacket.__name__, _name((fresh or read)[0].dtype))
        self._ledger.note(kind, Work(flops, sum(sizes), 1, seconds), sizes, self._timed)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(tensor: Tensor) -> int:
    """Bytes that are read of a tensor: of one that repeats itself, what there is of it."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def counting(clock: Clock | None = None, copies: bool = False) -> Iterator[Ledger]:
    """Count what runs within, on paper or not; with a clock, keep every call with its seconds."""
    ledger = Ledger(copies=copies)
    with _Counting(ledger, clock):
        yield ledger


@contextmanager
def on_paper(gpu: bool = False) -> Iterator[None]:
    """Tensors made within have no numbers, and nothing is computed.

    Args:
        gpu: norms and attention as on a GPU.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        if gpu:
            hook: Any = _in_float32  # torch's stubs do not know that a hook may return inputs
            stack.callback(register_module_forward_pre_hook(hook).remove)
            stack.callback(setattr, attention, "UNFUSED_KEYS", attention.UNFUSED_KEYS)
            attention.UNFUSED_KEYS = 0
        yield


def _in_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before a norm runs: what the autocast of CUDA makes of its inputs, and that of CPUs does not."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm) and torch.is_autocast_enabled("cpu"):
        return (inputs[0].float(), *inputs[1:])
    return None


def written_down(module: nn.Module) -> None:
    """Bring a module from ``meta``, where it can be built and changed as anywhere, to paper; called there."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            fresh = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
            setattr(part, name, fresh)
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
