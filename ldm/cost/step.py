"""One training step on paper: what it takes, part by part, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ldm.cost.counting import Ledger, Works, add_all, counting, flops_of, on_paper, written_down
from ldm.cost.diffusion_step import Backward, backward
from ldm.training.parallel import _blocks as blocks_of


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

    def forward(self, ledger: Ledger) -> list[Backward]:
        """Run them; the backward passes that are due, in order."""
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
    """

    batch: int
    half: bool
    numbers: int
    parts: dict[str, Part]
    works: Works
    activations: dict[str, int]
    peak: int

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
            due = step.forward(ledger)
            activations = ledger.by_dtype()
            first = {name: flops_of(works) for name, works in ledger.works.items()}
            backward(due, ledger)
        works: Works = {}
        for share in ledger.works.values():
            add_all(works, share)
        parts = {}
        for name, (parameters, learned, frozen, blocks) in sizes.items():
            whole, forward = flops_of(ledger.works.get(name, {})), first.get(name, 0)
            own = 0 if name in step.shared else frozen
            parts[name] = Part(parameters, learned, own, forward, whole - forward, blocks)
        return Counted(step.batch, step.half is not None, step.numbers, parts, works, activations, ledger.peak)


def _sizes(module: nn.Module) -> tuple[int, int, int, tuple[int, ...]]:
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(module)]
    whole = sum(p.numel() for p in parameters)
    return whole, trained, frozen, (*blocks, whole - sum(blocks))
