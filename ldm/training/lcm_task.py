"""Distilling a model to one that draws in four steps (LCM); the theory is in ``ldm.diffusion.consistency``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.codec import Codec
from ldm.conditioner import Conditioner, NoConditioner
from ldm.diffusion.consistency import TIMESTEP_SCALING
from ldm.errors import UserError
from ldm.images import save_grid
from ldm.models.unet import UNet
from ldm.training.drawn import draw_pictures, share_of
from ldm.training.lcm_player import StudentPlayer, chain_of
from ldm.training.lcm_settings import LEARNED, TOLD, Guidance, LcmRun
from ldm.training.lora_training import add_lora, halve, lora_of, write_lora
from ldm.training.material import material_of, place
from ldm.training.player import layout
from ldm.training.start import FROZEN, check_conditions
from ldm.training.tune_settings import LoraTune
from ldm.weights.files import read_json, write_json
from ldm.weights.lora import merge_loras
from ldm.weights.model import Model, save_model
from ldm.weights.opening import open_model
from ldm.weights.parts import INDEX, SCHEDULER_CONFIG

_GRID = 50  # the sampler `lcm`, here and in diffusers, asks at times of so many steps
_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": _GRID, "timestep_scaling": TIMESTEP_SCALING}


class LcmTask:
    """See :class:`ldm.training.tasks.Task`."""

    def __init__(self, run: LcmRun, device: torch.device) -> None:
        self.run, self.device = run, device
        self._of_teacher = run.of_teacher()
        material = material_of(self._of_teacher, device)
        self._start, self.samples, self.teacher = material.start, material.samples, material.start.model
        _check_teacher(run, self.teacher)
        check_conditions(self.teacher, run.sample.conditions)
        self.guidance = _guidance_of(run, self.teacher)
        for part in (self.teacher.net, self.teacher.conditioner):
            if isinstance(part, nn.Module):
                module: Any = part.eval().requires_grad_(False)  # Any: torch's stubs lack a keyword of Module.to
                module.to(device, torch.float32, memory_format=layout(run.train))
        student = student_of(self.teacher, run, self.guidance)
        self._half = None if run.frozen_dtype == "fp32" else FROZEN[run.frozen_dtype]
        if self._half is not None:  # now that the student has what it needs in full precision
            halve(self.teacher.net, self._half)
        kept = self.samples.kept
        nothing = kept.context(None).to(device) if kept is not None and kept.texts else None
        self.player = StudentPlayer(student, self.teacher, run, self.guidance, nothing)
        self.players: dict[str, nn.Module] = {"net": self.player}

    def follow(self, averaged: nn.Module) -> None:
        """The moving average that the trainer keeps is the target network."""
        self.player.follow(averaged)

    def compile(self) -> None:
        self.player.net.compile()
        self.teacher.net.compile()

    def plays(self, player: str, step: int) -> bool:
        return True

    # ----------------------------------------------------------------------- what it leaves

    def save(self, folder: Path, averaged: nn.Module, provenance: dict[str, Any]) -> None:
        """Write the student as a model, and a LoRA, which is merged there, beside it too.

        diffusers opens it: as a ``LatentConsistencyModelPipeline`` where it has a VAE, reads prompts and is told its
        guidance.
        """
        assert isinstance(averaged, StudentPlayer)
        net, run, tune = averaged.net, self.run, self.run.tune
        # what is not trained is written as it was read, to the bit
        codec, conditioner = self._start.parts()
        if isinstance(tune, LoraTune):
            lora = lora_of({"unet": net}, "lcm")
            # the teacher's as its files have them, which may be rounded here
            net = open_model(run.teacher, run.loading).net.to(self.device, torch.float32)
            merge_loras({"unet": net}, [(lora, 1.0)])
        save_model(self._model(net, codec, conditioner, provenance), folder)
        if isinstance(tune, LoraTune):
            write_lora(folder, lora)
        scheduler = folder / "scheduler" / SCHEDULER_CONFIG
        write_json(scheduler, {**read_json(scheduler), **_SCHEDULER})
        index = read_json(folder / INDEX) | {"scheduler": ["diffusers", _SCHEDULER["_class_name"]]}
        if isinstance(self.guidance, tuple) and index["_class_name"] == "StableDiffusionPipeline":
            index["_class_name"] = "LatentConsistencyModelPipeline"
        write_json(folder / INDEX, index)

    def _model(self, net: nn.Module, codec: Codec, conditioner: Conditioner, provenance: dict[str, Any]) -> Model:
        return Model(
            net=net,
            process=self.teacher.process,
            prediction=self.teacher.prediction,
            codec=codec,
            conditioner=conditioner,
            size=self.samples.size,
            defaults={"sampler": "lcm", "steps": self.run.sample.steps, "guidance": self._usual_guidance()},
            provenance=provenance,
        )

    def _usual_guidance(self) -> float:
        """What the student is told by default; 1 where it is told nothing."""
        if not isinstance(self.guidance, tuple):
            return 1.0
        asked, (low, high) = self.run.sample.guidance, self.guidance
        return asked if asked is not None else min(high, max(low, float(self.teacher.defaults.get("guidance", low))))

    def draw(self, averaged: nn.Module, rank: int, processes: int) -> list[Tensor]:
        assert isinstance(averaged, StudentPlayer)
        sample = self.run.sample
        numbers = share_of(sample.count, rank, processes)
        wanted = [sample.conditions[k % len(sample.conditions)] if sample.conditions else None for k in numbers]
        codec, conditioner = self._start.parts()  # for as long as somebody draws, as a cache may stand for them
        place(self._of_teacher, self.device, codec, conditioner)
        model = self._model(averaged.net, codec, conditioner, {})
        return draw_pictures(model, self.device, wanted, [self.run.seed + k for k in numbers], half=self._half)

    def write_sheet(self, pictures: list[Tensor], path: Path) -> dict[str, float]:
        save_grid(torch.stack(pictures), path, self.run.sample.columns, scale=2)
        return {}


def student_of(teacher: Model, run: LcmRun, guidance: Guidance) -> nn.Module:
    """What is trained; it begins as the teacher, whatever guidance it is told."""
    net: Any = teacher.net
    if isinstance(run.tune, LoraTune):
        if not isinstance(net, UNet):
            raise UserError("a LoRA changes a U-Net, and the teacher has none")
        student = copy.deepcopy(net, {id(p): p for p in net.parameters()})  # whose weights are the teacher's own
        add_lora({"unet": student}, run.tune)
    elif isinstance(guidance, tuple):
        student = UNet(net.config.model_copy(update={"time_cond_proj_dim": run.guidance_waves}))
        nn.init.zeros_(student.time_embedding.cond_proj.weight)  # pyright: ignore[reportOptionalMemberAccess]
        student.load_state_dict(net.state_dict(), strict=False)
    else:
        student = copy.deepcopy(net).requires_grad_(True)
    if isinstance(student, UNet):
        student.gradient_checkpointing = run.train.gradient_checkpointing
    return student.train()


# --------------------------------------------------------------------------------- the teacher


def _check_teacher(run: LcmRun, model: Model) -> None:
    """Refuse models that cannot be distilled so."""
    if model.inpaints:
        raise UserError(f"teacher {run.teacher} is an inpainting model, and only models that draw all can be distilled")
    _check_steps(run.solver_steps, chain_of(model.process.build()).num_train_timesteps)


def _check_steps(steps: int, length: int) -> None:
    """Refuse a grid of times without those at which the student will be asked."""
    asked = min(_GRID, length)
    fitting = [k * asked for k in range(1, length // asked + 1) if (length // asked) % k == 0]
    if steps not in fitting:
        raise UserError(f"solver_steps should be one of {', '.join(map(str, fitting))}, got {steps}")


def _guidance_of(run: LcmRun, teacher: Model) -> Guidance:
    """The scale or scales of guidance that the run asks for, or the usual."""
    if isinstance(teacher.conditioner, NoConditioner):
        if run.guidance not in (None, 1.0):
            raise UserError("guidance needs a teacher with conditions, and this one has none: leave it out")
        return 1.0
    if run.guidance is not None:
        return run.guidance
    return LEARNED if isinstance(run.tune, LoraTune) else TOLD
