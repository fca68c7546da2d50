"""The moving average of the weights, which checkpoints draw with.

    average <- d average + (1 - d) weights,    d at step n = min(ema_decay, 1 - (1 + n)^-power)

Only what is trained is averaged. What is frozen belongs to the copy and to the module alike, so that a large frozen
network is in memory once. Where the module is sharded, so is its average, and where the average is kept on another
device, it stays there; a module that runs is then put together for as long as somebody draws with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.training.parallel import whole_tensor
from ldm.training.train_settings import TrainSettings


def ema_decay(settings: TrainSettings, step: int) -> float:
    """Decay of the moving average at step ``step`` (from 0); its warm-up forgets the first, bad weights."""
    return min(settings.ema_decay, 1 - (1 + step) ** -settings.ema_power)


class Average:
    """The moving average of a module.

    Args:
        module: as it was built, before it is sharded or wrapped; its copy runs without what wraps it.
        apart: whether the averaged weights are kept where the copy cannot run: sharded, or on another device.
    """

    def __init__(self, module: nn.Module, apart: bool) -> None:
        # What is kept apart leaves a shell without weights; what is frozen is shared.
        parameters = [p for p in module.parameters() if apart or not p.requires_grad]
        shared = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) if apart else p for p in parameters}
        self._copy = copy.deepcopy(module, shared)
        self._apart = apart
        self._own = {} if apart else {n: p for n, p in self._copy.named_parameters() if p.requires_grad}

    def begin(self, module: nn.Module, device: torch.device | None) -> None:
        """Tell it the module that is trained, as it is trained: on its device, sharded or not.

        Args:
            module: the one that it was made from.
            device: where to keep what is apart; None: where the module's is.
        """
        self._module = module
        self._current = {n: p for n, p in module.named_parameters() if n in trained_names(module)}
        if self._apart:
            self._own = {n: p.detach().to(device, copy=True) for n, p in self._current.items()}
        self._buffers = [*zip(self._copy.buffers(), module.buffers(), strict=True)]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the weights that are trained."""
        mine, its = [*self._own.values()], [p.detach() for p in self._current.values()]
        torch._foreach_lerp_(mine, [p.to(m.device) for m, p in zip(mine, its, strict=True)], 1 - decay)
        for buffer, current in self._buffers:
            buffer.copy_(current)

    def tensors(self) -> Mapping[str, Tensor]:
        """The averages by name: what a checkpoint keeps of it."""
        return {name: value.detach() for name, value in self._own.items()}

    @property
    def module(self) -> nn.Module | None:
        """The copy that runs and follows every update; None where the weights are kept apart."""
        return None if self._apart else self._copy
