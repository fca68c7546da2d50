"""Weights in pickles: ``.ckpt``, ``.pt``, ``.bin``.

A pickle is a program. It is read only when the user allows it, and only by torch's restricted reader, which knows
tensors and plain containers and runs nothing else. There is no other way in: what the restricted reader refuses
stays closed.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.absent import check_file
from ldm.weights.first_bytes import foreign_zip, mistaken_for_weights

FLAG = "--allow-pickle"
_NESTS = ("state_dict", "string_to_param")  # of checkpoints, and of textual inversion
PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass
class Pickled:
    """What a pickle held.

    Attributes:
        tensors: by name.
        numbers: single numbers beside them, such as ``global_step``.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)


def form_of(path: Path) -> Literal["safetensors", "pickle"]:
    """What a file of weights is by its content.

    Raises:
        UserError: it is missing, is neither, or its name says the other.
    """
    check_file(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        found = "safetensors"
    elif start[:4] == b"PK\x03\x04" or start[:1] == b"\x80" or start[257:262] == b"ustar":
        found = "pickle"
    elif path.suffix == ".safetensors":
        found = "safetensors"  # whose reader says what is wrong with it
    else:
        reason = mistaken_for_weights(path)
        raise UserError(f"{path} is neither a safetensors file nor a pickle{f': {reason}' if reason else ''}")
    if found == "pickle" and (other := foreign_zip(path)):
        raise UserError(f"{path} is {other}")
    if found == "pickle" and path.suffix == ".safetensors":
        raise UserError(
            f"{path} is a pickle that calls itself safetensors: do not trust it (under its true ending, .ckpt, "
            f"{FLAG} would let it be read as far as that is safe)"
        )
    if found == "safetensors" and path.suffix in PICKLE_ENDINGS:
        raise UserError(f"{path} is a safetensors file that is named as a pickle: rename it to .safetensors")
    return found


def read_pickle(path: Path, allow_pickle: bool) -> Pickled:
    """Read a pickle of tensors; those nested under ``state_dict`` or ``string_to_param`` are taken from there.

    Raises:
        UserError: as ``unpickle``, or there are no tensors in it.
    """
    return _contents(path, unpickle(path, allow_pickle))


def unpickle(path: Path, allow_pickle: bool) -> Any:
    """What a pickle holds, as far as it can be had without running any of it.

    Raises:
        UserError: pickles are not allowed, or this one asks for more than tensors and plain containers, or is damaged.
    """
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, a form that can carry code: convert it to safetensors, or allow it with {FLAG} "
            "(it is then read by torch's restricted reader, which runs nothing)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of storage classes of old torch
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a hostile file brings the reader to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is refused: {_told(reason)}") from error


def _told(reason: str) -> str:
    """torch's reason without its advice, which is to read the file without protection."""
    for start in ("trusted source.", "WeightsUnpickler error:"):
        reason = reason.rpartition(start)[2]
    for end in ("Please use", "Please file", "Check the documentation", "In PyTorch 2.6"):
        reason = reason.partition(end)[0]
    return f"it holds more than tensors, or is damaged ({reason.strip()[:300]})"


def _contents(path: Path, found: Any) -> Pickled:
    numbers: dict[str, float] = {}
    while isinstance(found, Mapping):
        numbers |= {key: value for key, value in found.items() if isinstance(key, str) and _is_number(value)}
        nest = next((name for name in _NESTS if name in found), None)
        if nest is None:
            break
        found = found[nest]
    if not isinstance(found, Mapping):
        raise UserError(f"{path} should hold tensors by name, found {type(found).__name__}")
    tensors = {
        key: value.detach() for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    odd = [key for key, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise UserError(f"{path} holds sparse or quantized tensors ({', '.join(odd[:3])}), which no model here has")
    if not tensors:
        raise UserError(f"{path} holds no tensors by name")
    return Pickled(tensors, numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
