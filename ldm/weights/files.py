"""Reading and writing safetensors and JSON: whole or not at all, and with errors that name the file."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.weights.absent import check_file
from ldm.weights.first_bytes import mistaken_for_weights


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, unreadable or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} should hold a JSON object, found {type(found).__name__}")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object; ``path``'s folder exists. Callers publish the folder by renaming it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its tensors.

    Attributes:
        shapes: of every tensor, in the order of the file.
        dtypes: in the format's own words, such as ``F16``.
        metadata: the strings of ``__metadata__``.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read what a safetensors file holds, and none of its tensors.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    with _named(path), safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.offset_keys()}
        shapes = {key: tuple(value.get_shape()) for key, value in slices.items()}
        return Header(shapes, {key: value.get_dtype() for key, value in slices.items()}, file.metadata() or {})


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file by mapping it into memory.

    Args:
        path: the file.
        dtype: convert to this one, tensor by tensor; what has it already stays mapped.
        names: read these alone.

    Raises:
        UserError: the file is missing, truncated or of another format.
    """
    with _named(path):
        if dtype is None and names is None:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.offset_keys() if names is None or key in names]
            sizes = [file.get_slice(key).get_shape() for key in keys]
        found = {}
        for batch in _batches(keys, sizes):
            # Opened anew: closing gives back the memory of the pages that the conversion has read.
            with safe_open(path, framework="pt") as file:
                found |= {key: convert(file.get_tensor(key), dtype) for key in batch}
        return found


_BATCH = 1 << 26  # numbers that are converted on one mapping


def _batches(keys: Sequence[str], shapes: Sequence[Sequence[int]]) -> Iterator[list[str]]:
    batch, size = [], 0
    for key, shape in zip(keys, shapes, strict=True):
        batch.append(key)
        size += math.prod(shape)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def convert(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Real numbers in ``dtype``; without one, and what is no real number, as it is."""
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    check_file(path)
    try:
        yield
    except (SafetensorError, OSError) as error:
        reason = mistaken_for_weights(path) or error
        raise UserError(f"{path} ({path.stat().st_size} bytes) is damaged or no safetensors file: {reason}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; shared or strided tensors are copied first."""
    ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(ready, path, metadata={"format": "pt", **(metadata or {})})
    os.chmod(path, 0o644)  # safetensors writes 0600, which nobody else on a cluster could read


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a module, built on ``meta``, its weights without copying them.

    Raises:
        UserError: names or shapes differ; the message has the first few of each.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in tensors]
    surplus = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} {tuple(tensors[key].shape)} should be {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    counters = {key for key, value in expected.items() if not value.is_floating_point()}  # of batch norms
    wrong = [key for key, value in tensors.items() if not value.is_floating_point() and key not in counters]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("not expected", surplus),
            ("of another shape", shapes),
            ("no real numbers", wrong),
        )
        if names
    ]
    if faults:
        raise UserError(f"{path} does not fit its configuration: {'; '.join(faults)}")
    module.load_state_dict(tensors, assign=True)
