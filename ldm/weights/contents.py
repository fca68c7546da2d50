"""What is converted: a whole model, or a part of one alone, with all that its files say of it.

A model is read as for drawing, so what is damaged or does not fit is found before anything is written. Its tensors
stay mapped from their files; what its files say beside them is carried over as it is (``ldm.weights.papers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.codec import VAECodec
from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.text_conditioner import TextConditioner
from ldm.weights.components import STEM, TOWER_STEM, build_empty, describe, fill_module, is_text_encoder, tower_name
from ldm.weights.families import SDXL_SCALE, Part
from ldm.weights.files import read_json
from ldm.weights.model import Model, index_of
from ldm.weights.modelspec import told_configs
from ldm.weights.opening import Loading, open_model, predicted
from ldm.weights.papers import Papers, read_papers
from ldm.weights.parts import CONFIG, INDEX, TEXT_ENCODERS, TOWER_SUFFIXES, is_part
from ldm.weights.single_file import build_part, read_single_file
from ldm.weights.variants import read_weights, weights_name

_SPEC = "modelspec."
_CLASSES = {  # of the parts that can stand alone
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
    "ControlNetModel": "controlnet",
}


class Vocabulary(NamedTuple):
    """A tokenizer, and the texts of its files by their names; None where a single file has none."""

    tokenizer: Any
    files: dict[str, str] | None


@dataclass
class Contents:
    """What is to be written.

    Attributes:
        place: where it was read.
        parts: with the configurations of its files and the names that tensors have in folders.
        alone: which part this is; None for a whole model.
        index: the ``model_index.json`` of a whole model.
        has_index: the source has one too.
        tokenizers: of a whole model, by name.
        header: the fields of a single file's header that are about the model.
        left_out: what the source has and no part that is written.
        assumed: what is written, though the source does not say it.
    """

    place: Path
    parts: dict[str, Part]
    alone: str | None = None
    index: dict[str, Any] = field(default_factory=dict)
    has_index: bool = False
    tokenizers: dict[str, Vocabulary] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    @property
    def weighty(self) -> dict[str, Part]:
        """The parts that have weights."""
        return {name: part for name, part in self.parts.items() if part.tensors}


def part_alone(path: Path, allow_pickle: bool = False) -> str | None:
    """Which part of a model a file or folder holds, and nothing else; None where it holds more.

    Raises:
        UserError: it is missing or damaged, or a part that stands nowhere alone.
    """
    if path.is_file():
        names = list(read_papers(path, allow_pickle).names)
        return _alone(names[0]) if len(names) == 1 else None
    if (path / INDEX).is_file() or not (path / CONFIG).is_file():
        return None
    config = read_json(path / CONFIG)
    kind = config.get("_class_name") or "".join(config.get("architectures") or ["None"])
    return _CLASSES[choose(str(kind), _CLASSES, f"part of a model in {path / CONFIG}")]


def _alone(name: str) -> str:
    """A text encoder alone is called the first, whichever it was."""
    return "text_encoder" if name in TEXT_ENCODERS else name


# ---------------------------------------------------------------------------------- a part alone


def read_part(path: Path, name: str, how: Loading, dtype: torch.dtype | None) -> Contents:
    """Read the part ``name``, which is all that ``path`` holds.

    Args:
        path: a file, or a folder of one part.
        name: as ``part_alone`` tells it.
        how: which weights.
        dtype: convert all to this one while reading.

    Raises:
        UserError: it is damaged, or something in ``how`` is for whole models.
    """
    of_file = {"ema", "prediction"} if name == "unet" and path.is_file() else set()
    idle = [key for key in ("vae", "loras", "embeddings", "ema", "prediction") if getattr(how, key)]
    idle = [key for key in idle if key not in of_file]
    if idle:
        raise UserError(f"{', '.join(idle)}: not for {path}, which is no whole model but a {name} alone")
    return _part_of_file(path, name, how, dtype) if path.is_file() else _part_of_folder(path, name, how, dtype)


def _part_of_folder(path: Path, name: str, how: Loading, dtype: torch.dtype | None) -> Contents:
    config = read_json(path / CONFIG)
    module = build_empty(config, path / CONFIG)
    stem = TOWER_STEM if is_text_encoder(module) else STEM
    tensors = read_weights(path, stem, how.variant, dtype, how.allow_pickle)
    fill_module(module, tensors, path / weights_name(stem, how.variant))
    part = Part(config, _tensors(module))
    lost = [key for key in tensors if key.startswith("text_projection.") and key not in part.tensors]
    return Contents(path, {name: part}, name, left_out=lost)


def _part_of_file(path: Path, name: str, how: Loading, dtype: torch.dtype | None) -> Contents:
    found = read_single_file(path, ema=how.ema, prediction=predicted(how), dtype=dtype, allow_pickle=how.allow_pickle)
    own = next(part for part in found.parts if _alone(part) == name)
    keys = list(found.parts[own].tensors)
    part = Part(found.parts[own].config, _tensors(build_part(found, own, path)))
    parts = {name: part}
    if found.prediction_from not in (None, "assumed"):
        parts["scheduler"] = found.parts.get("scheduler") or Part({"prediction_type": found.prediction})
    lost = [key for key in keys if key not in part.tensors]
    assumed = _assumed(part.config, found.metadata) if name == "vae" else []
    return Contents(path, parts, name, header=_about(found.metadata), left_out=found.unused + lost, assumed=assumed)


def _assumed(config: Mapping[str, Any], header: Mapping[str, str]) -> list[str]:
    if told_configs(header) or f"{_SPEC}architecture" in header:
        return []
    return [f"scaling_factor {config['scaling_factor']}, as of Stable Diffusion 1 and 2; SDXL has {SDXL_SCALE}"]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """By the names that they have in a folder."""
    tower = is_text_encoder(module)
    return {tower_name(key) if tower else key: value for key, value in module.state_dict().items()}


def _about(header: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in header.items() if key.startswith(_SPEC)}


# --------------------------------------------------------------------------------- a whole model


def read_whole(source: Path, how: Loading, dtype: torch.dtype | None) -> Contents:
    """Read a model and put into it what is asked for.

    Args:
        source: a model folder, a run or a single file.
        how: which weights.
        dtype: convert all to this one.

    Raises:
        UserError: as ``open_model``.
    """
    # converted while it is read, where nothing is merged, so that only one form of a tensor is in memory
    model = open_model(source, how, None if how.loras else dtype)
    assert model.folder is not None, "it was read from somewhere"
    papers = read_papers(model.folder, how.allow_pickle)
    parts = _parts_of(model, papers, new_vae=how.vae is not None)
    index = _index(model, papers, parts)
    return Contents(
        model.folder,
        parts,
        index=index,
        has_index=papers.index is not None,
        tokenizers={
            name: Vocabulary(tower.tokenizer, papers.tokenizers.get(name))
            for suffix, tower in _towers(model)
            for name in (f"tokenizer{suffix}",)
        },
        header=_about(papers.header),
        left_out=papers.unused + _lost(papers, parts, index),
    )


def _parts_of(model: Model, papers: Papers, new_vae: bool) -> dict[str, Part]:
    parts = {}
    for name, module in _modules(model):
        own = papers.configs.get(name)
        if own is None or (name == "vae" and new_vae):
            own = {**(own or {}), **describe(module)}
        parts[name] = Part(own, _tensors(module))
    prediction = model.process.to_diffusers(model.prediction, clip=False)["prediction_type"]
    parts["scheduler"] = Part({**papers.configs["scheduler"], "prediction_type": prediction})
    return parts


def _modules(model: Model) -> Iterator[tuple[str, nn.Module]]:
    yield "unet", model.net
    if isinstance(model.codec, VAECodec):
        yield "vae", model.codec.vae
    if isinstance(model.conditioner, LabelConditioner):
        yield "label_encoder", model.conditioner
    for suffix, tower in _towers(model):
        yield f"text_encoder{suffix}", tower.encoder


def _towers(model: Model) -> list[tuple[str, Any]]:
    towers = model.conditioner.towers if isinstance(model.conditioner, TextConditioner) else ()
    return list(zip(TOWER_SUFFIXES, towers, strict=False))


def _index(model: Model, papers: Papers, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The ``model_index.json``: that of the source, without parts that are not written."""
    made = index_of(model, parts["scheduler"].config["_class_name"])
    if papers.index is None:
        return made
    kept = {name: value for name, value in papers.index.items() if not is_part(value) or is_part(made.get(name))}
    lost = {name: [None, None] for name in papers.index if name not in kept}
    checker = {"requires_safety_checker": False} if "safety_checker" in lost else {}
    return {**made, **kept, **lost, **checker}


def _lost(papers: Papers, parts: Mapping[str, Part], index: Mapping[str, Any]) -> list[str]:
    """Parts that nothing draws with, and tensors that a part has no use for, such as a projection."""
    lost = [name for name, value in (papers.index or {}).items() if is_part(value) and not is_part(index.get(name))]
    for part, names in papers.names.items():
        lost += [name for key, name in names.items() if key not in parts[part].tensors]
    return lost
