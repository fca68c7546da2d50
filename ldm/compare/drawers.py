"""Drawing pictures from seeds, whatever it is that draws.

A diffusion model walks from noise to a picture; a generator maps a vector to one; the decoder of an autoencoder maps a
latent that is drawn from the prior N(0, 1) (Kingma & Welling 2014), and gives the mean of its Gaussian, without noise.
Each picture depends on its own seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm.accel import pick_device, pick_dtype, prepare, tune_allocator
from ldm.codec import VAECodec
from ldm.compare.family_settings import FamilyDrawing
from ldm.drawing import Drawing
from ldm.flops import metered
from ldm.models.generator import Generator, draw_vectors
from ldm.recorded import load
from ldm.training.gan_settings import GanRun
from ldm.training.kinds import Run
from ldm.training.settings import VAERun
from ldm.weights.components import load_module
from ldm.weights.model import load_vae


class Drawer(Protocol):
    """What draws."""

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Pictures (N, C, H, W) float32 in -1..1, on the CPU, one for each seed."""
        ...

    def warm_up(self, count: int) -> None:
        """Have done what only a first call does, before so many pictures are drawn at once."""
        ...

    def together(self, count: int) -> int:
        """How many of so many pictures are drawn at once."""
        ...


class PipelineDrawer:
    """A diffusion model.

    Args:
        folder: of the model.
        how: the sampler and its steps; None is the model's own way.
    """

    def __init__(self, folder: Path, how: FamilyDrawing | None) -> None:
        self._pipeline = load(folder)
        self._how = {} if how is None else how.model_dump()

    def draw(self, seeds: Sequence[int]) -> Tensor:
        return self._pipeline.generate([None] * len(seeds), seeds, **self._how, batch_size=len(seeds))

    def warm_up(self, count: int) -> None:
        self._pipeline.generate([None] * count, range(count), **{**self._how, "steps": 1}, batch_size=count)

    def together(self, count: int) -> int:
        how = self._pipeline.settle(Drawing.checked({**self._how, "batch_size": count}))
        return len(self._pipeline.batches([None] * count, how)[0])


class GeneratorDrawer:
    """The generator of a GAN.

    Args:
        folder: that it was saved in.
    """

    def __init__(self, folder: Path) -> None:
        generator = load_module(folder / "generator")
        assert isinstance(generator, Generator)
        self._config = generator.config
        self._device, self._dtype = _place()
        self._generator = prepare(generator, device=self._device, dtype=self._dtype)

    @torch.inference_mode()
    def draw(self, seeds: Sequence[int]) -> Tensor:
        vectors = draw_vectors([*seeds], self._config).to(self._device, self._dtype)
        with metered(self._generator, z=vectors):
            return self._generator(vectors).float().cpu()

    def warm_up(self, count: int) -> None:
        self.draw(range(count))

    def together(self, count: int) -> int:
        return count


class PriorDrawer:
    """The decoder of an autoencoder, given latents of its prior.

    Args:
        folder: that it was saved in.
    """

    def __init__(self, folder: Path) -> None:
        vae = load_vae(folder)
        self._device, dtype = _place()
        side = vae.config.sample_size // vae.config.factor
        self._shape = (vae.config.latent_channels, side, side)
        prepared = prepare(vae, device=self._device, dtype=dtype)
        self._codec = VAECodec(prepared)  # pyright: ignore[reportArgumentType]

    @torch.inference_mode()
    def draw(self, seeds: Sequence[int]) -> Tensor:
        latents = torch.stack([torch.randn(self._shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
        return self._codec.decode(latents.to(self._device) * self._codec.scale).cpu()  # which takes scaled ones

    def warm_up(self, count: int) -> None:
        self.draw(range(count))

    def together(self, count: int) -> int:
        return count


def _place() -> tuple[torch.device, torch.dtype]:
    """Where and in what a pipeline would draw."""
    device = pick_device()
    tune_allocator()
    return device, pick_dtype(None, device)


def open_drawer(run: Run, folder: Path, how: FamilyDrawing | None) -> Drawer:
    """What a finished run draws with: the average of its weights.

    Args:
        run: its settings.
        folder: the model that it left.
        how: for a diffusion model.

    Raises:
        UserError: there is no such model, or it does not draw.
    """
    if isinstance(run, GanRun):
        return GeneratorDrawer(folder)
    return PriorDrawer(folder) if isinstance(run, VAERun) else PipelineDrawer(folder, how)
