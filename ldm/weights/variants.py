"""Which files of a folder hold the weights of a part: variants, shards, safetensors or pickles.

    diffusion_pytorch_model.safetensors                        a model, stem ``diffusion_pytorch_model``
    diffusion_pytorch_model.fp16.safetensors                   its variant ``fp16``
    diffusion_pytorch_model-00001-of-00002.safetensors         its shards, listed in
    diffusion_pytorch_model.safetensors.index.json
    diffusion_pytorch_model.safetensors.index.fp16.json        the list of a variant's shards

transformers' stem is ``model``, which its pickles call ``pytorch_model``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.files import convert, read_json, read_tensors, write_json, write_tensors
from ldm.weights.pickles import FLAG, form_of, read_pickle

STEMS = ("diffusion_pytorch_model", "model")
_PICKLE_STEM = {"model": "pytorch_model"}
_PLAIN = "(none)"


def weights_name(stem: str, variant: str | None = None, ending: str = "safetensors") -> str:
    """The name of a part's file, such as ``model.fp16.safetensors``."""
    return f"{_stem(stem, ending)}{f'.{variant}' if variant else ''}.{ending}"


def index_name(stem: str, variant: str | None = None, ending: str = "safetensors") -> str:
    """The name of the list of a part's shards, such as ``model.safetensors.index.fp16.json``."""
    return f"{_stem(stem, ending)}.{ending}.index{f'.{variant}' if variant else ''}.json"


def _stem(stem: str, ending: str) -> str:
    return stem if ending == "safetensors" else _PICKLE_STEM.get(stem, stem)


def variants_in(names: Iterable[str], stem: str, ending: str = "safetensors") -> list[str | None]:
    """The variants that there are among these names of files, whole or as a list of shards; None is the plain one."""
    base = re.escape(_stem(stem, ending))
    whole = re.compile(rf"{base}(?:\.([\w-]+?))?\.{ending}")
    listed = re.compile(rf"{base}\.{ending}\.index(?:\.([\w-]+))?\.json")
    found = {match[1] for name in names for match in (whole.fullmatch(name), listed.fullmatch(name)) if match}
    shards = re.compile(r".*-\d{5}-of-\d{5}")
    return sorted((name for name in found if not (name and shards.fullmatch(name))), key=lambda name: name or "")


def find_weights(folder: Path, stem: str, variant: str | None = None, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights of a part.

    Args:
        folder: of the part.
        stem: ``diffusion_pytorch_model`` or ``model``.
        variant: such as ``fp16``; None is the one without a name.
        allow_pickle: take ``.bin`` where there is no safetensors file.

    Raises:
        UserError: they are not there; the message lists the variants that are.
    """
    for ending in ("safetensors", "bin") if allow_pickle else ("safetensors",):
        whole, index = folder / weights_name(stem, variant, ending), folder / index_name(stem, variant, ending)
        if whole.is_file():
            return [whole]
        if index.is_file():
            return sorted({folder / name for name in _weight_map(index).values()})
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    raise UserError(f"{folder / weights_name(stem, variant)} is missing{instead(names, stem)}")


def read_weights(
    folder: Path,
    stem: str,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> dict[str, Tensor]:
    """Read the weights of a part, mapped into memory; arguments as those of ``find_weights``.

    Args:
        dtype: convert to this one, tensor by tensor.

    Raises:
        UserError: files are missing, damaged, or not those that the list of shards says.
    """
    paths = find_weights(folder, stem, variant, allow_pickle)
    found: dict[str, Tensor] = {}
    for path in paths:
        tensors = _read(path, dtype, allow_pickle)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise UserError(f"{path} holds {twice[0]} again, which an earlier shard has")
        found |= tensors
    index = folder / index_name(stem, variant, paths[0].suffix[1:])
    if index.is_file() and paths != [folder / weights_name(stem, variant, paths[0].suffix[1:])]:
        lost = sorted(_weight_map(index).keys() - found.keys())
        if lost:
            raise UserError(f"{index} lists {len(lost)} tensors that no shard holds ({', '.join(lost[:3])})")
    return found


def write_weights(folder: Path, stem: str, tensors: Mapping[str, Tensor], max_shard_size: str | None = None) -> None:
    """Write the weights of a part as safetensors: one file, or shards and their list as diffusers does.

    Args:
        folder: of the part.
        stem: ``diffusion_pytorch_model`` or ``model``.
        tensors: by name.
        max_shard_size: of a file, such as ``40MB``; no shards by default. A tensor is never split.
    """
    if max_shard_size is None:
        write_tensors(folder / weights_name(stem), tensors)
        return
    from huggingface_hub import split_torch_state_dict_into_shards

    pattern = f"{stem}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(dict(tensors), filename_pattern=pattern, max_shard_size=max_shard_size)
    for name, keys in split.filename_to_tensors.items():
        write_tensors(folder / name, {key: tensors[key] for key in keys})
    if split.is_sharded:
        told = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / index_name(stem), told)


def _read(path: Path, dtype: torch.dtype | None, allow_pickle: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing, a shard of the weights in {path.parent}")
    if form_of(path) == "safetensors":
        return read_tensors(path, dtype)
    return {key: convert(value, dtype) for key, value in read_pickle(path, allow_pickle).tensors.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Name of a tensor -> name of the shard that holds it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{index} has no weight_map, which would say what the shards are")
    for name in found.values():
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\]", name):
            raise UserError(f"{index} names {name!r}, which is no file beside it")
    return found


def instead(names: Sequence[str], stem: str) -> str:
    """What there is in place of weights that are not, to end a message with."""
    found = variants_in(names, stem)
    if found:
        return f"; variants there: {', '.join(name or _PLAIN for name in found)}"
    pickles = variants_in(names, stem, "bin")
    if pickles:
        told = ", ".join(name or _PLAIN for name in pickles)
        return f"; there are pickles (.bin) of these variants: {told} (read with {FLAG})"
    return ""
