"""Several processes: what they say to each other beside gradients, and networks that are split among them.

Words between processes (has anybody been told to stop, which checkpoint is good, is the disk full) go through the CPU
and not through the accelerator's own collectives: these would wait for the device, and give up after ten minutes, which
writing a large checkpoint may well take.

A network that is split (FSDP2: ``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, https://arxiv.org/abs/2304.11277)
is put together one block at a time. Its parameters are ``DTensor``s, of which each process holds a share.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from ldm.errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # a process that is gone is noticed at once: its connection breaks


class Team:
    """The processes of a run.

    Attributes:
        rank: number of this one; 0 is the main process.
        size: how many there are.
        group: of all of them, on the CPU; None where there is one alone.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        # Any: torch says that it may be a number, which it is in processes outside of the group alone
        self.group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if size > 1 else None

    def part(self) -> None:
        """When all processes are done; those that Accelerate made a group of leave it as they end."""
        if self.group is not None:
            dist.barrier(self.group)
            dist.destroy_process_group(self.group)
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of each process, in order, for all of them."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def collect(self, value: T) -> list[T] | None:
        """As :meth:`gather`, for the main process alone; None in the others."""
        if self.group is None:
            return [value]
        found: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, found, dst=0, group=self.group)
        return found

    def tell(self, value: T) -> T:
        """The main process's value, for all of them."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all processes do, each its part: where one cannot, all stop with its message.

        Raises:
            UserError: of any process.
        """
        error = None
        try:
            yield
        except UserError as found:
            error = found
        said = [message for message in self.gather(str(error) if error else None) if message is not None]
        if error is not None:
            raise error
        if said:
            raise UserError(said[0])


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


# --------------------------------------------------------- networks in shares


@contextmanager
def meeting_place(needed: bool) -> Iterator[None]:
    """A process group for a process on its own, where sharding needs one."""
    if not needed or dist.is_initialized():
        yield
        return
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module, device: torch.device, half: bool) -> None:
    """Split a module among all processes, in place: its parameters become ``DTensor``s on ``device``.

    Args:
        module: with its whole weights, the same in every process.
        device: where to keep the shares.
        half: gather weights in bfloat16; gradients are summed in float32 all the same.

    Raises:
        UserError: it has parameters that cannot be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    single = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if single:
        raise UserError(f"train.parallel fsdp cannot split single numbers such as {single[0]}: use ddp for this task")
    if len({parameter.dtype for parameter in module.parameters()}) > 1:
        raise UserError("train.parallel fsdp needs weights of one dtype; use ddp where only added weights are trained")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inputs stay as they are: autocast casts them where that is right, and times are not to be rounded.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = policy if half else MixedPrecisionPolicy()
    for block in [*gathered_blocks(module), module]:
        fully_shard(block, mesh=mesh, mp_policy=policy)


def gathered_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What is put together at a time: the elements of the outermost lists, such as a U-Net's levels."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from gathered_blocks(child)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a split tensor, in every process, which all ask at once; another tensor is whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_share(tensor: Tensor) -> Tensor:
    """This process's share of a split tensor, which shares its memory; another tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_share(share: Tensor, like: Tensor) -> Tensor:
    """The opposite of :func:`own_share`: the split tensor of which this process has this share."""
    if not isinstance(like, DTensor):
        return share
    share, mesh = share.to(like.device), like.device_mesh
    return DTensor.from_local(share, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def copied(value: Tensor, like: Tensor) -> Tensor:
    """A number that all processes know, as something that can be combined with ``like``."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(value, like.device_mesh, [Replicate()], run_check=False)
