"""The names of Stable Diffusion's own code, and those of diffusers: which tensor is which.

The maps are those of diffusers' converters. They are asked with small numbered marks in place of tensors, so they
say of every tensor where it comes from without touching one. The way back asks them the same question about every
name that a model of that shape could have, and keeps the answers that name a tensor there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError, need
from ldm.weights.families import Part

UNET, VAE, CONTROLNET = "model.diffusion_model.", "first_stage_model.", "control_model."
_RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_VAE_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
_VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")
_RESBLOCK = ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj")
_FUSED, _PROJECTION = ".in_proj_", "text_projection"


@dataclass(frozen=True)
class Tower:
    """Where a text encoder stands in a single file, and whose names it has there.

    Attributes:
        part: its name in a model folder.
        prefix: of its tensors in the file.
        openclip: OpenCLIP's names, with q, k and v fused; otherwise those of transformers.
    """

    part: str
    prefix: str
    openclip: bool


_CLIP = Tower("text_encoder", "cond_stage_model.transformer.", False)
_OPENCLIP = Tower("text_encoder", "cond_stage_model.model.", True)
_XL_CLIP = Tower("text_encoder", "conditioner.embedders.0.transformer.", False)
_XL_OPENCLIP = Tower("text_encoder_2", "conditioner.embedders.1.model.", True)
TOWERS = (_CLIP, _OPENCLIP, _XL_CLIP, _XL_OPENCLIP)


def tower_of(part: str, parts: Mapping[str, Part]) -> Tower:
    """Where a single file has the text encoder ``part`` of this model."""
    if part == "text_encoder_2":
        return _XL_OPENCLIP
    unet = parts["unet"].config if "unet" in parts else {}
    if "text_encoder_2" in parts or unet.get("addition_embed_type") == "text_time":
        return _XL_CLIP
    return _OPENCLIP if parts[part].config.get("hidden_act") == "gelu" else _CLIP


@dataclass(frozen=True)
class Source:
    """Where in a single file a tensor of diffusers comes from, and in which form.

    Attributes:
        name: there.
        third: 0, 1 or 2: it is q, k or v of a fused projection.
        kernel: it is a matrix here and a kernel of one pixel there.
        turned: it is transposed there.
    """

    name: str
    third: int | None = None
    kernel: bool = False
    turned: bool = False

    def under(self, name: str) -> Source:
        """The same under another name."""
        return replace(self, name=name)

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor of diffusers."""
        if self.third is not None:
            if not tensor.dim():
                raise UserError(f"{self.name} is a single number, and should hold q, k and v")
            tensor = tensor.tensor_split(3)[self.third]
        if self.kernel:
            tensor = tensor.flatten(1)
        return tensor.T.contiguous() if self.turned else tensor

    def write(self, tensor: Tensor) -> Tensor:
        """The inverse of ``read``, but for joining thirds."""
        if self.kernel:
            tensor = tensor[..., None, None]
        return tensor.T.contiguous() if self.turned else tensor


