"""The rows of a comparison of families as runs of ``ldm train``, and what they take on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.compare.counted import asks_of
from ldm.compare.family_settings import FamilyComparison, FamilyRow
from ldm.compare.material import Material
from ldm.compare.settings import DrawingConfig
from ldm.compare.stages import Found
from ldm.config import load_config
from ldm.cost.architecture import Architecture
from ldm.cost.diffusion_step import DiffusionStep
from ldm.cost.drawing import count_drawing
from ldm.cost.inventory import Decoding, networks_of
from ldm.cost.of_run import HALF, steps_of
from ldm.cost.step import Step, count_step
from ldm.data.sources import open_source
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import IdleError, UserError
from ldm.flops import count_flops
from ldm.models.discriminator import PatchDiscriminator
from ldm.models.generator import Generator
from ldm.models.vae import AutoencoderKL
from ldm.training.gan_settings import GanRun
from ldm.training.kinds import Run
from ldm.training.lcm_settings import LcmRun
from ldm.training.settings import DiffusionRun, NoConditionConfig, VAECodecConfig, VAERun

Trained = VAERun | GanRun | DiffusionRun | LcmRun


@dataclass(frozen=True)
class Training:
    """One configuration of a row.

    Attributes:
        path: of the file.
        run: what it says.
        base: what the run begins from: an autoencoder to diffuse in the latents of, or a teacher.
    """

    path: Path
    run: Trained
    base: Training | None

    @property
    def title(self) -> str:
        """For people."""
        return self.path.stem

    def at(self, output: Path, seed: int, data: Any, base: Path | None) -> Trained:
        """The run in another place.

        Args:
            output: its folder.
            seed: of it.
            data: what it learns from.
            base: the folder of what it begins from.
        """
        changes: dict[str, Any] = {"output": output, "seed": seed, "data": data}
        if isinstance(self.run, LcmRun):
            changes["teacher"] = str(base)
        elif base is not None:
            changes["codec"] = VAECodecConfig(kind="vae", path=base)
        return self.run.model_copy(update=changes)

    @property
    def line(self) -> tuple[Training, ...]:
        """All that it comes from, and itself, in order."""
        return (*(() if self.base is None else self.base.line), self)


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        config: what the comparison says.
        training: the last of its trainings, which draws.
        side: height and width of pictures.
        pictures: that it learns from.
    """

    config: FamilyRow
    training: Training
    side: int
    pictures: int

    @property
    def name(self) -> str:
        """For people."""
        return self.config.name

    def counted(self) -> Found:
        """What it takes on paper.

        Returns:
            ``parameters`` in all of its networks (``all``), and in those that draw (``drawing``); operations of all of
            its trainings (``training``) and of a picture (``picture``); and how often a network is asked for one
            (``asks``).
        """
        whole, drawing = self.parameters()
        training = sum(_training_flops(each, self.side, self.pictures) for each in self.training.line)
        asks = self._asks()
        found = {"parameters": {"all": whole, "drawing": drawing}, "training": training}
        return {**found, "picture": self._picture(asks), "asks": asks}

    def parameters(self) -> tuple[int, int]:
        """Of all of its networks, and of those that draw; a student has its teacher's, in whose place it is."""
        run = self.training.run
        with torch.device("meta"):
            if isinstance(run, GanRun):
                told, generator = run.discriminator, _numbers(Generator(run.generator))
                adversary = PatchDiscriminator(run.generator.out_channels, told.channels, told.layers)
                return generator + _numbers(adversary), generator
            if isinstance(run, VAERun):
                return _numbers(AutoencoderKL(run.vae)), _numbers(Decoding(run.vae))
            shape = shape_of(self.training)
            net = _numbers(shape.build_net())
            if shape.vae is None:
                return net, net
            return net + _numbers(AutoencoderKL(shape.vae)), net + _numbers(Decoding(shape.vae))

    def _asks(self) -> int:
        draw = self.config.draw
        if draw is None:
            return 1
        teacher = _teacher(self.training)
        how = DrawingConfig(sampler=draw.sampler, steps=draw.steps)
        return asks_of(how, teacher.process or ProcessConfig(), teacher.prediction or "epsilon")

    def _picture(self, asks: int) -> int:
        """Operations of a picture."""
        run = self.training.run
        if isinstance(run, GanRun):
            z = torch.empty(1, run.generator.latent_dim)
            return count_flops(lambda: Generator(run.generator), lambda net, x: net(x), [z])
        if isinstance(run, VAERun):
            small = self.side // run.vae.factor
            z = torch.empty(1, run.vae.latent_channels, small, small)
            return count_flops(lambda: Decoding(run.vae), lambda net, x: net(x), [z])
        return sum(count_drawing(shape_of(self.training), self.side, asks=asks).values())


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ------------------------------------------------------------------------------------ counting


