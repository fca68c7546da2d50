"""The passes of a step of an autoencoder, with its adversary or without, of a GAN and of CLIP, to be run on paper.

All are those of training's own players, on a batch without numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ldm.cost.counting import Ledger
from ldm.cost.diffusion_step import Backward
from ldm.models.discriminator import PatchDiscriminator
from ldm.models.judge import DigitJudge
from ldm.training.adversary import AdversaryPlayer
from ldm.training.clip_settings import ClipRun
from ldm.training.clip_task import ClipPlayer
from ldm.training.gan_settings import GanRun
from ldm.training.gan_task import GeneratorPlayer
from ldm.training.settings import VAERun
from ldm.training.tasks import recompute_activations
from ldm.training.vae_task import VAEPlayer

_PERCEPTUAL = "perceptual network"


class VAEStep:
    """One micro-batch of an autoencoder.

    Args:
        run: its settings.
        side: height and width of a picture.
        half: dtype of autocast.
        adversarial: the adversary plays.
    """

    def __init__(self, run: VAERun, side: int, half: torch.dtype | None, adversarial: bool) -> None:
        self.batch, self.half = run.train.batch_size, half
        self._run, self._side, self._adversarial = run, side, adversarial
        path = run.loss.perceptual_path
        self._judge = None if path is None else DigitJudge.load(path).config

    @property
    def numbers(self) -> int:
        """Of a latent."""
        return self._run.vae.latent_channels * (self._side // self._run.vae.factor) ** 2

    shared: tuple[str, ...] = ()

    def build(self) -> dict[str, nn.Module]:
        """See :class:`ldm.cost.step.Step`."""
        loss, channels = self._run.loss, self._run.vae.in_channels
        adversary = PatchDiscriminator(channels, loss.discriminator_channels, loss.discriminator_layers)
        judge = None if self._judge is None else DigitJudge(self._judge).eval().requires_grad_(False)
        vae = VAEPlayer(self._run, adversary, judge).train()
        self._players: dict[str, nn.Module] = {"VAE": vae}
        if self._adversarial:
            self._players["adversary"] = AdversaryPlayer(adversary, vae).train()
        return self._players | ({} if judge is None else {_PERCEPTUAL: judge})

    def turns(self, ledger: Ledger) -> Iterator[list[Backward]]:
        """See :class:`ldm.cost.step.Step`."""
        config, latent = self._run.vae, self._side // self._run.vae.factor
        images = torch.empty(self.batch, config.in_channels, self._side, self._side, dtype=torch.uint8)
        noise = torch.empty(self.batch, config.latent_channels, latent, latent)
        batch: Any = SimpleNamespace(images=images, codec_noise=noise)
        step = self._run.loss.adversarial_start if self._adversarial else -1
        return _in_turn(self._players, batch, step, self.half, ledger)


class GanStep:
    """One micro-batch of a generator and its adversary."""

    def __init__(self, run: GanRun, half: torch.dtype | None) -> None:
        self.batch, self.half, self._run = run.train.batch_size, half, run

    @property
    def numbers(self) -> int:
        """Of the vector that a picture is made of."""
        return self._run.generator.latent_dim

    shared: tuple[str, ...] = ()

    def build(self) -> dict[str, nn.Module]:
        """See :class:`ldm.cost.step.Step`."""
        told = self._run.discriminator
        adversary = PatchDiscriminator(self._run.generator.out_channels, told.channels, told.layers)
        generator = GeneratorPlayer(self._run, adversary).train()
        self._players = {"generator": generator, "adversary": AdversaryPlayer(adversary, generator).train()}
        return {**self._players}

    def turns(self, ledger: Ledger) -> Iterator[list[Backward]]:
        """See :class:`ldm.cost.step.Step`."""
        shape = self._run.generator
        images = torch.empty(self.batch, shape.out_channels, shape.sample_size, shape.sample_size, dtype=torch.uint8)
        batch: Any = SimpleNamespace(images=images, index=torch.zeros(self.batch, dtype=torch.long))
        return _in_turn(self._players, batch, 0, self.half, ledger)


class ClipStep:
    """One micro-batch of CLIP, of pictures of ``side`` pixels and so many channels."""

    def __init__(self, run: ClipRun, side: int, channels: int, half: torch.dtype | None) -> None:
        self.batch, self.half = run.train.batch_size, half
        self._run, self._side, self._channels = run, side, channels

    @property
    def numbers(self) -> int:
        """Of the vector that a picture becomes."""
        return self._run.projection_dim

    shared: tuple[str, ...] = ()

    def build(self) -> dict[str, nn.Module]:
        """See :class:`ldm.cost.step.Step`."""
        from transformers import CLIPConfig, CLIPModel

        run = self._run
        image = {**run.image.model_dump(), "image_size": self._side, "num_channels": self._channels}
        last = run.text.vocab_size - 1
        text = {**run.text.model_dump(), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
        config = CLIPConfig(text_config=text, vision_config=image, projection_dim=run.projection_dim)
        clip = CLIPModel(config)
        if run.train.gradient_checkpointing:
            recompute_activations(clip)
        self._player = ClipPlayer(clip, self._tokens).train()
        return {"CLIP": self._player}

    def turns(self, ledger: Ledger) -> Iterator[list[Backward]]:
        """See :class:`ldm.cost.step.Step`."""
        images = torch.empty(self.batch, self._channels, self._side, self._side, dtype=torch.uint8)
        batch: Any = SimpleNamespace(images=images, captions=[])
        return _in_turn({"CLIP": self._player}, batch, 0, self.half, ledger)

    def _tokens(self, captions: list[str], **how: Any) -> Any:
        """In the place of a tokenizer: captions that fill the window."""
        ids = torch.zeros(self.batch, self._run.text.max_position_embeddings, dtype=torch.long)
        return SimpleNamespace(input_ids=ids)


def _in_turn(
    players: Mapping[str, nn.Module], batch: Any, step: int, half: torch.dtype | None, ledger: Ledger
) -> Iterator[list[Backward]]:
    """The players one after another, as ``ldm.training.trainer`` has them play."""
    for name, player in players.items():
        with torch.autocast("cpu", half, enabled=half is not None), ledger.of(name):
            loss = player(batch, step).loss
        yield [Backward(name, loss)]
