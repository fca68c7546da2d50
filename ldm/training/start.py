"""What training starts from: a network with first weights, or a finished model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ldm.batch import follows_scale
from ldm.codec import Codec, PixelCodec, VAECodec
from ldm.conditioner import Condition, Conditioner, LabelConditioner, NoConditioner
from ldm.data.caption_forms import CaptionConfig
from ldm.data.example import Source
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import IdleError, UserError
from ldm.models.toy import ToyUNet
from ldm.models.unet import UNet
from ldm.text_conditioner import TextConditioner
from ldm.training.run_source import HOW_TO_CAPTION
from ldm.training.settings import DiffusionRun, LabelConditionConfig, TextConditionConfig, VAECodecConfig
from ldm.weights.components import load_tower
from ldm.weights.model import Model, load_vae, resolve
from ldm.weights.opening import open_model

FROZEN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Start:
    """A model to train.

    Attributes:
        model: its parts; what the files hold is mapped, not copied.
        parts: reads codec and conditioner anew, as their files have them.
    """

    model: Model
    parts: Callable[[], tuple[Codec, Conditioner]]


def start_of(run: DiffusionRun, source: Source) -> Start:
    """What a run starts from.

    Raises:
        UserError: it is not to be had, or does not fit the data or the run.
    """
    if isinstance(run.condition, TextConditionConfig):
        _check_captions(source)  # before its tower is looked for
    start = _new(run, source) if run.model is None else _finished(run)
    _check_data(start.model, source)
    start.model.defaults = {**start.model.defaults, **_said(run)}
    if not isinstance(start.model.conditioner, TextConditioner):
        _check_wordless(run)
    prompts = run.validation.prompts if run.validation is not None else ()
    check_conditions(start.model, (*run.sample.conditions, *prompts))
    if run.masks is not None and not start.model.inpaints:
        raise UserError(
            "masks are for inpainting networks, and this one reads no mask beside the picture: leave out `masks`"
        )
    return start


def _check_wordless(run: DiffusionRun) -> None:
    """Refuse what is for models that read captions."""
    if run.tune.kind == "textual_inversion":
        raise UserError("tune.kind textual_inversion teaches a text encoder a word, and this model has none")
    if run.prior is not None:
        raise UserError("prior tells a class and its member apart by their captions, and this model reads none")
    if run.captions != CaptionConfig():
        raise IdleError("captions", "captions does nothing for a model that reads none: leave it out")


def check_conditions(model: Model, conditions: Sequence[Condition]) -> None:
    """Refuse to begin where a sheet, hours later, would ask for what the model cannot draw.

    Raises:
        UserError: naming one of the conditions.
    """
    if not isinstance(model.conditioner, TextConditioner):  # which takes any words
        with torch.no_grad():
            model.conditioner.encode([*conditions, None])


def _said(run: DiffusionRun) -> dict[str, Any]:
    """How a run says that its model likes to be drawn with."""
    sample = run.sample
    if run.model is not None and sample.sampler is not None and sample.steps is None:
        raise UserError("sample.sampler beside a finished model needs sample.steps too: the model's own are of another")
    said = {"sampler": sample.sampler, "steps": sample.steps, "guidance": sample.guidance}
    return {key: value for key, value in said.items() if value is not None}


# ----------------------------------------------------------------------------- a finished model


def _finished(run: DiffusionRun) -> Start:
    assert run.model is not None
    model = open_model(run.model, run.loading)
    if follows_scale(model):
        raise UserError(
            f"{run.model} was distilled to draw in a few steps (LCM), which the loss of diffusion would undo: tune the "
            "model that it was distilled from, and distil that"
        )
    if run.prediction not in (None, model.prediction):
        _check_prediction(run, model)
        model.prediction = run.prediction or model.prediction
    place, loading = run.model, run.loading

    def parts() -> tuple[Codec, Conditioner]:
        fresh = open_model(place, loading)
        return fresh.codec, fresh.conditioner

    return Start(model, parts)


def _check_prediction(run: DiffusionRun, model: Model) -> None:
    told = f"{run.model} predicts {model.prediction}, and prediction says {run.prediction}"
    if run.tune.kind != "full":
        raise UserError(f"{told}: a {run.tune.kind} is drawn with beside the model, whose files say the former")
    print(f"{told}: it will be taught the other, which takes many steps")


# ------------------------------------------------------------------------------- first weights


def _new(run: DiffusionRun, source: Source) -> Start:
    codec, conditioner = _new_parts(run, source)
    net = _new_net(run, codec, conditioner)
    process, prediction = run.process or ProcessConfig(), run.prediction or "epsilon"
    defaults = {"sampler": "ddim", "steps": 50, "guidance": 1.0}
    model = Model(net, process, prediction, codec, conditioner, (0, 0), defaults)
    return Start(model, lambda: _new_parts(run, source))


def _new_parts(run: DiffusionRun, source: Source) -> tuple[Codec, Conditioner]:
    condition = run.condition
    if isinstance(run.codec, VAECodecConfig):
        codec: Codec = VAECodec(load_vae(resolve(run.codec.path)))
    else:
        codec = PixelCodec(source.channels)
    if isinstance(condition, LabelConditionConfig):
        width = run.unet.cross_attention_dim if run.unet else None
        if width is None:
            raise UserError("condition.kind = label needs unet.cross_attention_dim, the width of its token")
        return codec, LabelConditioner(condition.classes, width)
    if isinstance(condition, TextConditionConfig):
        return codec, TextConditioner(load_tower(resolve(condition.path)))
    return codec, NoConditioner()


def _new_net(run: DiffusionRun, codec: Codec, conditioner: Conditioner) -> nn.Module:
    if run.toy is not None:
        found, module = run.toy.in_channels, ToyUNet(run.toy)
    else:
        assert run.unet is not None
        found, module = run.unet.in_channels, UNet(run.unet)
        reads = run.unet.cross_attention_dim
        if isinstance(conditioner, TextConditioner) and conditioner.width != reads:
            raise UserError(f"unet.cross_attention_dim is {reads}, but the text encoder gives {conditioner.width}")
    if found != codec.channels:
        raise UserError(f"the network reads {found} channels, but the codec gives {codec.channels}")
    return module


# ------------------------------------------------------------------------------------- the data


def condition_of(conditioner: Conditioner) -> str:
    """Which part of an example the conditioner reads, as ``TrainingSamples`` calls it."""
    if isinstance(conditioner, LabelConditioner):
        return "label"
    return "text" if isinstance(conditioner, TextConditioner) else "none"


def _check_data(model: Model, source: Source) -> None:
    """Refuse pictures that the model cannot read, and captions or labels that it reads and there are none of."""
    conditioner, colours = model.conditioner, model.codec.colours
    if colours != source.channels:
        whose = "VAE" if isinstance(model.codec, VAECodec) else "network"
        cure = f": set data.colours to {'grey' if colours == 1 else 'rgb'}" if colours in (1, 3) else ""
        raise UserError(f"the {whose} reads {colours} channels, the pictures have {source.channels}{cure}")
    if isinstance(conditioner, LabelConditioner):
        classes = source.num_classes
        if classes is None or classes > conditioner.classes:
            told = "the number of the model's classes" if model.folder else "condition.classes"
            raise UserError(f"{told} is {conditioner.classes}, but {source.name} has {classes}")
    if isinstance(conditioner, TextConditioner):
        _check_captions(source)


def _check_captions(source: Source) -> None:
    if not source.captioned:
        raise UserError(f"the condition is a text and needs captions, but {source.name} has none: {HOW_TO_CAPTION}")
