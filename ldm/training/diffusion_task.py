"""Training a denoiser, from first weights or from a finished model; ``diffusion_player`` has the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.codec import Codec
from ldm.conditioner import Condition, LabelConditioner
from ldm.images import save_grid, save_image
from ldm.models.unet import UNet
from ldm.pipeline import NOTHING
from ldm.sheet import labelled_sheet
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.drawn import captions_of, draw_pictures, enlarged, share_of, to_fill
from ldm.training.material import material_of, place
from ldm.training.memorised import Memory
from ldm.training.prior import is_of_class
from ldm.training.settings import DiffusionRun
from ldm.training.start import FROZEN
from ldm.training.tasks import recompute_activations
from ldm.training.tune_settings import ValidationConfig
from ldm.training.tuning import tuning_of


class DiffusionTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: DiffusionRun, device: torch.device) -> None:
        self.run, self.device = run, device
        material = material_of(run, device)
        self._start, self.samples, self._held_out = material.start, material.samples, material.held_out
        self.base = model = material.start.model
        model.size = self.samples.size
        self._cached = self.samples.kept is not None
        self._half = None if run.frozen_dtype == "fp32" else FROZEN[run.frozen_dtype]
        self.tuning = tuning_of(run, material.start)
        encoders: list[Any] = self.tuning.encoders()
        if run.train.gradient_checkpointing:
            for encoder in encoders:
                recompute_activations(encoder)
        if isinstance(model.net, UNet):
            model.net.gradient_checkpointing = run.train.gradient_checkpointing
        self.player = DiffusionPlayer(model, run, encoders)
        self.players: dict[str, nn.Module] = {"net": self.player}
        self._memory: Memory | None = None

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
        self.tuning.save(folder, averaged, provenance)

    # ---------------------------------------------------------------- pictures

    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        numbers, conditions = share_of(self.run.sample.count, rank, processes), self._conditions()
        wanted = [conditions[k % len(conditions)] for k in numbers]
        return self._drawn(averaged, wanted, [self.run.seed + k for k in numbers], numbers)

    def _conditions(self) -> Sequence[Condition]:
        """What the samples show: what the run says, or what the first pictures of fine-tuning show."""
        if self.run.sample.conditions:
            return self.run.sample.conditions
        if self.run.model is None:
            return [None]
        return captions_of(self.samples, self.run.sample.count) or [None]

    def _drawn(
        self, averaged: nn.Module, wanted: list[Condition], seeds: list[int], numbers: list[int]
    ) -> list[Tensor]:
        assert isinstance(averaged, DiffusionPlayer)
        if not numbers:
            return []
        model = averaged.model(self.base, {})
        if self._cached:
            codec, conditioner = self._start.parts()  # for as long as somebody draws
            own = averaged.encoders or isinstance(conditioner, LabelConditioner)
            place(self.run, self.device, codec, None if own else conditioner)
            model = replace(model, codec=codec, conditioner=model.conditioner if own else conditioner)
        inputs = to_fill(self.samples, numbers, self.run.seed, self.run.masks) if model.inpaints else NOTHING
        return draw_pictures(model, self.device, wanted, seeds, inputs, self._half)

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        told = {}
        if self.run.memorised is not None:
            if self._memory is None:
                self._memory = Memory(self.samples, self.run.memorised, self._encoder, is_of_class)
            told = self._memory.report(pictures, path.with_name(f"{path.stem}_nearest.png"))
        # last, as it tells that all was done
        save_grid(torch.stack(pictures), path, self.run.sample.columns, scale=2)
        return told

    def _encoder(self) -> Codec:
        """The codec on its device."""
        if not self._cached:
            return self.base.codec
        codec, _ = self._start.parts()
        place(self.run, self.device, codec)
        return codec

    # -------------------------------------------------------------- validation

    def validation(self, averaged: nn.Module, rank: int, processes: int) -> dict[str, tuple[float, float]]:
        """See :class:`ldm.training.tasks.Validated`."""
        assert isinstance(averaged, DiffusionPlayer)
        if self._held_out is None:
            return {}
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.run.train.mixed_precision)
        return self._held_out.measure(averaged, self.device, rank, processes, half)

    def draw_validation(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        """See :class:`ldm.training.tasks.Validated`."""
        config = self._validation
        numbers = share_of(len(config.prompts) * config.pictures, rank, processes)
        wanted: list[Condition] = [config.prompts[k // config.pictures] for k in numbers]
        return self._drawn(averaged, wanted, [config.seed + k % config.pictures for k in numbers], numbers)

    def write_validation(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        """See :class:`ldm.training.tasks.Validated`."""
        config = self._validation
        images = [enlarged(picture) for picture in pictures]
        seeds = [f"seed {config.seed + k}" for k in range(config.pictures)]
        prompts = [str(prompt) for prompt in config.prompts]
        save_image(labelled_sheet(images, config.pictures, seeds, prompts), path)
        return {}

    @property
    def _validation(self) -> ValidationConfig:
        assert self.run.validation is not None
        return self.run.validation
