"""A model from one form into another, with every tensor and every configuration as it was.

The model is read as for drawing, so what is damaged or does not fit is found before anything is written. Its tensors
stay mapped from their files; what its files say beside them is carried over as it is (``ldm.weights.papers``).

A single file has no place for a tokenizer, and programs read its prompts with CLIP's own. Another one goes into the
header, where we find it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.codec import VAECodec
from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.models.unet import UNet
from ldm.publishing import disk_trouble, replacing
from ldm.text_conditioner import TextConditioner
from ldm.weights.components import STEM, TOWER_STEM, describe, is_text_encoder, save_tokenizer, tower_name
from ldm.weights.families import Part
from ldm.weights.files import convert, write_json, write_tensors
from ldm.weights.identify import dtypes_in, identify
from ldm.weights.lora_files import read_lora, save_lora
from ldm.weights.model import INDEX, Model, check_replaceable, index_of
from ldm.weights.modelspec import INDEX as INDEX_FIELD
from ldm.weights.modelspec import TOKENIZERS as TOKENIZERS_FIELD
from ldm.weights.opening import Loading, lora_targets, open_model
from ldm.weights.papers import CONFIG, SCHEDULER_CONFIG, Papers, is_usual, read_papers, write_vocabulary
from ldm.weights.single_file import write_single_file
from ldm.weights.variants import weights_name

Form = Literal["diffusers", "single-file"]
Progress = Callable[[int, int], object]  # bytes written, bytes in all
FORMS: tuple[Form, ...] = ("diffusers", "single-file")
NAMINGS = ("peft", "kohya")
HALF = "fp16"
_SUFFIX = ".safetensors"
_SPEC = "modelspec."
_AS_IT_IS = Loading()


@dataclass
class Converted:
    """What a conversion wrote.

    Attributes:
        path: where.
        size: of its weights, in bytes.
        dtypes: of its tensors, the most frequent first.
        parts: those with weights.
        left_out: what the source has and no part that draws.
        tokenizers: those in the header of a single file, since they are not CLIP's own.
    """

    path: Path
    size: int
    dtypes: str
    parts: list[str]
    left_out: list[str] = field(default_factory=list)
    tokenizers: list[str] = field(default_factory=list)


def convert_model(
    source: str | Path,
    target: Path,
    form: Form,
    how: Loading = _AS_IT_IS,
    *,
    dtype: torch.dtype | None = None,
    half_variant: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a model in another form; without ``dtype``, all tensors are the same bit for bit.

    A model that was at ``target`` is replaced once the new one is complete.

    Args:
        source: anything ``open_model`` reads.
        target: a folder for ``diffusers``, a ``.safetensors`` file for ``single-file``.
        form: ``diffusers`` or ``single-file``.
        how: which weights, and what is merged into them.
        dtype: convert the tensors to this one, once all is merged.
        half_variant: write the folder's weights in float16 as ``*.fp16.safetensors``, as diffusers does for
            ``variant="fp16"``.
        progress: called after each part.

    Raises:
        UserError: the model cannot be read, has no place in this form, or ``target`` may not be overwritten. Nothing
            is written then.
    """
    choose(form, FORMS, "form of a model")
    if half_variant:
        dtype = _half(form, dtype)
    used = [Path(source), *([how.vae] if how.vae else []), *(file for file, _ in how.loras)]
    _check_target(target, form, used)
    # converted while it is read, where nothing is merged, so that only one form of a tensor is in memory
    model = open_model(source, how, None if how.loras else dtype)
    assert model.folder is not None, "it was read from somewhere"
    papers = read_papers(model.folder, how.allow_pickle)
    parts = parts_of(model, papers, new_vae=how.vae is not None)
    if form == "single-file":
        return _write_file(model, papers, parts, target, dtype, progress)
    return _write_folder(model, papers, parts, target, dtype, HALF if half_variant else None, progress)


def _half(form: Form, dtype: torch.dtype | None) -> torch.dtype:
    if form != "diffusers":
        raise UserError("half_variant is for folders of diffusers: a single file in half precision is dtype fp16")
    if dtype not in (None, torch.float16):
        raise UserError(f"half_variant means float16, and dtype says {str(dtype).removeprefix('torch.')}")
    return torch.float16


