"""ControlNets from wherever they are: a folder, a single file in either naming, a name on the hub."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ldm.errors import UserError
from ldm.models.controlnet import ControlNet
from ldm.weights.components import AS_THEY_ARE, Reading, load_module
from ldm.weights.hub import fetch, looks_like_name
from ldm.weights.identify import Told, identify
from ldm.weights.parts import CONFIG
from ldm.weights.single_file import build_part, read_single_file


def read_controlnet(place: Path, how: Reading = AS_THEY_ARE) -> ControlNet:
    """Read a ControlNet, on the CPU.

    Args:
        place: a folder, a single file with the names of CompVis or of diffusers, or a name on the hub: ``owner/name``
            or ``owner/name/file.safetensors``.
        how: which weights.

    Raises:
        UserError: it is not to be had, damaged, or something else; the message says what.
    """
    name = place.as_posix()
    path = fetch(name, variant=how.variant).path if looks_like_name(name) else place
    net = load_module(path, how) if (path / CONFIG).is_file() else _of_file(path, how)
    if not isinstance(net, ControlNet):
        raise UserError(f"{path} is no ControlNet: it is {type(net).__name__}")
    return net


def _of_file(path: Path, how: Reading) -> nn.Module:
    told = identify(path, how.allow_pickle)
    if told["kind"] != "ControlNet":
        raise UserError(f"{path} is no ControlNet: it is {_in_words(told)}")
    found = read_single_file(path, dtype=how.dtype, allow_pickle=how.allow_pickle)
    return build_part(found, "controlnet", path)


def _in_words(told: Told) -> str:
    return told["kind"] + (f" ({told['because']})" if "because" in told else "")
