"""What is trained in diffusion, and its loss, in pixels or in latents: the codec is all that differs.

batch -> codec.latents(codec.encode(images)) -> conditioner(conditions, some dropped) -> denoiser.loss
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ldm.codec import Codec
from ldm.conditioner import Conditioner, LabelConditioner
from ldm.data.samples import Batch
from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.images import to_signed
from ldm.text_conditioner import TextConditioner, Tower
from ldm.training.chance import OFFSET_NOISE, normals
from ldm.training.masks import beside, draw_masks
from ldm.training.prior import share_of_prior
from ldm.training.settings import DiffusionRun
from ldm.training.tasks import Borrowed, Losses, mean_of
from ldm.training.tune_settings import MaskConfig
from ldm.weights.model import Model


class WithGradients(nn.Module):
    """A text encoder that is trained: ``TextConditioner``, which is for drawing, asks without gradients."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.training):
            return self.encoder(*inputs, **named)


class DiffusionPlayer(nn.Module):
    """The network, with what is trained beside it: label tokens, text encoders.

    Args:
        model: codec and conditioner are on their device.
        run: its settings.
        encoders: the text encoders of ``model.conditioner``, where something in them is trained.
    """

    def __init__(self, model: Model, run: DiffusionRun, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.net = model.net
        conditioner = model.conditioner
        # A learned conditioner is trained along and so is a submodule; a frozen one must not be.
        self.label_encoder = conditioner if isinstance(conditioner, LabelConditioner) else None
        # No ModuleList, each element of which FSDP would put together around its forward pass, where gradients are off.
        self.encoders = nn.Sequential(*(WithGradients(encoder) for encoder in encoders))
        self._conditioner, self._codec = Borrowed(conditioner), Borrowed(model.codec)
        self._process, self._prediction = model.process.build(), model.prediction
        self._masks = (run.masks or MaskConfig()) if model.inpaints else None
        self._reads_sizes = getattr(model.net.config, "pooled_dim", None) is not None
        self._run = run

    @property
    def codec(self) -> Codec:
        return self._codec.module

    @property
    def conditioner(self) -> Conditioner:
        """With the text encoders of this very player, which may be an averaged copy."""
        if self.label_encoder is not None:
            return self.label_encoder
        conditioner = self._conditioner.module
        if not self.encoders:
            return conditioner
        twin = copy.copy(conditioner)
        twin.towers = tuple(Tower(own, tower.tokenizer) for own, tower in zip(self.encoders, twin.towers, strict=True))
        twin.remember = 0  # they change at every step
        return twin

    def forward(self, batch: Batch, step: int) -> Losses:
        losses, t = self.losses(batch)
        parts = {"loss": mean_of(losses), **self._by_quarter(losses, t)}
        if self._run.prior is None:
            return Losses(losses.mean(), parts)
        share = share_of_prior(batch).to(losses.device, non_blocking=True)
        total = (losses * (1 - share)).sum() + self._run.prior.weight * (losses * share).sum()
        # half of the samples are of each, over all processes: so this is the sum of the two means
        parts |= {"loss": mean_of(losses, share == 0), "loss_prior": mean_of(losses, share == 1)}
        return Losses(2 * total / len(losses), parts)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each sample (B,), and their times (B,)."""
        images = batch.images if batch.images.is_floating_point() else to_signed(batch.images)
        # a cache has what `encode` gives in place of pictures
        encoded = images if batch.images.is_floating_point() else self.codec.encode(images, wait=False)
        x0 = self.codec.latents(encoded.float(), batch.codec_noise)
        t = self._process.draw_times(batch.uniform)
        context = self._context(batch, x0)
        if self._masks is not None:
            masks = draw_masks(batch.index, self._run.seed, (images.shape[2], images.shape[3]), self._masks)
            extra = beside(self.codec, images, masks, (x0.shape[2], x0.shape[3]))
            context = (context or Context())._replace(beside=extra)
        denoiser = Denoiser(self.net, self._process, self._prediction)
        return denoiser.loss(x0, t, self._noise(batch), context, self._run.snr_gamma), t

    def _noise(self, batch: Batch) -> Tensor:
        strength = self._run.offset_noise
        if not strength:
            return batch.noise
        channels = batch.noise.shape[1]
        return batch.noise + strength * normals(batch.index, self._run.seed, OFFSET_NOISE, channels)[..., None, None]

    def _context(self, batch: Batch, x0: Tensor) -> Context | None:
        context = self.conditioner.encode(batch.conditions) if batch.context is None else batch.context
        if context is None:
            return None
        context = context.to(x0.device)
        if self._reads_sizes:
            context = context._replace(sizes=batch.sizes().to(x0.device, non_blocking=True))
        tokens = context.tokens
        if self.encoders and self.training and tokens is not None and not tokens.requires_grad:
            # All conditions of this process were dropped to zeros; others wait for its gradients all the same.
            idle = sum(p.sum() for p in self.encoders.parameters() if p.requires_grad)
            context = context._replace(tokens=tokens + 0 * idle)
        return context

    def _by_quarter(self, losses: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss by quarter of t: its size differs by orders of magnitude along the way."""
        quarter = (t.float() * (4 / self._process.num_train_timesteps)).long().clamp(max=3)
        return {f"loss_q{i + 1}": mean_of(losses, quarter == i) for i in range(4)}

    def model(self, like: Model, provenance: dict[str, Any]) -> Model:
        """A model that draws with this player's weights; what is not trained is that of ``like``."""
        conditioner = self.conditioner
        if isinstance(conditioner, TextConditioner) and not self.encoders:
            # Apart from training's, which remembers contexts as autocast computed them.
            conditioner = TextConditioner(*conditioner.towers, zero_for_none=conditioner.zero_for_none)
        return Model(
            net=self.net,
            process=like.process,
            prediction=like.prediction,
            codec=like.codec,
            conditioner=conditioner,
            size=like.size,
            defaults=like.defaults,
            provenance=provenance,
        )
