"""The file of a judge: its weights, and in the header what kind of judge it is and its configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.errors import UserError


def write_judge(path: Path, judge: nn.Module, config: BaseModel, kind: str) -> None:
    """Write one safetensors file; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in judge.state_dict().items()}
    save_file(tensors, path, metadata={"config": config.model_dump_json(), "kind": kind})


def read_judge(path: Path, kind: str, script: str) -> tuple[str, dict[str, Tensor]]:
    """Read what ``write_judge`` wrote.

    Args:
        path: the file.
        kind: that it should be of.
        script: which one makes such files, for the message where there is none.

    Returns:
        The configuration as JSON, and the weights by name.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a judge; {script} makes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: is not a whole safetensors file ({error})") from error
    if metadata.get("kind") != kind:
        raise UserError(f"{path}: its header says kind {metadata.get('kind')!r}, expected {kind!r}")
    return metadata["config"], tensors