def _check_target(target: Path, form: Form, used: Sequence[Path]) -> None:
    """Refuse to write over what is no model, and over or into what is being read."""
    is_file = target.suffix == _SUFFIX
    if is_file != (form == "single-file"):
        kind = f"a {_SUFFIX} file" if form == "single-file" else f"a folder, whose name does not end in {_SUFFIX}"
        raise UserError(f"the form {form} is written to {kind}; got {target}")
    there = target.resolve()
    for path in (path.resolve() for path in used):
        if there == path:
            raise UserError(f"{target} is what is converted: name another place to write to")
        if there.is_relative_to(path):
            raise UserError(f"{target} is inside {path}, which is converted: name a place outside")
        if path.is_relative_to(there):
            raise UserError(f"{target} would be replaced, and {path}, which is read, is inside: name another place")
    if not is_file:
        check_replaceable(target)
    elif target.exists():
        _check_kind(target, lambda told: told.get("form") == "single file", "model")


def _check_kind(target: Path, fits: Callable[[Mapping[str, str]], bool], kind: str) -> None:
    try:
        good = target.is_file() and fits(identify(target))
    except UserError:  # damaged, or a pickle: not ours to write over
        good = False
    if not good:
        raise UserError(f"{target} is there and no {kind}, and would be overwritten: name another file")


def parts_of(model: Model, papers: Papers, new_vae: bool = False) -> dict[str, Part]:
    """The parts of a model, with the configurations of its files and the names that tensors have in folders.

    Args:
        model: the model.
        papers: what its files say.
        new_vae: its autoencoder is not that of the files.
    """
    parts = {}
    for name, module in _modules(model):
        own = papers.configs.get(name)
        if own is None or (name == "vae" and new_vae):
            own = {**(own or {}), **describe(module)}
        tower = is_text_encoder(module)
        parts[name] = Part(own, {tower_name(k) if tower else k: v for k, v in module.state_dict().items()})
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
    return list(zip(("", "_2"), towers, strict=False))


def _size(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> int:
    return sum(value.numel() * (dtype or value.dtype).itemsize for value in tensors.values())


def _told(
    target: Path, parts: Mapping[str, Part], papers: Papers, index: Mapping[str, Any], dtype: torch.dtype | None
) -> Converted:
    tensors = {(name, key): value for name, part in parts.items() for key, value in part.tensors.items()}
    dtypes = dtypes_in(str(dtype or value.dtype).removeprefix("torch.") for value in tensors.values())
    lost = [name for name, value in (papers.index or {}).items() if _is_part(value) and not _is_part(index.get(name))]
    for part, names in papers.names.items():  # such as a projection that the text encoder has no use for
        lost += [name for key, name in names.items() if key not in parts[part].tensors]
    weighty = [name for name, part in parts.items() if part.tensors]
    size = sum(_size(part.tensors, dtype) for part in parts.values())
    return Converted(target, size, dtypes, weighty, papers.unused + lost)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] is not None