def shape_of(training: Training) -> Architecture:
    """The networks of a diffusion model; a student's are its teacher's."""
    run = _teacher(training)
    net = run.unet or run.toy
    assert net is not None
    base = training.base if training.run is run else training.base and training.base.base
    return Architecture(net, base.run.vae if base is not None and isinstance(base.run, VAERun) else None)


def _teacher(training: Training) -> DiffusionRun:
    """The run itself, or that of its teacher."""
    run = training.run if training.base is None or not isinstance(training.run, LcmRun) else training.base.run
    assert isinstance(run, DiffusionRun)
    return run


def _training_flops(training: Training, side: int, pictures: int) -> int:
    """Operations of all steps, and of filling the cache of latents where there is one."""
    run = training.run
    settings, once = run.train, 0
    if isinstance(run, VAERun | GanRun):
        steps: list[tuple[int, Step]] = steps_of(run)
    else:
        shape = shape_of(training)
        if run.cache is not None and shape.vae is not None:
            once = pictures * networks_of(shape, side)["VAE encoder"].flops
        step = DiffusionStep(
            shape,
            settings.batch_size,
            side,
            half=HALF[settings.mixed_precision],
            checkpointing=settings.gradient_checkpointing,
            encodes=run.cache is None,
            asked=int(isinstance(run, LcmRun)),
        )
        steps = [(settings.steps, step)]
    return once + sum(settings.gradient_accumulation * count * count_step(step).flops for count, step in steps)


# ------------------------------------------------------------------------------------- reading


def rows_of(told: FamilyComparison, material: Material) -> list[Row]:
    """All rows.

    Raises:
        UserError: a configuration cannot be read, is of another kind, or does not begin from those before it.
    """
    pictures = len(open_source(material.train))
    return [Row(config, _last(config, material.side), material.side, pictures) for config in told.rows]


def _last(row: FamilyRow, side: int) -> Training:
    """The last training of a row, which begins from those before it."""
    known: dict[Path, Training] = {}
    for path in row.train:
        run = load_config(path)
        at = f"{row.name}: {path}"
        training = Training(path, _checked(run, at, side), _base(run, known, at))
        known[run.output] = training
    line = training.line
    if len(line) < len(row.train):
        idle = next(path for path in row.train if path not in [each.path for each in line])
        raise UserError(f"{row.name}: {row.train[-1]} does not begin from {idle}: leave it out")
    diffuses = isinstance(training.run, DiffusionRun | LcmRun)
    if diffuses and row.draw is None:
        raise UserError(f"{row.name}: `draw` says with which sampler and how many steps a diffusion model draws")
    if row.draw is not None and not diffuses:
        raise IdleError("draw", f"{row.name}: `draw` is of diffusion models, and {row.train[-1]} trains none")
    return training


def _base(run: Run, known: Mapping[Path, Training], at: str) -> Training | None:
    """What a run begins from, by the folder that it names."""
    if isinstance(run, LcmRun):
        key, place = "teacher", Path(run.teacher)
    elif isinstance(run, DiffusionRun) and isinstance(run.codec, VAECodecConfig):
        key, place = "codec.path", run.codec.path
    else:
        return None
    if place not in known:
        told = f"{at}: {key} is {place}, which is the `output` of no configuration before it in the row"
        raise UserError(told + (f" ({', '.join(map(str, known))})" if known else ""))
    return known[place]


def _checked(run: Run, at: str, side: int) -> Trained:
    """Refuse what the families do not have in common."""
    if not isinstance(run, Trained):
        raise UserError(f"{at}: task {run.task} makes no pictures")
    if isinstance(run, DiffusionRun):
        if run.model is not None:
            raise UserError(f"{at}: it begins with a finished model, and all rows begin with first weights")
        if run.condition is not None and not isinstance(run.condition, NoConditionConfig):
            raise UserError(f"{at}: condition.kind is {run.condition.kind}; families are compared without conditions")
    shape = run.vae if isinstance(run, VAERun) else run.generator if isinstance(run, GanRun) else None
    own = side if shape is None else shape.sample_size
    if own != side:
        raise UserError(f"{at}: sample_size is {own}, but the pictures are {side} x {side}")
    return run
