"""Training a generative adversarial network: the hinge losses of ``ldm.models.discriminator``, of whole pictures.

The generator plays first, and the adversary then judges the very pictures that it drew; both learn at every step.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.data.samples import Batch, TrainingSamples
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.models.discriminator import PatchDiscriminator, generator_loss
from ldm.models.generator import Generator, draw_vectors
from ldm.training.adversary import AdversaryPlayer
from ldm.training.chance import VECTORS, normals
from ldm.training.gan_settings import GanRun
from ldm.training.run_source import source_of
from ldm.training.tasks import Borrowed, Losses
from ldm.weights.components import save_module
from ldm.weights.files import write_json


class GeneratorPlayer(nn.Module):
    """The generator.

    Attributes:
        seen: pictures of the data and of the generator, oldest first, that the adversary has yet to judge in this step.
    """

    def __init__(self, run: GanRun, adversary: PatchDiscriminator) -> None:
        super().__init__()
        self.generator = Generator(run.generator)
        self._seed = run.seed
        self._adversary = Borrowed(adversary)
        self.seen: deque[tuple[Tensor, Tensor]] = deque()

    def forward(self, batch: Batch, step: int) -> Losses:
        vectors = normals(batch.index, self._seed, VECTORS, self.generator.config.latent_dim)
        drawn = self.generator(vectors).float()
        self.seen.append((to_signed(batch.images), drawn.detach()))
        adversary = self._adversary.module
        # its weights are constants here: what fools it must not be added to the gradients that sharpen it
        adversary.requires_grad_(False)
        loss = generator_loss(adversary(drawn).float())
        adversary.requires_grad_(True)
        count = loss.new_full((), float(len(drawn)))
        return Losses(loss, {"loss": (loss.detach() * count, count)})


class GanTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: GanRun, device: torch.device) -> None:
        self.run, self.device = run, device
        source, shape = source_of(run), run.generator
        self.samples = TrainingSamples(source, run.seed, frame=run.frame, flip=run.flip, skip_bad=run.skip_bad)
        self._check(source.channels)
        adversary = PatchDiscriminator(shape.out_channels, run.discriminator.channels, run.discriminator.layers)
        self.player = GeneratorPlayer(run, adversary)
        self.players: dict[str, nn.Module] = {
            "generator": self.player,
            "adversary": AdversaryPlayer(adversary, self.player),
        }

    def _check(self, channels: int) -> None:
        shape, wanted = self.run.generator, self.samples.plan.shapes
        if shape.out_channels != channels:
            raise UserError(f"generator.out_channels is {shape.out_channels}, but the pictures have {channels}")
        if set(wanted) != {(shape.sample_size, shape.sample_size)}:
            height, width = next(size for size in wanted if size != (shape.sample_size, shape.sample_size))
            raise UserError(f"generator.sample_size is {shape.sample_size}, but pictures are {width} x {height}")
        if shape.sample_size >> self.run.discriminator.layers < 3:
            raise UserError(
                f"discriminator.layers is {self.run.discriminator.layers}: halved so often, pictures of "
                f"{shape.sample_size} x {shape.sample_size} are too small for its last two convolutions"
            )

    def compile(self) -> None:
        self.player.generator.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        assert isinstance(averaged, GeneratorPlayer)
        folder.mkdir(parents=True, exist_ok=True)
        save_module(averaged.generator, folder / "generator")
        parts = {"_class_name": "GAN", "generator": ["ldm", "Generator"], "_ldm": {"provenance": provenance}}
        write_json(folder / "model_index.json", parts)

    @torch.no_grad()
    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        assert isinstance(averaged, GeneratorPlayer)
        seeds = [self.run.seed + k for k in range(self.run.count)][rank::processes]
        if not seeds:
            return []
        vectors = draw_vectors(seeds, self.run.generator).to(self.device)
        return [*averaged.generator(vectors).float().cpu()]

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        save_grid(torch.stack(pictures), path, self.run.columns, scale=2)
        return {}
