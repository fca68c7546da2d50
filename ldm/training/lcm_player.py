"""The student of consistency distillation, and its loss; the theory is in ``ldm.diffusion.consistency``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.conditioner import NoConditioner
from ldm.data.samples import Batch
from ldm.diffusion.consistency import Consistency, Ladder, pseudo_huber
from ldm.diffusion.context import Context
from ldm.diffusion.process import DiscreteProcess, Process
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.training.lcm_settings import Guidance, LcmRun
from ldm.training.tasks import Borrowed, Losses, mean_of
from ldm.weights.model import Model


class StudentPlayer(nn.Module):
    """The network that learns to jump.

    Args:
        net: the student.
        teacher: a model whose network stays as it is.
        run: of the distillation.
        guidance: the teacher's scale; of two numbers, the student is told the one between them that was drawn.
        nothing: the context of no condition, batch size 1, where contexts come from a cache.
    """

    def __init__(
        self, net: nn.Module, teacher: Model, run: LcmRun, guidance: Guidance, nothing: Context | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self._teacher, self._target = Borrowed(teacher), Borrowed(self)
        self._guidance, self._huber_c, self._nothing = guidance, run.huber_c, nothing
        self._process = chain_of(teacher.process.build())
        self._ladder = Ladder(self._process, run.solver_steps)
        self._reads_sizes = getattr(teacher.net.config, "pooled_dim", None) is not None

    @property
    def teacher(self) -> Model:
        return self._teacher.module

    def follow(self, averaged: nn.Module) -> None:
        """Learn from this copy of the player, whose weights are a moving average of its own."""
        self._target.module = averaged

    def forward(self, batch: Batch, step: int) -> Losses:
        bounds = self.teacher.codec.bounds
        t, s, place = self._ladder.draw(batch.uniform)
        x_t = self._process.add_noise(self._clean(batch), batch.noise, t)
        scale = self._scales(place)
        context, without = self._contexts(batch)
        told = context._replace(guidance=scale - 1) if isinstance(self._guidance, tuple) else context
        with torch.no_grad():
            x_s = self._function(self.teacher.net, bounds).ddim(x_t, t, s, context, without, scale)
            wanted = self._function(self._target.module.net, bounds)(x_s, s, told)
        losses = pseudo_huber(self._function(self.net)(x_t, t, told) - wanted, self._huber_c)
        return Losses(losses.mean(), {"loss": mean_of(losses), **self._by_quarter(losses, t)})

    def _function(self, net: nn.Module, clip: float | None = None) -> Consistency:
        return Consistency(net, self._process, self.teacher.prediction, clip)

    def _clean(self, batch: Batch) -> Tensor:
        """x0: (B, C, h, w)."""
        codec = self.teacher.codec
        # a cache has what `encode` gives in place of pictures
        kept = batch.images.is_floating_point()
        encoded = batch.images if kept else codec.encode(to_signed(batch.images), wait=False)
        return codec.latents(encoded.float(), batch.codec_noise)

    def _scales(self, place: Tensor) -> Tensor:
        """The guidance of each sample (B,) from uniform numbers (B,)."""
        if isinstance(self._guidance, tuple):
            low, high = self._guidance
            return low + (high - low) * place
        return torch.full_like(place, self._guidance)

    def _contexts(self, batch: Batch) -> tuple[Context, Context | None]:
        """That of the samples, and that of no condition for as many, where the teacher is guided."""
        conditioner, count, device = self.teacher.conditioner, len(batch.images), batch.images.device
        if isinstance(conditioner, NoConditioner):
            return Context(), None
        if batch.context is None:
            both = conditioner.encode([*batch.conditions, None])
            assert both is not None
            context, without = both.rows(0, count), both.rows(count, count + 1)
        else:
            assert self._nothing is not None
            context, without = batch.context, _with_windows_of(batch.context, self._nothing)
        context, without = context.to(device), without.repeat(count).to(device)
        if self._reads_sizes:
            sizes = batch.sizes().to(device, non_blocking=True)
            context, without = context._replace(sizes=sizes), without._replace(sizes=sizes)
        return context, None if self._guidance == 1 else without

    def _by_quarter(self, losses: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss by quarter of t: it grows from the clean end, where it is anchored, to the noisy one."""
        quarter = (t.float() * (4 / self._process.num_train_timesteps)).long()
        return {f"loss_q{i + 1}": mean_of(losses, quarter == i) for i in range(4)}


def chain_of(process: Process) -> DiscreteProcess:
    """The process as a chain of betas.

    Raises:
        UserError: it is none.
    """
    if not isinstance(process, DiscreteProcess):
        raise UserError("only teachers whose process is a chain of betas can be distilled, and this one's is a flow")
    return process


def _with_windows_of(like: Context, nothing: Context) -> Context:
    """The context of no condition with as many windows as ``like``, as ``TextConditioner`` pads prompts of a call."""
    assert like.tokens is not None
    assert nothing.tokens is not None
    return nothing._replace(tokens=nothing.tokens.repeat(1, like.tokens.shape[1] // nothing.tokens.shape[1], 1))
