"""What a single file of Stable Diffusion holds, told from the names and shapes of its tensors.

    model.diffusion_model.*            the U-Net
    model_ema.*                        its moving average, in training checkpoints
    first_stage_model.*                the VAE
    cond_stage_model.transformer.*     the text encoder: CLIP (SD 1)
    cond_stage_model.model.*           OpenCLIP (SD 2)
    conditioner.embedders.{0,1}.*      CLIP and OpenCLIP (SDXL)
    control_model.*                    a ControlNet

Any part may be absent. A file of one part alone may leave the prefix out, or have the names of diffusers. The file's
own name says nothing.

What no shape tells is the prediction type of SD 2: 2.0 and 2.1 come in epsilon (512 pixels) and v (768) with the same
tensors. The order of evidence is: the caller, the header (``modelspec.prediction_type``), a marker ``v_pred`` among
the tensors, the training step 875000 (which is 2.0-base's), and else v, as diffusers assumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import UserError, choose
from ldm.weights.compvis import (
    CONTROLNET,
    TOWERS,
    UNET,
    VAE,
    Source,
    Sources,
    Tower,
    control_sources,
    text_sources,
    unet_sources,
    vae_sources,
)
from ldm.weights.control_shapes import controlnet_config, family_of_controlnet
from ldm.weights.families import Family, find_family, text_config, vae_config
from ldm.weights.modelspec import told_prediction, told_scale
from ldm.weights.stored import Shapes, Stored

EMA = "model_ema."
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BASE_2_0_STEPS = 875000
_CONTEXT = ".transformer_blocks.0.attn2.to_k.weight"
_REFINER = "conditioner.embedders.0.model."
_CONTROLNET_OF_DIFFUSERS = "controlnet_cond_embedding."
_LAYERS = {"layers_per_block": 2}  # of every ControlNet that was named as CompVis does
# Whole files of one part: a name that tells, and the prefix that its names lack; a ControlNet has the U-Net's too.
_BARE = (
    ("input_hint_block.0.weight", CONTROLNET),
    ("input_blocks.0.0.weight", UNET),
    ("decoder.up.0.block.0.norm1.weight", VAE),
)
_OLD_CLIP, _CLIP = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
_BARE_TEXT = "text_model.embeddings.position_embedding.weight"

Configs = Mapping[str, dict[str, Any]]


@dataclass
class Outline:
    """The parts of a single file, before their tensors are read.

    Attributes:
        configs: ``config.json`` of ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``, ``scheduler``; or of
            ``controlnet`` alone.
        sources: where the tensors of each come from.
        family: the U-Net's, or that of the U-Net a ControlNet is for; None without one, or where the U-Net's
            configuration was given.
        prediction: in diffusers' words; None where there is no U-Net.
        prediction_from: what told it: ``argument``, ``header``, ``marker``, ``training step``, ``family``, or
            ``assumed``.
    """

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, Sources] = field(default_factory=dict)
    family: Family | None = None
    prediction: str | None = None
    prediction_from: str | None = None


def outline_of(
    stored: Stored, configs: Configs | None = None, *, ema: bool = False, prediction: str | None = None
) -> Outline:
    """What these tensors are.

    Args:
        stored: the tensors.
        configs: of parts, where they are known; the others are told from the shapes.
        ema: take the U-Net's moving average in place of the U-Net.
        prediction: overrides all evidence.

    Raises:
        UserError: they are of no family that is known, or of no model.
    """
    if prediction is not None:
        choose(prediction, PREDICTIONS, "prediction type")
    configs = configs or {}
    names = _aliases(stored.shapes, ema)
    shapes = {alias: stored.shapes[name] for alias, name in names.items()}
    found = Outline()
    if naming_of_controlnet(stored.shapes) is not None:  # beside it, some have the whole model it was trained with
        _find_controlnet(found, shapes, configs)
    else:
        found.family = None if "unet" in configs else family_of(shapes)
        _settle_prediction(found, stored, prediction, configs.get("scheduler", {}))
        scale = found.family.scaling_factor if found.family else told_scale(stored.metadata)
        _find_networks(found, shapes, _side(found, stored.metadata), scale, configs)
        _find_text_encoders(found, shapes, configs)
    if not found.sources:
        raise UserError(f"it holds no part of Stable Diffusion ({', '.join(list(stored.shapes)[:3])}, ...)")
    if "unet" in found.sources and found.prediction:
        own = configs.get("scheduler") or (found.family and found.family.scheduler_config("ztsnr" in shapes))
        if own:
            found.configs["scheduler"] = {**own, "prediction_type": found.prediction}
    for part, sources in found.sources.items():
        found.sources[part] = {key: source.under(names[source.name]) for key, source in sources.items()}
    return found


def _aliases(shapes: Shapes, ema: bool) -> dict[str, str]:
    """Names as they should be -> names as they are in the file."""
    names = {name: name for name in shapes if not name.startswith(EMA)}
    bare = next((prefix for telling, prefix in _BARE if telling in shapes), "")
    names = {bare + name: name for name in names}
    if any(name.startswith(_OLD_CLIP + "embeddings.") for name in names):  # of an older transformers
        names = {
            _CLIP + name.removeprefix(_OLD_CLIP) if name.startswith(_OLD_CLIP) else name: actual
            for name, actual in names.items()
        }
    if not ema:
        return names
    averaged = {name: EMA + "".join(name.split(".")[1:]) for name in names if name.startswith(UNET)}
    lost = [name for name in averaged.values() if name not in shapes]
    if lost or not averaged:
        raise UserError(f"it holds no moving average of the U-Net ({lost[0] if lost else EMA + '*'} is missing)")
    return {**names, **averaged}


def naming_of_controlnet(shapes: Shapes) -> str | None:
    """Whose names a ControlNet has, ``CompVis`` or ``diffusers``; None where these tensors are no ControlNet."""
    if any(name.startswith(_CONTROLNET_OF_DIFFUSERS) for name in shapes):
        return "diffusers"
    return "CompVis" if any(name.startswith((CONTROLNET, _BARE[0][0])) for name in shapes) else None


def _find_controlnet(found: Outline, shapes: Shapes, configs: Configs) -> None:
    ranks, config = _ranks(shapes, CONTROLNET), configs.get("controlnet")
    try:
        sources = control_sources(ranks, config or _LAYERS) if ranks else _as_it_is(shapes)
        own = {key: shapes[source.name] for key, source in sources.items()}
        found.configs["controlnet"] = config or controlnet_config(own)
    except UserError as error:
        raise UserError(f"its ControlNet cannot be built: {error}") from error
    found.sources["controlnet"], found.family = sources, family_of_controlnet(own)


def family_of(shapes: Shapes) -> Family | None:
    """The family of the U-Net among tensors of these shapes; None where there is no U-Net.

    Raises:
        UserError: it is of none that is known.
    """
    if any(name.startswith(_REFINER) for name in shapes):
        return find_family(1280, 4)
    for first, prefix in ((f"{UNET}input_blocks.0.0.weight", UNET), ("conv_in.weight", "down_blocks.")):
        layers = [name for name in shapes if name.startswith(prefix) and name.endswith(_CONTEXT)]
        if first in shapes and layers:
            return find_family(_columns(shapes, layers[0]), _columns(shapes, first))
    return None


def _settle_prediction(found: Outline, stored: Stored, prediction: str | None, scheduler: Mapping[str, Any]) -> None:
    header = scheduler.get("prediction_type") or told_prediction(stored.metadata)
    if prediction is not None:
        told = prediction, "argument"
    elif header is not None:
        told = header, "header"
    elif found.family is None:
        return
    elif "v_pred" in stored.shapes:
        told = "v_prediction", "marker"
    elif found.family.name != "sd2":
        told = "epsilon", "family"
    elif stored.numbers.get("global_step") == _BASE_2_0_STEPS:
        told = "epsilon", "training step"
    else:
        told = "v_prediction", "assumed"
    found.prediction, found.prediction_from = told


def _side(found: Outline, metadata: Mapping[str, str]) -> int:
    """Height and width in pixels: the header's, the family's, or for SD 2 that of the prediction type."""
    width, _, height = metadata.get("modelspec.resolution", "").partition("x")
    if width.isdecimal() and width == height and int(width) and int(width) % 8 == 0:
        return int(width)
    if found.family and found.family.side:
        return found.family.side
    return 768 if found.prediction == "v_prediction" else 512


def _find_networks(found: Outline, shapes: Shapes, side: int, scale: float, configs: Configs) -> None:
    unet, vae, family = _ranks(shapes, UNET), _ranks(shapes, VAE), found.family
    config = configs.get("unet") or (family and family.unet_config(side))
    if unet and not config:
        raise UserError("its U-Net reads no text, so it is of no family that is known")
    if config and (unet or "conv_in.weight" in shapes):
        found.configs["unet"] = config
        found.sources["unet"] = unet_sources(unet, config) if unet else _as_it_is(shapes)
    if vae or "encoder.down_blocks.0.resnets.0.norm1.weight" in shapes:
        config = configs.get("vae") or vae_config(scale, side)
        found.configs["vae"] = config
        found.sources["vae"] = vae_sources(vae, config) if vae else _as_it_is(shapes)


def _find_text_encoders(found: Outline, shapes: Shapes, configs: Configs) -> None:
    for tower in TOWERS:
        ranks = _ranks(shapes, tower.prefix)
        if ranks:
            found.configs[tower.part] = configs.get(tower.part) or text_config(_width(tower, shapes))
            found.sources[tower.part] = text_sources(tower, ranks)
    if _BARE_TEXT in shapes:
        keys = {name: shape for name, shape in shapes.items() if not name.endswith("position_ids")}
        found.configs["text_encoder"] = configs.get("text_encoder") or text_config(_columns(shapes, _BARE_TEXT))
        found.sources["text_encoder"] = _as_it_is(keys)


def _ranks(shapes: Shapes, prefix: str) -> dict[str, int]:
    return {name: len(shape) for name, shape in shapes.items() if name.startswith(prefix)}


def _as_it_is(shapes: Shapes) -> Sources:
    return {name: Source(name) for name in shapes}


def _width(tower: Tower, shapes: Shapes) -> int:
    return _columns(shapes, tower.prefix + ("positional_embedding" if tower.openclip else _BARE_TEXT))


def _columns(shapes: Shapes, name: str) -> int:
    shape = shapes.get(name, ())
    if len(shape) < 2:
        raise UserError(f"{name} {f'has the shape {shape}' if name in shapes else 'is missing'}")
    return shape[1]
