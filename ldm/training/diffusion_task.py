"""Training a denoiser, from first weights or from a finished model; ``diffusion_player`` has the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.codec import VAECodec
from ldm.conditioner import Condition
from ldm.data.example import Source
from ldm.data.framing import Frame
from ldm.data.samples import TrainingSamples
from ldm.data.sources import open_source
from ldm.diffusion.context import Context
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.models.unet import UNet
from ldm.pipeline import NOTHING
from ldm.text_conditioner import TextConditioner
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.drawn import draw_pictures, share_of, to_fill
from ldm.training.prior import class_pictures, with_prior
from ldm.training.settings import DiffusionRun, VAECodecConfig
from ldm.training.start import FROZEN, condition_of, start_of
from ldm.training.textual_inversion import check_captions
from ldm.training.tune_settings import InversionTune
from ldm.training.tuning import tuning_of
from ldm.weights.model import Model

_CAPTIONS_LOOKED_AT = 100


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
        start = start_of(run, source)
        self.base = model = start.model
        model.defaults = {**model.defaults, **_said(run)}
        self._place(model)
        if run.prior is not None:
            source = with_prior(source, self._prior(model))
        cache = isinstance(run.codec, VAECodecConfig) and run.codec.cache
        if cache and run.flip:
            raise UserError("codec.cache keeps one encoding per picture, so flip must be false")
        self.samples = TrainingSamples(
            source,
            run.seed,
            frame=run.frame,
            captions=run.captions,
            condition=condition_of(model.conditioner),
            drop=getattr(run.condition, "drop", 0.0),
            flip=run.flip,
            process=model.process.build(),
            space=(model.codec.channels, model.codec.factor),
            kept=_Encoded(self._encode_all(source), source) if cache else None,
        )
        self._check_samples()
        model.size = self.samples.size
        self.tuning = tuning_of(run, start)
        if isinstance(model.net, UNet):
            model.net.gradient_checkpointing = run.train.gradient_checkpointing
        self.player = DiffusionPlayer(model, run, self.tuning.encoders())
        self.players: dict[str, nn.Module] = {"net": self.player}

    def _place(self, model: Model) -> None:
        """Bring what is not trained to the device; autocast takes care of its speed where it stays in float32."""
        dtype = FROZEN[self.run.frozen_dtype]
        if isinstance(model.codec, VAECodec):
            model.codec.vae.to(self.device, dtype)
        if isinstance(model.conditioner, TextConditioner):
            for tower in model.conditioner.towers:
                tower.encoder.to(self.device, dtype)

    def _check_samples(self) -> None:
        run, samples = self.run, self.samples
        if run.prior is not None and len(samples.plan.shapes) > 1:
            raise UserError("prior needs pictures of one shape, so that each step has both kinds: frame.buckets false")
        if isinstance(run.tune, InversionTune):
            numbers = range(min(_CAPTIONS_LOOKED_AT, len(samples.source)))
            check_captions(run.tune.token, [samples[n]["captions"] for n in numbers])

    def _prior(self, model: Model) -> Source:
        prior = self.run.prior
        assert prior is not None
        if prior.data is not None:
            return open_source(prior.data)
        assert prior.generate is not None
        model.net.to(self.device).float()
        told = {"model": self.run.model, **model.defaults}
        return class_pictures(self.run.output / "prior", model, self.device, prior.generate, told)

    def _encode_all(self, source: Source) -> Tensor:
        """What the codec gives for every picture, (N, ...) float32, on the CPU."""
        parts, size = [], 256
        for first in tqdm(range(0, len(source), size), desc="encoding", unit="batch", disable=None):
            rows = [source.read(i).image for i in range(first, min(first + size, len(source)))]
            parts.append(self.base.codec.encode(to_signed(torch.stack(rows)).to(self.device)).cpu())
        return torch.cat(parts)

    def compile(self) -> None:
        self.player.net.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    def pace(self, player: str, parameter: str) -> float:
        """What ``train.learning_rate`` is multiplied by; see :class:`ldm.training.tasks.Paced`."""
        own = getattr(self.run.tune, "text_learning_rate", None)
        return own / self.run.train.learning_rate if own is not None and parameter.startswith("encoders.") else 1.0

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        assert isinstance(averaged, DiffusionPlayer)
        config = {key: value for key, value in provenance["config"].items() if key not in ("model", "loading", "prior")}
        self.tuning.save(folder, averaged, {**provenance, "config": config})

    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        sample = self.run.sample
        numbers = share_of(sample.count, rank, processes)
        wanted: list[Condition] = [
            sample.conditions[k % len(sample.conditions)] if sample.conditions else None for k in numbers
        ]
        return self._drawn(averaged, wanted, [self.run.seed + k for k in numbers], numbers)

    def _drawn(
        self, averaged: nn.Module, wanted: list[Condition], seeds: list[int], numbers: list[int]
    ) -> list[Tensor]:
        assert isinstance(averaged, DiffusionPlayer)
        if not numbers:
            return []
        model = averaged.model(self.base, {})
        inputs = to_fill(self.samples, numbers, self.run.seed, self.run.masks) if model.inpaints else NOTHING
        half = None if self.run.frozen_dtype == "fp32" else FROZEN[self.run.frozen_dtype]
        return draw_pictures(model, self.device, wanted, seeds, inputs, half)

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        save_grid(torch.stack(pictures), path, self.run.sample.columns, scale=2)
        return {}


def _said(run: DiffusionRun) -> dict[str, Any]:
    """How a run says that its model likes to be drawn with."""
    sample = run.sample
    said = {"sampler": sample.sampler, "steps": sample.steps, "guidance": sample.guidance}
    if run.model is not None and sample.sampler is not None and sample.steps is None:
        raise UserError("sample.sampler beside a finished model needs sample.steps too: the model's own are of another")
    return {key: value for key, value in said.items() if value is not None}
