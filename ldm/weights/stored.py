"""A file of tensors before they are read: safetensors and pickles alike."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.weights.files import convert, read_header, read_tensors
from ldm.weights.pickles import form_of, read_pickle

Shapes = dict[str, tuple[int, ...]]
_WORDS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass
class Stored:
    """The tensors of a file, before they are read.

    Attributes:
        shapes: by name.
        metadata: strings of the header; none in a pickle.
        numbers: single numbers beside the tensors; none in a safetensors file.
        take: read some, converted.
        dtypes: by name, such as ``float16``.
    """

    shapes: Shapes
    metadata: dict[str, str]
    numbers: dict[str, float]
    take: Callable[[Collection[str], torch.dtype | None], dict[str, Tensor]]
    dtypes: dict[str, str]


def open_stored(path: Path, allow_pickle: bool = False) -> Stored:
    """Open a file of either form.

    Raises:
        UserError: the file is missing, damaged, or a pickle that is not allowed.
    """
    if form_of(path) == "safetensors":
        header = read_header(path)
        words = {name: _WORDS.get(word, word.lower()) for name, word in header.dtypes.items()}
        return Stored(header.shapes, header.metadata, {}, lambda names, dtype: read_tensors(path, dtype, names), words)
    pickled = read_pickle(path, allow_pickle)

    def take(names: Collection[str], dtype: torch.dtype | None) -> dict[str, Tensor]:
        # Popped, so that of each tensor only one form is in memory.
        return {name: convert(pickled.tensors.pop(name), dtype) for name in list(pickled.tensors) if name in names}

    shapes = {name: tuple(tensor.shape) for name, tensor in pickled.tensors.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in pickled.tensors.items()}
    return Stored(shapes, {}, pickled.numbers, take, dtypes)
