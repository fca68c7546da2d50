"""A module that is trained, with its optimiser, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.training.optimisers import build_optimizer, skips_bad_steps
from ldm.training.parallel import copied, shard, whole_tensor
from ldm.training.tasks import Losses
from ldm.training.train_settings import TrainSettings


def layout(settings: TrainSettings) -> torch.memory_format:
    """The memory format of the kernels of convolutions."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def place(module: Any, device: torch.device, settings: TrainSettings) -> None:
    """Move a module to where it is trained; one that is to be split moves share by share."""
    if settings.parallel == "ddp":  # Any: torch's stubs lack this keyword of Module.to
        module.to(device, memory_format=layout(settings))


class Player:
    """A module and what trains it.

    Args:
        name: by which the task knows it.
        module: on its device, if it is not to be split.
        settings: of the training.
        accelerator: of this process.
        pace: of the player's and the parameter's name: what the learning rate is multiplied by.

    Attributes:
        name: by which the task knows it.
        module: without what Accelerate wraps around it.
        trained: its trained parameters by name; what is frozen is neither optimised nor in checkpoints.
        optimizer: Accelerate's, around torch's.
        sharded: whether it is split among the processes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        settings: TrainSettings,
        accelerator: Accelerator,
        pace: Callable[[str, str], float],
    ) -> None:
        self.name, self.module, self._accelerator = name, module, accelerator
        self._frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
        self.sharded = settings.parallel == "fsdp"
        if self.sharded:
            shard(module, accelerator.device, half=settings.mixed_precision == "bf16")
            self._forward: Any = module
        else:
            self._forward = accelerator.prepare(module)
        self.trained = {n: p for n, p in module.named_parameters() if n not in self._frozen}
        by_pace: dict[float, list[nn.Parameter]] = {}
        for parameter_name, parameter in self.trained.items():
            by_pace.setdefault(pace(name, parameter_name), []).append(parameter)
        self._paces = [*by_pace]
        groups = [{"params": parameters} for parameters in by_pace.values()]
        self.optimizer: Any = accelerator.prepare(build_optimizer(groups, settings))
        self.skips_bad_steps = skips_bad_steps(self.optimizer.optimizer)

    def __call__(self, *inputs: Any) -> Losses:
        """The module's forward pass, under autocast where training is in half precision."""
        with self._accelerator.autocast() if self.sharded else nullcontext():
            return self._forward(*inputs)

    def alone(self) -> AbstractContextManager[Any]:
        """Gradients are not exchanged within; those of a split module always are, as no process could hold them."""
        return nullcontext() if self.sharded else self._accelerator.no_sync(self._forward)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients down to a norm of ``limit``; their norm before that, on the device."""
        norm = self._accelerator.clip_grad_norm_(self.trained.values(), limit)
        assert isinstance(norm, Tensor)
        return whole_tensor(norm)

    def skip_if(self, bad: Tensor) -> None:
        """Have the next step change nothing where ``bad`` is true, which the optimiser reads on the device."""
        like = next(iter(self.trained.values()))
        self.optimizer.optimizer.found_inf = copied(bad.float(), like)

    def step(self, rate: float) -> None:
        """Change the weights at this learning rate, and forget the gradients."""
        for group, pace in zip(self.optimizer.param_groups, self._paces, strict=True):
            group["lr"] = rate * pace
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """What is trained, and the buffers, by name."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self._frozen}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`weights` gave.

        Raises:
            RuntimeError: it is of another network.
        """
        missing, surplus = self.module.load_state_dict(weights, strict=False)
        if missing := sorted(set(missing) - self._frozen):
            raise RuntimeError(f"{missing[0]} is missing")
        if surplus:
            raise RuntimeError(f"{surplus[0]} is not part of {self.name}")
