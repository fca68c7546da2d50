"""A model, or a part of one alone, from one form into another, with every tensor and configuration as it was.

A single file has no place for a tokenizer, and programs read its prompts with CLIP's own. Another one goes into the
header, where we find it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm.errors import UserError, choose
from ldm.knowledge.file import KNOWS
from ldm.publishing import disk_trouble, replacing
from ldm.weights.components import STEM, TOWER_STEM, save_tokenizer
from ldm.weights.contents import Contents, Vocabulary, part_alone, read_part, read_whole
from ldm.weights.families import Part
from ldm.weights.files import convert, read_json, write_json, write_tensors
from ldm.weights.identify import dtypes_in, identify
from ldm.weights.lora_files import read_lora, save_lora
from ldm.weights.model import Model, check_replaceable
from ldm.weights.modelspec import INDEX as INDEX_FIELD
from ldm.weights.modelspec import TOKENIZERS as TOKENIZERS_FIELD
from ldm.weights.opening import Loading, locate, lora_targets
from ldm.weights.papers import is_usual, write_vocabulary
from ldm.weights.parts import CONFIG, INDEX, SCHEDULER_CONFIG, listed_parts
from ldm.weights.single_file import write_single_file
from ldm.weights.variants import weights_name

Form = Literal["diffusers", "single-file"]
Progress = Callable[[int, int], object]  # bytes written, bytes in all
FORMS: tuple[Form, ...] = ("diffusers", "single-file")
NAMINGS = ("peft", "kohya")
HALF = "fp16"
_SUFFIX = ".safetensors"
_TITLE = "modelspec.title"
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
        assumed: what is written, though the source does not say it.
    """

    path: Path
    size: int
    dtypes: str
    parts: list[str]
    left_out: list[str] = field(default_factory=list)
    tokenizers: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


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

    What was at ``target`` is replaced once the new is complete, if it is a model too, or the same part alone.

    Args:
        source: anything ``open_model`` reads; a U-Net, an autoencoder, a text encoder or a ControlNet alone, as a
            file or a folder; or the run of an autoencoder.
        target: a folder for ``diffusers``, a ``.safetensors`` file for ``single-file``.
        form: ``diffusers`` or ``single-file``.
        how: which weights, and what is merged into them.
        dtype: convert the tensors to this one, once all is merged.
        half_variant: write the folder's weights in float16 as ``*.fp16.safetensors``, as diffusers does for
            ``variant="fp16"``.
        progress: called after each part of a folder, and once a file is written.

    Raises:
        UserError: the model cannot be read, has no place in this form, or ``target`` may not be overwritten. Nothing
            is written then.
    """
    choose(form, FORMS, "form of a model")
    if half_variant:
        dtype = _half(form, dtype)
    if how.live:
        raise UserError("live LoRAs are for drawing; a conversion merges them")
    used = [Path(source), *([how.vae] if how.vae else []), *(file for file, _ in how.loras)]
    _check_target(target, form, used)
    path = _locate(source, how)
    name = part_alone(path, how.allow_pickle)
    if name == "unet" and how.prediction and form == "diffusers":
        raise UserError("prediction: a folder of a unet alone has no place for it, as the header of a single file has")
    _check_replaced(target, name)
    here = how.model_copy(update={"revision": None})  # of what has been fetched by now
    contents = read_whole(path, here, dtype) if name is None else read_part(path, name, here, dtype)
    if form == "single-file":
        return _write_file(contents, target, dtype, progress)
    return _write_folder(contents, target, dtype, HALF if half_variant else None, progress)


def _locate(source: str | Path, how: Loading) -> Path:
    folder = Path(source)
    if (folder / CONFIG).is_file() and not (folder / INDEX).is_file() and how.revision is None:
        return folder
    found = locate(source, how)
    only_vae = (found / INDEX).is_file() and listed_parts(read_json(found / INDEX)) == {"vae"}
    return found / "vae" if only_vae else found  # what training an autoencoder leaves


def _half(form: Form, dtype: torch.dtype | None) -> torch.dtype:
    if form != "diffusers":
        raise UserError("half_variant is for folders of diffusers: a single file in half precision is dtype fp16")
    if dtype not in (None, torch.float16):
        raise UserError(f"half_variant means float16, and dtype says {str(dtype).removeprefix('torch.')}")
    return torch.float16


def _check_target(target: Path, form: Form, used: Sequence[Path]) -> None:
    """Refuse to write over or into what is being read."""
    if (target.suffix == _SUFFIX) != (form == "single-file"):
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


def _check_replaced(target: Path, name: str | None) -> None:
    """Refuse to write a model over what is none, and a part over what is not that part alone."""
    if name is None and target.suffix != _SUFFIX:
        check_replaceable(target)
    elif target.is_file() or (target.is_dir() and any(target.iterdir())):
        try:
            same = target.is_file() == (target.suffix == _SUFFIX) and part_alone(target) == name
        except UserError:  # damaged, or a pickle: not ours to write over
            same = False
        if not same or (target.is_dir() and not (target / CONFIG).is_file()):
            raise UserError(f"{target} is there and no {name or 'model'}, and would be overwritten: name another place")


def _size(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> int:
    return sum(value.numel() * (dtype or value.dtype).itemsize for value in tensors.values())


def _told(target: Path, contents: Contents, dtype: torch.dtype | None) -> Converted:
    parts = contents.weighty
    kinds = (dtype or value.dtype for part in parts.values() for value in part.tensors.values())
    dtypes = dtypes_in(str(kind).removeprefix("torch.") for kind in kinds)
    size = sum(_size(part.tensors, dtype) for part in parts.values())
    return Converted(target, size, dtypes, list(parts), contents.left_out, assumed=contents.assumed)


# ------------------------------------------------------------------------------------- a folder


def _write_folder(
    contents: Contents, target: Path, dtype: torch.dtype | None, variant: str | None, progress: Progress | None
) -> Converted:
    told = _told(target, contents, dtype)
    done = 0
    with disk_trouble(str(target)), replacing(target) as new:
        if contents.alone is not None:
            _write_part(new, contents.alone, contents.parts[contents.alone], dtype, variant)
            return told
        write_json(new / INDEX, contents.index)
        for name, part in contents.parts.items():
            (new / name).mkdir()
            _write_part(new / name, name, part, dtype, variant)
            done += _size(part.tensors, dtype)
            if progress is not None and part.tensors:
                progress(done, told.size)
        for name, vocabulary in contents.tokenizers.items():
            _write_tokenizer(new / name, vocabulary)
        if (contents.place / KNOWS).is_file():
            shutil.copyfile(contents.place / KNOWS, new / KNOWS)
    return told


def _write_part(folder: Path, name: str, part: Part, dtype: torch.dtype | None, variant: str | None) -> None:
    if name == "scheduler":
        write_json(folder / SCHEDULER_CONFIG, part.config)
        return
    text = name.startswith("text_encoder")
    # transformers takes the dtype of the file where nothing is said, and diffusers float32: one pipeline needs one
    said = text and not {"dtype", "torch_dtype"} & part.config.keys()
    write_json(folder / CONFIG, {**part.config, **({"dtype": "float32"} if said else {})})
    tensors = {key: convert(value, dtype) for key, value in part.tensors.items()}
    write_tensors(folder / weights_name(TOWER_STEM if text else STEM, variant), tensors)


def _write_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """The files as they were; where there are none, CLIP's own."""
    if vocabulary.files is None:
        save_tokenizer(vocabulary.tokenizer, folder)
        return
    folder.mkdir()
    write_vocabulary(folder, vocabulary.files)