Sources = dict[str, Source]
Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def _trace(convert: Convert, dimensions: Mapping[str, int]) -> Sources:
    """What ``convert`` makes of tensors of these names, each of so many dimensions."""
    names = list(dimensions)
    marks = {}
    for k, (name, count) in enumerate(dimensions.items()):
        rows = 3 if _FUSED in name else 1
        marks[name] = torch.arange(4 * k, 4 * k + rows).reshape(rows, *[1] * (count - 1))
    try:
        found = convert(marks)
    except (
        KeyError,
        AttributeError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:  # what the converters take for granted
        raise UserError(f"it lacks tensors, or its configuration is another model's ({error!r})") from error
    sources = {}
    for key, mark in found.items():
        if mark is None:
            raise UserError(f"it lacks the tensor that becomes {key}")
        k, third = divmod(int(mark.flatten()[0]), 4)
        name = names[k]
        fused, kernel = _FUSED in name, mark.dim() < dimensions[name]
        sources[key] = Source(name, third if fused else None, kernel, name.endswith(_PROJECTION))
    return sources


def _converters() -> Any:
    return need("diffusers.loaders.single_file_utils", "convert")


def unet_sources(dimensions: Mapping[str, int], config: Mapping[str, Any]) -> Sources:
    """Where the tensors of a U-Net come from; ``dimensions`` by names that begin with ``UNET``."""
    module = _converters()
    return _trace(lambda marks: module.convert_ldm_unet_checkpoint(marks, config), dimensions)


def vae_sources(dimensions: Mapping[str, int], config: Mapping[str, Any]) -> Sources:
    """Where the tensors of an autoencoder come from; ``dimensions`` by names that begin with ``VAE``."""
    module = _converters()
    return _trace(lambda marks: module.convert_ldm_vae_checkpoint(marks, config), dimensions)


def control_sources(dimensions: Mapping[str, int], config: Mapping[str, Any]) -> Sources:
    """Where the tensors of a ControlNet come from; ``dimensions`` by names that begin with ``CONTROLNET``."""
    module = _converters()
    return _trace(lambda marks: module.convert_controlnet_checkpoint(marks, config), dimensions)


def text_sources(tower: Tower, dimensions: Mapping[str, int]) -> Sources:
    """Where the tensors of a text encoder come from; ``dimensions`` by names that begin with its prefix."""
    module = _converters()
    if not tower.openclip:
        found = _trace(module.convert_ldm_clip_checkpoint, dimensions)
        return {key: source for key, source in found.items() if not key.endswith("position_ids")}  # a mere count
    shape = SimpleNamespace(config=SimpleNamespace(hidden_size=1))  # of the marks
    found = _trace(lambda marks: module.convert_open_clip_checkpoint(shape, marks, tower.prefix), dimensions)
    plain = f"{tower.prefix}{_PROJECTION}.weight"  # as diffusers' own script for SDXL writes it
    return {**found, f"{_PROJECTION}.weight": Source(plain)} if plain in dimensions else found


def unet_names(part: Part) -> Iterator[str]:
    """Every name that a U-Net with the shape of this one could have in a single file."""
    layers, levels = part.config["layers_per_block"], len(part.config["block_out_channels"])
    yield from _descent_names(UNET, part)
    for level in range(levels):
        attends = any(key.startswith(f"up_blocks.{level}.attentions.") for key in part.tensors)
        for k in range(level * (layers + 1), (level + 1) * (layers + 1)):
            above = f"{UNET}output_blocks.{k}."
            yield from (f"{above}0.{tail}" for tail in _with_bias(_RESNET))
            yield from (f"{above}1.{tail}" for tail in _from_attention(part))
            yield from (f"{above}{1 + attends}.{tail}" for tail in _with_bias(("conv",)))
    tables = _converters().DIFFUSERS_TO_LDM_MAPPING["unet"]
    yield from (UNET + name for name in tables["layers"].values())
    if "add_embedding.linear_1.weight" in part.tensors:
        yield from (UNET + name for name in tables["addition_embed_type"].values())


def control_names(part: Part) -> Iterator[str]:
    """Every name that a ControlNet with the shape of this one could have in a single file."""
    yield from _descent_names(CONTROLNET, part)
    steps = len(part.config["block_out_channels"]) * (part.config["layers_per_block"] + 1)
    yield from (f"{CONTROLNET}zero_convs.{k}.0.{tail}" for k in range(steps) for tail in ("weight", "bias"))
    yield from (CONTROLNET + name for name in _with_bias(("middle_block_out.0",)))
    hint = 2 * len(part.config["conditioning_embedding_out_channels"]) - 1
    yield from (CONTROLNET + name for name in _with_bias([f"input_hint_block.{2 * k}" for k in range(hint)]))
    yield from (CONTROLNET + name for name in _converters().DIFFUSERS_TO_LDM_MAPPING["controlnet"]["layers"].values())


def _descent_names(prefix: str, part: Part) -> Iterator[str]:
    """The way down and the middle, which a U-Net and its ControlNets share."""
    steps = len(part.config["block_out_channels"]) * (part.config["layers_per_block"] + 1)
    resnet, from_attention = _with_bias(_RESNET), _from_attention(part)
    for k in range(steps):
        below = f"{prefix}input_blocks.{k}."
        yield from (f"{below}0.{tail}" for tail in (*resnet, *_with_bias(("op",))))
        yield from (f"{below}1.{tail}" for tail in from_attention)
    for k in range(3):
        yield from (f"{prefix}middle_block.{k}.{tail}" for tail in (from_attention if k % 2 else resnet))


def _from_attention(part: Part) -> set[str]:
    return {re.sub(r".*\.attentions\.\d+\.", "", key) for key in part.tensors if ".attentions." in key}


def vae_names(part: Part) -> Iterator[str]:
    """Every name that an autoencoder with the shape of this one could have in a single file."""
    levels, layers = len(part.config["block_out_channels"]), part.config["layers_per_block"]
    resnet = _with_bias(_VAE_RESNET)
    for half, blocks in ((f"{VAE}encoder.", "down"), (f"{VAE}decoder.", "up")):
        for level in range(levels):
            for k in range(layers + 1):
                yield from (f"{half}{blocks}.{level}.block.{k}.{tail}" for tail in resnet)
            yield from (f"{half}{blocks}.{level}.{tail}" for tail in _with_bias((f"{blocks}sample.conv",)))
        yield from (f"{half}mid.block_{k}.{tail}" for k in (1, 2) for tail in resnet)
        yield from (f"{half}mid.attn_1.{tail}" for tail in _with_bias(_VAE_ATTENTION))
    yield from (VAE + name for name in _converters().DIFFUSERS_TO_LDM_MAPPING["vae"].values())


def text_names(tower: Tower, part: Part) -> Iterator[str]:
    """Every name that a text encoder with the shape of this one could have in a single file."""
    if not tower.openclip:
        yield from (tower.prefix + key for key in part.tensors)
        return
    for k in range(part.config["num_hidden_layers"]):
        tails = (*_with_bias(_RESBLOCK), "attn.in_proj_weight", "attn.in_proj_bias")
        yield from (f"{tower.prefix}transformer.resblocks.{k}.{tail}" for tail in tails)
    tables = _converters().DIFFUSERS_TO_LDM_MAPPING["openclip"]
    yield from (tower.prefix + name for name in tables["layers"].values())


def _with_bias(names: Sequence[str]) -> list[str]:
    return [f"{name}.{tail}" for name in names for tail in ("weight", "bias")]


def places(name: str, part: Part, parts: Mapping[str, Part]) -> Sources:
    """Where the tensors of ``parts[name]`` go in a single file.

    A part alone has the names that programs know such files by: an autoencoder those of CompVis without a prefix, a
    text encoder those of transformers, a ControlNet of SDXL, whose like CompVis never had, those of diffusers.

    Raises:
        UserError: the layout has no place for some of them.
    """
    alone = all(other == name or not parts[other].tensors for other in parts)
    own_names = (name.startswith("text_encoder") and alone) or part.config.get("addition_embed_type") == "text_time"
    if name == "unet":
        found = unet_sources(_dimensions(unet_names(part)), part.config)
    elif name == "vae":
        found = vae_sources(_dimensions(vae_names(part)), part.config)
        found = {key: source.under(source.name.removeprefix(VAE if alone else "")) for key, source in found.items()}
    elif own_names:
        found = {key: Source(key) for key in part.tensors}
    elif name == "controlnet":
        found = control_sources(_dimensions(control_names(part)), part.config)
    else:
        tower = tower_of(name, parts)
        found = text_sources(tower, _dimensions(text_names(tower, part)))
    lost = [key for key in part.tensors if key not in found]
    if lost:
        more = ", ..." if len(lost) > 3 else ""
        raise UserError(
            f"a single file has no place for {len(lost)} tensors of the {name} ({', '.join(lost[:3])}{more}): "
            "keep this model as a folder"
        )
    return {key: found[key] for key in part.tensors}


def _dimensions(names: Iterator[str]) -> dict[str, int]:
    """As many dimensions as the converters ask about; the others' do not matter."""
    kernels = tuple(f"mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    matrices = (f"{_FUSED}weight".removeprefix("."), _PROJECTION)
    return {name: 4 if name.endswith(kernels) else 2 if name.endswith(matrices) else 1 for name in names}