def _index(model: Model, papers: Papers, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The ``model_index.json``: that of the source, without parts that are not written."""
    made = index_of(model, parts["scheduler"].config["_class_name"])
    if papers.index is None:
        return made
    kept = {name: value for name, value in papers.index.items() if not _is_part(value) or _is_part(made.get(name))}
    lost = {name: [None, None] for name in papers.index if name not in kept}
    checker = {"requires_safety_checker": False} if "safety_checker" in lost else {}
    return {**made, **kept, **lost, **checker}


# ------------------------------------------------------------------------------------- a folder


def _write_folder(
    model: Model,
    papers: Papers,
    parts: Mapping[str, Part],
    target: Path,
    dtype: torch.dtype | None,
    variant: str | None,
    progress: Progress | None,
) -> Converted:
    index = _index(model, papers, parts)
    told = _told(target, parts, papers, index, dtype)
    done = 0
    with disk_trouble(str(target)), replacing(target) as new:
        write_json(new / INDEX, index)
        for name, part in parts.items():
            _write_part(new / name, name, part, dtype, variant)
            done += _size(part.tensors, dtype)
            if progress is not None and part.tensors:
                progress(done, told.size)
        for suffix, tower in _towers(model):
            _write_tokenizer(new / f"tokenizer{suffix}", tower.tokenizer, papers)
    return told


def _write_part(folder: Path, name: str, part: Part, dtype: torch.dtype | None, variant: str | None) -> None:
    folder.mkdir()
    if name == "scheduler":
        write_json(folder / SCHEDULER_CONFIG, part.config)
        return
    text = name.startswith("text_encoder")
    # transformers takes the dtype of the file where nothing is said, and diffusers float32: one pipeline needs one
    said = text and not {"dtype", "torch_dtype"} & part.config.keys()
    write_json(folder / CONFIG, {**part.config, **({"dtype": "float32"} if said else {})})
    tensors = {key: convert(value, dtype) for key, value in part.tensors.items()}
    write_tensors(folder / weights_name(TOWER_STEM if text else STEM, variant), tensors)


def _write_tokenizer(folder: Path, tokenizer: Any, papers: Papers) -> None:
    """The files as they were; where there are none, CLIP's own."""
    files = papers.tokenizers.get(folder.name)
    if files is None:
        save_tokenizer(tokenizer, folder)
        return
    folder.mkdir()
    write_vocabulary(folder, files)


# -------------------------------------------------------------------------------- a single file


def _write_file(
    model: Model,
    papers: Papers,
    parts: Mapping[str, Part],
    target: Path,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> Converted:
    lacking = [name for name in ("vae", "text_encoder") if name not in parts]
    if lacking or not isinstance(model.net, UNet):
        raise UserError(
            f"a single file holds a U-Net, an autoencoder and a text encoder, and {model.folder} has no "
            f"{' and no '.join(lacking) or 'U-Net'}: keep this model as a folder"
        )
    tokenizers = _tokenizers(model, papers, parts)
    kept = {key: value for key, value in papers.header.items() if key.startswith(_SPEC)}
    index = _index(model, papers, parts)
    notes = {
        **kept,
        **({INDEX_FIELD: json.dumps(index)} if papers.index is not None else {}),
        **({TOKENIZERS_FIELD: json.dumps(tokenizers)} if tokenizers else {}),
    }
    told = _told(target, parts, papers, index, dtype)
    told.tokenizers = sorted(tokenizers)
    with disk_trouble(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_single_file(parts, target, dtype=dtype, title=kept.get(f"{_SPEC}title"), notes=notes)
    if progress is not None:
        progress(told.size, told.size)
    return told


def _tokenizers(model: Model, papers: Papers, parts: Mapping[str, Part]) -> dict[str, dict[str, str]]:
    """The files of those tokenizers that are not CLIP's own."""
    return {
        name: papers.tokenizers[name]
        for suffix, tower in _towers(model)
        if (name := f"tokenizer{suffix}") in papers.tokenizers
        and not is_usual(tower.tokenizer, parts[f"text_encoder{suffix}"].config)
    }


# ---------------------------------------------------------------------------------------- LoRAs


def convert_lora(source: Path, target: Path, naming: Literal["peft", "kohya"], model: Model) -> Converted:
    """Write a LoRA with other names; its tensors are the same bit for bit.

    Args:
        source: in any naming.
        target: a ``.safetensors`` file; a LoRA that was there is replaced.
        naming: ``peft`` or ``kohya``.
        model: one that the LoRA is for, which knows what the layers are called.

    Raises:
        UserError: the LoRA cannot be read or is for another model, or ``target`` may not be overwritten.
    """
    if target.resolve() == source.resolve():
        raise UserError(f"{target} is what is converted: name another place to write to")
    if target.exists():
        _check_kind(target, lambda told: told["kind"].startswith("LoRA"), "LoRA")
    lora = read_lora(source, lora_targets(model))
    save_lora(lora, target, naming)
    tensors = [tensor for _, _, layer in lora for tensor in (layer.down, layer.up)]
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    dtypes = dtypes_in(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return Converted(target, size, dtypes, [name for name, layers in lora.layers.items() if layers])
