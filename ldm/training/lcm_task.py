"""Distilling a model to one that draws in four steps (LCM); the theory is in ``ldm.diffusion.consistency``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.batch import follows_scale
from ldm.codec import VAECodec
from ldm.conditioner import LabelConditioner, NoConditioner
from ldm.data.example import Source
from ldm.data.samples import Batch, TrainingSamples
from ldm.data.sources import open_source
from ldm.diffusion.consistency import TIMESTEP_SCALING, Consistency, Ladder, pseudo_huber
from ldm.diffusion.context import Context
from ldm.diffusion.process import DiscreteProcess, Process
from ldm.errors import UserError
from ldm.images import save_grid, to_signed
from ldm.models.unet import UNet
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner
from ldm.training.lcm_settings import EMBEDDED, Guidance, LcmRun
from ldm.training.tasks import Borrowed, Losses, mean_of
from ldm.weights.files import read_json, write_json
from ldm.weights.hub import looks_like_name
from ldm.weights.model import Model, save_model
from ldm.weights.opening import Loading, open_model
from ldm.weights.parts import INDEX, SCHEDULER_CONFIG


class StudentPlayer(nn.Module):
    """The network that learns to jump.

    Args:
        net: the student.
        teacher: a model whose network stays as it is.
        run: of the distillation.
        guidance: the teacher's scale; two numbers are told to the student.
    """

    def __init__(self, net: nn.Module, teacher: Model, run: LcmRun, guidance: Guidance) -> None:
        super().__init__()
        self.net = net
        self._teacher, self._guidance, self._huber_c = Borrowed(teacher), guidance, run.huber_c
        self._target = Borrowed(self)
        self._process = _chain(teacher.process.build())
        self._ladder = Ladder(self._process, run.solver_steps)

    def follow(self, averaged: nn.Module) -> None:
        """Learn from this copy of the player, whose weights are a moving average of its own."""
        self._target.module = averaged

    def forward(self, batch: Batch, step: int) -> Losses:
        model: Model = self._teacher.module
        x0 = self._clean(batch)
        t, s, place = self._ladder.draw(batch.uniform)
        scale = self._scales(place)
        context, without = self._contexts(batch)
        told = context._replace(guidance=scale - 1) if isinstance(self._guidance, tuple) else context
        x_t = self._process.add_noise(x0, batch.noise, t)
        with torch.no_grad():
            x_s = self._function(model.net, model.codec.bounds).ddim(x_t, t, s, context, without, scale)
            wanted = self._function(self._target.module.net, model.codec.bounds)(x_s, s, told)
        found = self._function(self.net)(x_t, t, told)
        losses = pseudo_huber(found - wanted, self._huber_c)
        return Losses(losses.mean(), {"loss": mean_of(losses), **self._by_quarter(losses, t)})

    def _function(self, net: nn.Module, clip: float | None = None) -> Consistency:
        return Consistency(net, self._process, self._teacher.module.prediction, clip)

    def _clean(self, batch: Batch) -> Tensor:
        codec = self._teacher.module.codec
        encoded = batch.images if batch.images.is_floating_point() else codec.encode(to_signed(batch.images))
        return codec.latents(encoded.float(), batch.codec_noise)

    def _scales(self, place: Tensor) -> Tensor:
        """The guidance of each sample (B,) from uniform numbers (B,)."""
        if isinstance(self._guidance, tuple):
            low, high = self._guidance
            return low + (high - low) * place
        return torch.full_like(place, self._guidance)

    def _contexts(self, batch: Batch) -> tuple[Context, Context | None]:
        """That of the samples, and that of no condition where the teacher is guided."""
        conditioner, count, device = self._teacher.module.conditioner, len(batch.images), batch.images.device
        if isinstance(conditioner, NoConditioner):
            return Context(), None
        if batch.context is None:
            both = conditioner.encode([*batch.conditions, None])
            context, without = both.rows(0, count), both.rows(count, count + 1)
        else:
            context, without = batch.context, self._nothing(batch.context)
        if context.pooled is not None:
            sizes = batch.sizes()
            context, without = context._replace(sizes=sizes), without._replace(sizes=sizes[:1])
        guided = self._guidance != 1
        return context.to(device), without.repeat(count).to(device) if guided else None

    def _nothing(self, like: Context) -> Context:
        """The context of no condition, batch size 1, with as many windows as ``like``."""
        found = self._teacher.module.conditioner.encode([None])
        assert like.tokens is not None
        return found._replace(tokens=found.tokens.repeat(1, like.tokens.shape[1] // found.tokens.shape[1], 1))

    def _by_quarter(self, losses: Tensor, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        quarter = (t.float() * (4 / self._process.num_train_timesteps)).long()
        return {f"loss_q{i + 1}": mean_of(losses, quarter == i) for i in range(4)}


class LcmTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: LcmRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self.teacher = _open_teacher(run, device)
        self.guidance = _guidance_of(run, self.teacher)
        source = open_source(run.data)
        self.samples = TrainingSamples(
            source,
            run.seed,
            frame=run.frame,
            captions=run.captions,
            condition=_condition_of(self.teacher, source),
            flip=run.flip,
            process=self.teacher.process.build(),
            space=(self.teacher.codec.channels, self.teacher.codec.factor),
        )
        self.size = self.samples.size
        self.player = StudentPlayer(self._student(), self.teacher, run, self.guidance)
        self.players = {"net": self.player}

    def _student(self) -> nn.Module:
        """A copy of the teacher, which is told its guidance where that varies."""
        net = self.teacher.net
        if not isinstance(net, UNet) or not isinstance(self.guidance, tuple):
            return copy.deepcopy(net).requires_grad_(True).train()
        student = UNet(net.config.model_copy(update={"time_cond_proj_dim": self.run.guidance_waves}))
        missing, _ = student.load_state_dict(net.state_dict(), strict=False)
        (name,) = missing
        nn.init.zeros_(student.get_parameter(name))  # it begins as the teacher, whatever it is told
        student.gradient_checkpointing = self.run.train.gradient_checkpointing
        return student

    def follow(self, averaged: nn.Module) -> None:
        """The moving average that the trainer keeps is the target network."""
        self.player.follow(averaged)

    def compile(self) -> None:
        self.player.net.compile()
        self.teacher.net.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    def _model(self, averaged: nn.Module, provenance: dict[str, Any]) -> Model:
        assert isinstance(averaged, StudentPlayer)
        teacher, conditioner = self.teacher, self.teacher.conditioner
        if isinstance(conditioner, TextConditioner):
            # Apart from training's, which remembers contexts as autocast computed them.
            conditioner = TextConditioner(*conditioner.towers, zero_for_none=conditioner.zero_for_none)
        return Model(
            net=averaged.net,
            process=teacher.process,
            prediction=teacher.prediction,
            codec=teacher.codec,
            conditioner=conditioner,
            size=self.size,
            defaults={"sampler": "lcm", "steps": self.run.sample.steps, "guidance": self._usual_guidance()},
            provenance=provenance,
        )

    def _usual_guidance(self) -> float:
        """What the student is told by default; 1 where it is told nothing."""
        if not isinstance(self.guidance, tuple):
            return 1.0
        asked, (low, high) = self.run.sample.guidance, self.guidance
        return asked if asked is not None else min(high, max(low, float(self.teacher.defaults.get("guidance", low))))

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        model = self._model(averaged, _without_teacher(provenance))
        save_model(model, folder)
        scheduler = {**model.process.to_diffusers(model.prediction, clip=model.codec.bounds is not None), **_SCHEDULER}
        write_json(folder / "scheduler" / SCHEDULER_CONFIG, scheduler)
        index = read_json(folder / INDEX)
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        if isinstance(self.guidance, tuple) and index["_class_name"] == "StableDiffusionPipeline":
            index["_class_name"] = "LatentConsistencyModelPipeline"
        write_json(folder / INDEX, index)

    def draw(self, averaged: nn.Module, path: Path, seed: int) -> None:
        sample = self.run.sample
        pipeline = Pipeline(self._model(averaged, {}), self.device, torch.float32)
        wanted = [
            sample.conditions[i % len(sample.conditions)] if sample.conditions else None for i in range(sample.count)
        ]
        pictures = pipeline.generate(wanted, [seed + i for i in range(sample.count)], batch_size=sample.count)
        save_grid(pictures, path, sample.columns, scale=2)


# What makes a scheduler_config.json one of diffusers' LCMScheduler.
_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": TIMESTEP_SCALING}


def _open_teacher(run: LcmRun, device: torch.device) -> Model:
    """The teacher, frozen and in float32.

    Raises:
        UserError: there is none, or none that can be distilled.
    """
    model = open_model(run.teacher, Loading(), torch.float32)
    if model.inpaints:
        raise UserError(f"teacher {run.teacher} is an inpainting model, which cannot be distilled")
    if follows_scale(model):
        raise UserError(f"teacher {run.teacher} is distilled already: it reads the scale of its guidance")
    steps, length = run.solver_steps, _chain(model.process.build()).num_train_timesteps
    asked = min(50, length)  # the times that the sampler `lcm` asks at are those of so many steps
    if steps > length or steps % asked or (length // asked) % (steps // asked):
        fitting = [k * asked for k in range(1, length // asked + 1) if (length // asked) % k == 0]
        raise UserError(f"solver_steps should be one of {', '.join(map(str, fitting))}, got {steps}")
    parts = [model.net, *_conditioning(model)]
    if isinstance(model.codec, VAECodec):
        parts.append(model.codec.vae)
    for part in parts:
        part.to(device).eval().requires_grad_(False)
    return model


def _conditioning(model: Model) -> list[nn.Module]:
    """The networks of its conditioner."""
    if isinstance(model.conditioner, TextConditioner):
        return [tower.encoder for tower in model.conditioner.towers]
    return [model.conditioner] if isinstance(model.conditioner, LabelConditioner) else []


def _chain(process: Process) -> DiscreteProcess:
    if not isinstance(process, DiscreteProcess):
        raise UserError("only teachers whose process is a chain of betas can be distilled, and this one's is a flow")
    return process


def _guidance_of(run: LcmRun, teacher: Model) -> Guidance:
    """The scale or scales of guidance that the run asks for, or the usual."""
    if isinstance(teacher.conditioner, NoConditioner):
        if run.guidance not in (None, 1.0):
            raise UserError(f"guidance {run.guidance} needs a conditional teacher; an unconditional one takes only 1")
        return 1.0
    return EMBEDDED if run.guidance is None else run.guidance


def _condition_of(teacher: Model, source: Source) -> str:
    """Which part of an example conditions the picture.

    Raises:
        UserError: the data do not have what the teacher reads.
    """
    conditioner, colours = teacher.conditioner, teacher.codec.colours
    if colours != source.channels:
        raise UserError(
            f"the teacher draws {colours} channels, and {source.name} has {source.channels}"
        )
    if isinstance(conditioner, TextConditioner):
        if not source.captioned:
            raise UserError(f"the teacher reads captions, and {source.name} has none: set data.captions")
        return "text"
    if isinstance(conditioner, LabelConditioner):
        if source.num_classes is None or source.num_classes > conditioner.classes:
            raise UserError(
                f"the teacher knows {conditioner.classes} classes, and {source.name} has {source.num_classes}"
            )
        return "label"
    return "none"


def _without_teacher(provenance: dict[str, Any]) -> dict[str, Any]:
    """Without the place of the teacher, which may be a folder of its maker's disk; a name on the hub stays."""
    config = provenance.get("config", {})
    if looks_like_name(str(config.get("teacher", ""))):
        return provenance
    return {**provenance, "config": {key: value for key, value in config.items() if key != "teacher"}}
