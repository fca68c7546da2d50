"""One training step on paper: what it takes, part by part, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from ldm.cost.counting import Ledger, Works, add_all, counting, flops_of, on_paper, written_down
from ldm.cost.diffusion_step import Backward, run_backward
from ldm.cost.heap import holes_of, keeps_what_is_freed
from ldm.training.parallel import gathered_blocks


class Step(Protocol):
    """The passes of one micro-batch.

    Attributes:
        batch: pictures.
        half: dtype of autocast; None without.
        numbers: that are diffused, or compressed to, for each picture.
        shared: parts whose frozen weights are those of another part.
    """

    batch: int
    half: torch.dtype | None

    @property
    def numbers(self) -> int: ...

    @property
    def shared(self) -> tuple[str, ...]: ...

    def build(self) -> dict[str, nn.Module]:
        """Make the networks by part, what is trained requiring gradients; called on ``meta``."""
        ...

    def turns(self, ledger: Ledger) -> Iterator[list[Backward]]:
        """Run them forwards; at each turn, the backward passes that are due before the next one, in order.

        Whatever is trained in a turn is changed at its end, and its gradients are forgotten.
        """
        ...


@dataclass(frozen=True)
class Part:
    """A network's share of a step.

    Attributes:
        parameters, trained: numbers in it, and those that are trained.
        frozen_bytes: of the weights that are not trained.
        forward: operations of its forward passes.
        backward: of its backward passes, what is recomputed included.
        blocks: numbers of each of its blocks that are gathered at a time where it is split (FSDP), and of what is not
            in a block.
    """

    parameters: int
    trained: int
    frozen_bytes: int
    forward: int
    backward: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Counted:
    """One micro-batch.

    Attributes:
        batch: pictures of it.
        half: whether autocast computes in 16 bits.
        numbers: that are diffused for each picture.
        parts: its networks.
        works: of all passes, by kind of operator.
        activations: bytes kept from the forward for the backward passes, by dtype.
        peak: the most bytes held at once beside the weights, whose gradients are in it where none were there before.
        averaged: numbers that the moving average follows: those of the first turn.
        holes: bytes beside and between tensors, on a CPU whose allocator keeps what is freed.
    """

    batch: int
    half: bool
    numbers: int
    parts: dict[str, Part]
    works: Works
    activations: dict[str, int]
    peak: int
    averaged: int
    holes: int = 0

    @property
    def flops(self) -> int:
        """Operations of the micro-batch."""
        return flops_of(self.works)

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(part.trained for part in self.parts.values())


def count_step(step: Step, *, gpu: bool = False, gathered: bool = False, kept: bool = False) -> Counted:
    """Count a micro-batch.

    Args:
        step: its passes.
        gpu: with the precision and attention of a GPU.
        gathered: trained weights come in the dtype of autocast, as where they are gathered from several devices.
        kept: gradients are there before, as from an earlier micro-batch or where several devices exchange them.
    """
    with torch.device("meta"):
        networks = step.build()
    sizes = {name: _sizes(module) for name, module in networks.items()}
    for module in networks.values():
        if gathered and step.half is not None and module.training:
            module.to(step.half)
    with on_paper(gpu):
        for module in networks.values():
            written_down(module)
            for parameter in module.parameters() if kept else ():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with counting(copies=not gpu) as ledger:
            played = _play(step, ledger, [] if kept else [*networks.values()])
        works: Works = {}
        for share in ledger.works.values():
            add_all(works, share)
        parts = {}
        for name, (parameters, learned, frozen, blocks) in sizes.items():
            forward, backward = flops_of(ledger.works.get(name, {})) - played.back[name], played.back[name]
            own = 0 if name in step.shared else frozen
            parts[name] = Part(parameters, learned, own, forward, backward, blocks)
        averaged = sum(part.trained for name, part in parts.items() if name not in played.later)
        return Counted(
            batch=step.batch,
            half=step.half is not None,
            numbers=step.numbers,
            parts=parts,
            works=works,
            activations=played.activations,
            peak=ledger.peak,
            averaged=averaged,
            holes=holes_of(ledger.trace) if not gpu and keeps_what_is_freed() else 0,
        )


class _Played(NamedTuple):
    """What the turns of a step showed.

    Attributes:
        activations: bytes that the forward passes of a turn left, by dtype, where they left most.
        back: operations of all backward passes, by part.
        later: parts that are not trained in the first turn.
    """

    activations: dict[str, int]
    back: Counter[str]
    later: set[str]


def _play(step: Step, ledger: Ledger, forgetful: list[nn.Module]) -> _Played:
    """All turns of a step; gradients of the ``forgetful`` networks are gone when a turn ends."""
    activations: dict[str, int] = {}
    back: Counter[str] = Counter()
    later: set[str] = set()
    for turn, due in enumerate(step.turns(ledger)):
        later |= {part for part, *_ in due} if turn else set()
        activations = max(activations, ledger.by_dtype(), key=lambda held: sum(held.values()))
        back.subtract({name: flops_of(works) for name, works in ledger.works.items()})
        run_backward(due, ledger)
        back.update({name: flops_of(works) for name, works in ledger.works.items()})
        for module in forgetful:
            module.zero_grad(set_to_none=True)
    return _Played(activations, back, later)


def _sizes(module: nn.Module) -> tuple[int, int, int, tuple[int, ...]]:
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    blocks = [sum(p.numel() for p in block.parameters()) for block in gathered_blocks(module)]
    whole = sum(p.numel() for p in parameters)
    return whole, trained, frozen, (*blocks, whole - sum(blocks))
