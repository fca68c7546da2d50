"""The moving average of the weights, which checkpoints draw with.

    average <- d average + (1 - d) weights,    d at step n = min(ema_decay, 1 - (1 + n)^-power)

Only what is trained is averaged; what is frozen is in memory once. Where a network is split among processes, so is its
average, and it may be kept on the CPU. A network that runs is then put together for as long as somebody draws with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.training.parallel import as_share, own_share, whole_tensor
from ldm.training.train_settings import TrainSettings


def ema_decay(settings: TrainSettings, step: int) -> float:
    """Decay of the moving average at step ``step`` (from 0); its warm-up forgets the first, bad weights."""
    return min(settings.ema_decay, 1 - (1 + step) ** -settings.ema_power)


class Average:
    """The moving average of a module's trained parameters.

    Args:
        module: before anything wraps or splits it, as its copy is to run without that.
        settings: whether and where to keep an average.
        device: where the module is trained.
    """

    def __init__(self, module: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        self._settings, self._device, self._module = settings, device, module
        elsewhere = settings.ema_device == "cpu" and device.type != "cpu"
        self._keep = torch.device("cpu") if elsewhere else device
        # The copy is a shell without weights where these are split, or kept where they do not run.
        self._is_shell = settings.parallel == "fsdp" or (elsewhere and settings.ema_decay > 0)
        self._copy = self._copied(module) if self._is_shell or settings.ema_decay > 0 else module
        self._own: dict[str, Tensor] = {}

    def _copied(self, module: nn.Module) -> nn.Module:
        shell = self._is_shell
        shared = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) if shell else p
            for p in module.parameters()
            if shell or not p.requires_grad
        }
        return copy.deepcopy(module, shared)

    def begin(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Start from the weights that are trained, as they are now: by name, split or not."""
        self._trained = dict(trained)
        if self._settings.ema_decay > 0:
            ours = dict(self._copy.named_parameters())
            for name, parameter in trained.items():
                share = own_share(parameter.detach())
                self._own[name] = share.to(self._keep, copy=True) if self._is_shell else ours[name].detach()

    @property
    def module(self) -> nn.Module | None:
        """The averaged network where it is always there to run, and follows every step."""
        return None if self._is_shell else self._copy

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        if not self._own:
            return
        fresh = [own_share(self._trained[name].detach()).to(self._keep) for name in self._own]
        torch._foreach_lerp_([*self._own.values()], fresh, 1 - ema_decay(self._settings, step))  # pyright: ignore[reportPrivateImportUsage]
        for buffer, current in zip(self._copy.buffers(), self._module.buffers(), strict=True):
            buffer.copy_(current)

    @contextmanager
    def whole(self, here: bool = True) -> Iterator[nn.Module]:
        """The averaged network, to draw with; the trained one itself without an average.

        All processes enter together. Where ``here`` is false, this one only helps, and must not run what it is given.
        """
        if not self._is_shell:
            yield self._copy
            return
        weights = {}
        for name, parameter in self._module.named_parameters():
            value = as_share(self._own[name], parameter) if name in self._own else parameter.detach()
            value = whole_tensor(value)
            if here:
                weights[name] = value.to(self._device)
        if here:
            self._fill(weights)
        try:
            yield self._copy
        finally:
            self._fill({name: torch.empty_like(value, device="meta") for name, value in weights.items()})

    def _fill(self, weights: dict[str, Tensor]) -> None:
        self._copy.load_state_dict(weights, strict=False, assign=True)
        for module in self._copy.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self._device))

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, split as the weights are."""
        return {name: as_share(value, self._trained[name]) for name, value in self._own.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave.

        Raises:
            KeyError, RuntimeError: it is of another network.
        """
        for name, value in self._own.items():
            value.copy_(own_share(tensors[name]))
