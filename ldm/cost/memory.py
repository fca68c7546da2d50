"""What one device holds while it trains, by kind, in bytes.

    weights       float32 where they are trained (autocast casts them as they are used); frozen ones as they are kept
    gradients     float32
    optimiser     two moments: float32, or 8 bits each (``adamw8bit``)
    average       float32, where it is kept on the device
    activations   what the forward pass leaves for the backward pass
    working       what else is held at the worst moment: of operators, of the backward pass
    gathered      FSDP: weights and gradients of the blocks that are put together at that moment
    holes         between tensors, and small objects, on a CPU whose allocator keeps what is freed (``ldm.cost.heap``)
    beside        the framework's own (code, workspaces of libraries, data): it is not counted, and known where a
                  run was measured

On a GPU the sum is what torch allocates at most. What it reserves, and what other programs see, is more: the holes of
its caching allocator and the context of CUDA are not in it.

DDP (``train.parallel: ddp``) has all of it on every device, and its gradients are there all the time, as they are views
of the buffers that are exchanged. FSDP (Zhao et al. 2023, https://arxiv.org/abs/2304.11277) has a share of trained
weights, gradients, moments and average on each of n devices; what is put together at a time is what lies outside of all
blocks, the block at work and the one that is fetched meanwhile, in the dtype of autocast, and the block's gradients on
their way to float32; or, in the end, the gradients of what lies outside, which for a CLIP is its large table of tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ldm.cost.step import Counted
from ldm.training.train_settings import TrainSettings

_FULL = 4  # bytes of a float32


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the worst moment of a step."""

    weights: int
    gradients: int
    optimiser: int
    average: int
    activations: int
    working: int
    gathered: int
    holes: int = 0
    beside: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def gradients_stay(train: TrainSettings, devices: int) -> bool:
    """Whether gradients are there before a micro-batch begins: see ``ldm.cost.step.count_step``."""
    return devices > 1 or train.parallel == "fsdp" or train.gradient_accumulation > 1


def memory_of(counted: Counted, train: TrainSettings, devices: int, beside: int = 0) -> Memory:
    """The memory of one of so many devices.

    Args:
        counted: a micro-batch, counted with ``kept`` where :func:`gradients_stay`, and ``gathered`` for FSDP.
        train: how it is trained.
        devices: how many share the work.
        beside: what the framework was seen to hold.
    """
    sharded = train.parallel == "fsdp"
    share = devices if sharded else 1
    trained = -(-counted.trained // share)
    frozen = sum(part.frozen_bytes for part in counted.parts.values())
    activations = sum(counted.activations.values())
    working = max(0, counted.peak - activations)
    gradients = _FULL * trained
    if not gradients_stay(train, devices):  # they are within what was counted at the peak
        gradients = min(gradients, working)
        working -= gradients
    moment = 1 if train.optimizer == "adamw8bit" else _FULL
    averaged = train.ema_decay > 0 and train.ema_device == "accelerator"
    return Memory(
        weights=_FULL * trained + frozen,
        gradients=gradients,
        optimiser=2 * moment * trained,
        average=_FULL * -(-counted.averaged // share) if averaged else 0,
        activations=activations,
        working=working,
        gathered=_gathered(counted) if sharded else 0,
        holes=counted.holes,
        beside=beside,
    )


def _gathered(counted: Counted) -> int:
    width = 2 if counted.half else _FULL
    parts = [part.blocks for part in counted.parts.values() if part.trained]
    outside = [numbers for *_, numbers in parts]
    largest = sorted(block for blocks in parts for block in blocks[:-1])[-2:]
    of_block = sum(largest) * width + max(largest, default=0) * (width + _FULL)
    of_outside = max(outside, default=0) * (width + _FULL)  # when no block is there any more
    return width * sum(outside) + max(of_block, of_outside)
