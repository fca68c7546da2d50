"""Training a denoiser, in pixels or in latents: the codec is all that differs.

batch -> codec.latents(codec.encode(images)) -> conditioner(conditions, some dropped) -> denoiser.loss
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.codec import Codec, PixelCodec, VAECodec
from ldm.conditioner import Conditioner, LabelConditioner, NoConditioner
from ldm.data.example import Source
from ldm.data.framing import Frame
from ldm.data.samples import Batch, TrainingSamples
from ldm.data.sources import open_source
from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.models.toy import ToyUNet
from ldm.models.unet import UNet
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner
from ldm.training.settings import DiffusionRun, LabelConditionConfig, TextConditionConfig, VAECodecConfig
from ldm.training.tasks import Borrowed, Losses, mean_of
from ldm.weights.components import load_tower
from ldm.weights.model import Model, load_vae, resolve, save_model


class DiffusionPlayer(nn.Module):
    """The network, with the label tokens that are learned beside it."""

    def __init__(
        self, net: nn.Module, run: DiffusionRun, codec: Codec, conditioner: Conditioner, images_are_encoded: bool
    ) -> None:
        super().__init__()
        self.net = net
        # A learned conditioner is trained along and so is a submodule; a frozen one must not be.
        self.label_encoder = conditioner if isinstance(conditioner, LabelConditioner) else None
        self._conditioner, self._codec = Borrowed(conditioner), Borrowed(codec)
        self._images_are_encoded = images_are_encoded
        self._process = run.process.build()
        self._run = run

    @property
    def conditioner(self) -> Conditioner:
        return self.label_encoder if self.label_encoder is not None else self._conditioner.module

    def forward(self, batch: Batch, step: int) -> Losses:
        codec, process = self._codec.module, self._process
        encoded = batch.images if self._images_are_encoded else codec.encode(to_signed(batch.images))
        x0 = codec.latents(encoded.float(), batch.codec_noise)
        t = process.draw_times(batch.uniform)
        context = self.conditioner.encode(batch.conditions)
        context = context and context.to(x0.device)
        denoiser = Denoiser(self.net, process, self._run.prediction)
        losses = denoiser.loss(x0, t, batch.noise, context, self._run.snr_gamma)
        return Losses(losses.mean(), {"loss": mean_of(losses), **self._by_quarter(losses, t)})

    def _by_quarter(self, losses: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss by quarter of t: its size differs by orders of magnitude along the way."""
        quarter = (t.float() * (4 / self._process.num_train_timesteps)).long().clamp(max=3)
        return {f"loss_q{i + 1}": mean_of(losses, quarter == i) for i in range(4)}


class _Encoded:
    """The moments of every picture, in memory."""

    crops, texts = 1, False

    def __init__(self, moments: Tensor, source: Source) -> None:
        self._moments, self._source = moments, source

    def moments(self, part: int, index: int, crop: int, mirrored: bool) -> tuple[Tensor, Frame]:
        assert self._source.sizes is not None
        height, width = self._source.sizes[index].tolist()
        return self._moments[index], Frame((height, width), 0, 0, height, width, False)

    def context(self, caption: str | None) -> Context:
        raise NotImplementedError("texts are not kept")


class DiffusionTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = run, device
        source = open_source(run.data)
        self.codec = self._build_codec(source)
        conditioner = self._build_conditioner(source)
        cache = isinstance(run.codec, VAECodecConfig) and run.codec.cache
        if cache and run.flip:
            raise UserError("codec.cache keeps one encoding per picture, so flip must be false")
        condition = run.condition
        self.samples = TrainingSamples(
            source,
            run.seed,
            frame=run.frame,
            captions=run.captions,
            condition=condition.kind,
            drop=getattr(condition, "drop", 0.0),
            flip=run.flip,
            process=run.process.build(),
            space=(self.codec.channels, self.codec.factor),
            kept=_Encoded(self._encode_all(source), source) if cache else None,
        )
        self.size = self.samples.size
        self.player = DiffusionPlayer(self._build_net(conditioner), run, self.codec, conditioner, cache)
        self.players = {"net": self.player}

    def _build_codec(self, source: Source) -> Codec:
        if not isinstance(self.run.codec, VAECodecConfig):
            return PixelCodec(source.channels)
        vae = load_vae(resolve(self.run.codec.path))
        if vae.config.in_channels != source.channels:
            raise UserError(f"the VAE reads {vae.config.in_channels} channels, the pictures have {source.channels}")
        # A model that was exported in half precision has such parts too; autocast takes care of speed.
        return VAECodec(vae.to(self.device, torch.float32))

    def _build_conditioner(self, source: Source) -> Conditioner:
        condition = self.run.condition
        if isinstance(condition, LabelConditionConfig):
            if source.num_classes is None or source.num_classes > condition.classes:
                raise UserError(f"condition.classes is {condition.classes}, but {source.name} has {source.num_classes}")
            width = self.run.unet.cross_attention_dim if self.run.unet else None
            if width is None:
                raise UserError("condition.kind = label needs unet.cross_attention_dim, the width of its token")
            return LabelConditioner(condition.classes, width)
        if isinstance(condition, TextConditionConfig):
            if not source.captioned:
                raise UserError(f"condition.kind = text needs captions, and {source.name} has none: set data.captions")
            tower = load_tower(resolve(condition.path))
            tower.encoder.to(self.device, torch.float32)
            return TextConditioner(tower)
        return NoConditioner()

    def _build_net(self, conditioner: Conditioner) -> nn.Module:
        run = self.run
        if run.toy is not None:
            found, net = run.toy.in_channels, ToyUNet
            module: nn.Module = net(run.toy)
        else:
            assert run.unet is not None
            found, module = run.unet.in_channels, UNet(run.unet)
            module.gradient_checkpointing = run.train.gradient_checkpointing
            reads = run.unet.cross_attention_dim
            if isinstance(conditioner, TextConditioner) and conditioner.width != reads:
                raise UserError(f"unet.cross_attention_dim is {reads}, but the text encoder gives {conditioner.width}")
        if found != self.codec.channels:
            raise UserError(f"the network reads {found} channels, but the codec gives {self.codec.channels}")
        return module

    def _encode_all(self, source: Source) -> Tensor:
        """What the codec gives for every picture, (N, ...) float32, on the CPU."""
        parts, size = [], 256
        for first in tqdm(range(0, len(source), size), desc="encoding", unit="batch", disable=None):
            rows = [source.read(i).image for i in range(first, min(first + size, len(source)))]
            parts.append(self.codec.encode(to_signed(torch.stack(rows)).to(self.device)).cpu())
        return torch.cat(parts)

    def compile(self) -> None:
        self.player.net.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    def _model(self, averaged: nn.Module, provenance: dict[str, Any]) -> Model:
        assert isinstance(averaged, DiffusionPlayer)
        sample, conditioner = self.run.sample, averaged.conditioner
        if isinstance(conditioner, TextConditioner):
            # Apart from training's, which remembers contexts as autocast computed them.
            conditioner = TextConditioner(*conditioner.towers)
        return Model(
            net=averaged.net,
            process=self.run.process,
            prediction=self.run.prediction,
            codec=self.codec,
            conditioner=conditioner,
            size=self.size,
            defaults={"sampler": sample.sampler, "steps": sample.steps, "guidance": sample.guidance},
            provenance=provenance,
        )

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        save_model(self._model(averaged, provenance), folder)

    def draw(self, averaged: nn.Module, path: Path, seed: int) -> None:
        sample = self.run.sample
        pipeline = Pipeline(self._model(averaged, {}), self.device, torch.float32)
        wanted = [
            sample.conditions[i % len(sample.conditions)] if sample.conditions else None for i in range(sample.count)
        ]
        pictures = pipeline.generate(wanted, [seed + i for i in range(sample.count)], batch_size=sample.count)
        save_grid(pictures, path, sample.columns, scale=2)