# -------------------------------------------------------------------------------- a single file


def _write_file(contents: Contents, target: Path, dtype: torch.dtype | None, progress: Progress | None) -> Converted:
    if contents.alone is None:
        _check_whole(contents)
    tokenizers = _tokenizers(contents)
    notes = {
        **contents.header,
        **({INDEX_FIELD: json.dumps(contents.index)} if contents.has_index else {}),
        **({TOKENIZERS_FIELD: json.dumps(tokenizers)} if tokenizers else {}),
    }
    told = _told(target, contents, dtype)
    told.tokenizers = sorted(tokenizers)
    with disk_trouble(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_single_file(contents.parts, target, dtype=dtype, title=contents.header.get(_TITLE), notes=notes)
    if progress is not None:
        progress(told.size, told.size)
    return told


def _check_whole(contents: Contents) -> None:
    lacking = [name for name in ("vae", "text_encoder") if name not in contents.parts]
    if lacking or contents.parts["unet"].config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(
            f"a single file holds a U-Net, an autoencoder and a text encoder, and {contents.place} has no "
            f"{' and no '.join(lacking) or 'U-Net'}: keep this model as a folder"
        )


def _tokenizers(contents: Contents) -> dict[str, dict[str, str]]:
    """The files of those tokenizers that are not CLIP's own."""
    return {
        name: files
        for name, (tokenizer, files) in contents.tokenizers.items()
        if files is not None
        and not is_usual(tokenizer, contents.parts[name.replace("tokenizer", "text_encoder")].config)
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
    if target.exists() and not _is_lora(target):
        raise UserError(f"{target} is there and no LoRA, and would be overwritten: name another place")
    lora = read_lora(source, lora_targets(model))
    save_lora(lora, target, naming)
    tensors = [tensor for _, _, layer in lora for tensor in (layer.down, layer.up)]
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    dtypes = dtypes_in(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return Converted(target, size, dtypes, [name for name, layers in lora.layers.items() if layers])


def _is_lora(path: Path) -> bool:
    try:
        return path.is_file() and identify(path)["kind"].startswith("LoRA")
    except UserError:  # damaged, or a pickle: not ours to write over
        return False
