"""A whole model in one file, as Stable Diffusion's own code and the web UIs have it; see ``ldm.weights.outline``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.weights.components import build_empty, fill_module
from ldm.weights.compvis import places
from ldm.weights.families import Family, Part
from ldm.weights.files import convert, write_tensors
from ldm.weights.identify import misplaced
from ldm.weights.modelspec import describe_parts, sign, told_configs
from ldm.weights.outline import outline_of
from ldm.weights.stored import open_stored


@dataclass
class SingleFile:
    """What a single file held.

    Attributes:
        parts: ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``, and with a U-Net ``scheduler``; or
            ``controlnet`` alone.
        family: the U-Net's, or that of the U-Net a ControlNet is for; None without one, or where the header has the
            U-Net's configuration.
        prediction: in diffusers' words; None where there is no U-Net.
        prediction_from: what told it; see ``ldm.weights.outline.Outline``.
        unused: tensors of no part, such as buffers of the noise schedule.
        metadata: strings of the header.
    """

    parts: dict[str, Part]
    family: Family | None
    prediction: str | None
    prediction_from: str | None
    unused: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_single_file(
    path: Path,
    *,
    ema: bool = False,
    prediction: str | None = None,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> SingleFile:
    """Read the parts of a model from one file.

    A VAE alone has the scale of SD 1 and 2 (``scaling_factor`` 0.18215); that of SDXL has the same tensors, so who
    puts a VAE into a model must give it the model's scale.

    Args:
        path: a safetensors file, or a pickle.
        ema: take the U-Net's moving average (``model_ema.*``) where a training checkpoint has both. As in diffusers
            and the web UIs, the default is the other: files meant for drawing have the average in its place.
        prediction: of the U-Net's output, ``epsilon`` or ``v_prediction``; overrides all evidence.
        dtype: convert the tensors to this one while reading; otherwise they are as in the file, and mapped.
        allow_pickle: read ``.ckpt`` too; see ``ldm.weights.pickles``.

    Raises:
        UserError: the file is missing, damaged, of no family that is known, or a pickle that is not allowed.
    """
    stored = open_stored(path, allow_pickle)
    try:
        outline = outline_of(stored, told_configs(stored.metadata), ema=ema, prediction=prediction)
    except UserError as error:
        raise UserError(misplaced(path, stored) or f"{path}: {error}") from error
    wanted = {source.name for sources in outline.sources.values() for source in sources.values()}
    tensors = stored.take(wanted, dtype)
    parts = {name: Part(config) for name, config in outline.configs.items()}
    for name, sources in outline.sources.items():
        parts[name].tensors = {key: source.read(tensors[source.name]) for key, source in sources.items()}
    unused = [name for name in stored.shapes if name not in wanted]
    return SingleFile(parts, outline.family, outline.prediction, outline.prediction_from, unused, stored.metadata)


def build_part(found: SingleFile, name: str, path: Path) -> nn.Module:
    """The module of a part that was read from ``path``; its tensors move over.

    Raises:
        UserError: its tensors are not those that its configuration asks for.
    """
    part = found.parts[name]
    module = build_empty(part.config, path)
    fill_module(module, part.tensors, path)
    part.tensors = {}
    return module


def write_single_file(
    parts: Mapping[str, Part],
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    title: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a model as one safetensors file that web UIs, diffusers' ``from_single_file`` and we read.

    Args:
        parts: any of ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``, ``scheduler``; or ``controlnet``.
        path: where to.
        dtype: convert the tensors to this one.
        title: of the model, for people; the file's name by default.
        notes: for the header, beside what the parts tell.

    Raises:
        UserError: the layout has no place for a tensor, or the file cannot be written.
    """
    metadata = {**(notes or {}), **describe_parts(parts, title or path.stem)}
    tensors = joined(parts, dtype)

    def write(temporary: Path) -> None:
        write_tensors(temporary, tensors, metadata)
        sign(temporary)

    with disk_trouble(str(path)):
        write_whole(path, write)


def joined(parts: Mapping[str, Part], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a single file of these parts.

    Raises:
        UserError: the layout has no place for a tensor, or a fused projection lacks a third.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        thirds: dict[str, dict[int, Tensor]] = {}
        if not part.tensors:
            continue
        for key, source in places(name, part, parts).items():
            tensor = source.write(convert(part.tensors[key], dtype))
            if source.third is None:
                tensors[source.name] = tensor
            else:
                thirds.setdefault(source.name, {})[source.third] = tensor
        for fused, pieces in thirds.items():
            if len(pieces) != 3:
                raise UserError(f"the {name} lacks one of q, k and v for {fused}")
            tensors[fused] = torch.cat([pieces[k] for k in range(3)])
    return tensors
