"""Training an autoencoder (Rombach et al. 2022, appendix G).

The autoencoder's loss is, per picture,

    mean |x - D(z)| / exp(logvar) + logvar  +  kl_weight KL(q(z|x) || N(0, 1))  +  adaptive weight * L_G

where the distance is a mean over the picture's numbers and the divergence a sum over the latent's (the paper's
code sums both, so a weight w there is w / (C H W) here). The log-variance is learned. From a given step on
there is L_G, the hinge loss of a patch discriminator, which is trained in turn. At each checkpoint the latents'
standard deviation is measured on the data, and one over it stored as the scaling factor.
"""

from __future__ import annotations

import functools
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.data.samples import Batch, TrainingSamples
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.models.discriminator import PatchDiscriminator, adaptive_weight, generator_loss
from ldm.models.vae import AutoencoderKL, kl, sample_moments, split_moments
from ldm.training.adversary import AdversaryPlayer
from ldm.training.player import layout
from ldm.training.run_source import source_of
from ldm.training.settings import VAERun
from ldm.training.tasks import Borrowed, Losses, mean_of
from ldm.weights.components import save_module
from ldm.weights.files import write_json


class VAEPlayer(nn.Module):
    """The autoencoder.

    Attributes:
        seen: pictures and reconstructions, oldest first, that the adversary has yet to judge in this step.
    """

    def __init__(self, run: VAERun, adversary: PatchDiscriminator, perceptual: nn.Module | None) -> None:
        super().__init__()
        self.vae = AutoencoderKL(run.vae)
        self.vae.gradient_checkpointing = run.train.gradient_checkpointing
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=run.loss.learned_logvar)
        self._adversary, self._perceptual = Borrowed(adversary), Borrowed(perceptual)
        self._loss = run.loss
        self.seen: deque[tuple[Tensor, Tensor]] = deque()

    def forward(self, batch: Batch, step: int) -> Losses:
        images = to_signed(batch.images)
        rebuilt, moments = self.vae(images, batch.codec_noise)
        rebuilt, moments = rebuilt.float(), moments.float()
        distance = F.l1_loss if self._loss.reconstruction == "l1" else F.mse_loss
        error = distance(rebuilt, images, reduction="none").flatten(1)
        distortion = error.mean(1)
        parts = {"reconstruction": mean_of(distortion)}
        if self._loss.perceptual > 0:
            felt = self._perceptual_distance(images, rebuilt)
            parts["perceptual"] = mean_of(felt)
            distortion = distortion + self._loss.perceptual * felt
        divergence = kl(moments)
        likelihood = (distortion / self.logvar.exp() + self.logvar).mean()
        loss = likelihood + self._loss.kl * divergence.mean()
        parts["kl"] = mean_of(divergence)
        if self._loss.adversarial > 0 and step >= self._loss.adversarial_start:
            self.seen.append((images, rebuilt.detach()))
            loss = loss + self._adversarial(likelihood, rebuilt, parts)
        count = loss.new_full((), float(len(images)))  # new_tensor would wait for a GPU
        return Losses(loss, {"loss": (loss.detach() * count, count), **parts})

    def _adversarial(self, likelihood: Tensor, rebuilt: Tensor, parts: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        adversary = self._adversary.module
        # Its weights are constants here: what fools it must not be added to the gradients that sharpen it.
        adversary.requires_grad_(False)
        fooled = generator_loss(adversary(rebuilt).float())
        adversary.requires_grad_(True)
        one = fooled.new_ones(())
        weight = adaptive_weight(likelihood, fooled, self.vae.last_layer)
        parts["generator"] = (fooled.detach(), one)
        parts["adaptive_weight"] = (weight, one)
        return self._loss.adversarial * weight * fooled

    def _perceptual_distance(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """Squared distance in the features of a frozen network, (B,)."""
        features = self._perceptual.module.features
        return (features(images) - features(rebuilt)).square().mean(1)


class VAETask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: VAERun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.source = source_of(run)
        factor, channels, loss = run.vae.factor, run.vae.in_channels, run.loss
        shape = (run.vae.latent_channels, factor)
        self.samples = TrainingSamples(
            self.source, run.seed, frame=run.frame, flip=run.flip, space=shape, skip_bad=run.skip_bad
        )
        height, width = min(self.samples.plan.shapes, key=min)
        if channels != self.source.channels:
            raise UserError(f"vae.in_channels is {channels}, but the pictures have {self.source.channels}")
        if loss.adversarial > 0 and min(height, width) >> loss.discriminator_layers < 3:
            raise UserError(
                f"loss.discriminator_layers is {loss.discriminator_layers}: halved so often, pictures of "
                f"{width} x {height} are too small for the discriminator's last two convolutions"
            )
        adversary = PatchDiscriminator(channels, loss.discriminator_channels, loss.discriminator_layers)
        self.player = VAEPlayer(run, adversary, self._perceptual())
        self.players: dict[str, nn.Module] = {"vae": self.player}
        if loss.adversarial > 0:
            self.players["adversary"] = AdversaryPlayer(adversary, self.player)

    def _perceptual(self) -> nn.Module | None:
        path = self.run.loss.perceptual_path
        if path is None:
            return None
        from ldm.models.judge import DigitJudge

        judge: Any = DigitJudge.load(path)
        return judge.to(self.device, memory_format=layout(self.run.train)).eval().requires_grad_(False)

    def compile(self) -> None:
        self.player.vae.compile()

    def plays(self, player: str, step: int) -> bool:
        return player == "vae" or step >= self.run.loss.adversarial_start

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        assert isinstance(averaged, VAEPlayer)
        deviation, mean = self._measure(averaged.vae)
        config = averaged.vae.config.model_copy(update={"scaling_factor": 1 / deviation})
        averaged.vae.config = config
        folder.mkdir(parents=True, exist_ok=True)
        save_module(averaged.vae, folder / "vae")
        provenance = {**provenance, "latent_std": deviation, "latent_mean": mean, "logvar": averaged.logvar.item()}
        own = {"provenance": provenance}
        write_json(
            folder / "model_index.json", {"_class_name": "VAE", "vae": ["diffusers", "AutoencoderKL"], "_ldm": own}
        )

    @functools.cached_property
    def _measured(self) -> Tensor:
        """The pictures over which the latents' deviation is measured, uint8 (N, C, H, W): opened once."""
        return torch.stack([example.image for example in self.samples.first(self.run.scale_from)])

    @torch.no_grad()
    def _measure(self, vae: AutoencoderKL) -> tuple[float, float]:
        """Standard deviation and mean of sampled latents over the first pictures of the data."""
        generator = torch.Generator().manual_seed(self.run.seed)
        latents = []
        for images in self._measured.split(self.run.train.batch_size):
            moments = vae.encode(to_signed(images).to(self.device)).float().cpu()
            latents.append(sample_moments(moments, torch.randn(split_moments(moments)[0].shape, generator=generator)))
        joined = torch.cat(latents)
        return float(joined.std()), float(joined.mean())

    @torch.no_grad()
    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        """Pictures, each with its reconstruction below."""
        assert isinstance(averaged, VAEPlayer)
        examples = self.samples.first(40)[rank::processes]
        if not examples:
            return []
        found: list[Tensor] = []
        for part in torch.stack([example.image for example in examples]).split(self.run.train.batch_size):
            images = to_signed(part).to(self.device)
            rebuilt = averaged.vae.decode(split_moments(averaged.vae.encode(images))[0]).float().clamp(-1, 1)
            found += [torch.cat(pair, dim=1).cpu() for pair in zip(images, rebuilt, strict=True)]
        return found

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        save_grid(torch.stack(pictures), path, columns=10, scale=2)
        return {}
