"""A CLIP as a folder: its image tower describes pictures, its text tower the captions beside them.

Either what ``task: clip`` saves (``clip/`` and ``tokenizer/``, pictures of the size it was trained at, in -1..1), or a
``CLIPModel`` as transformers saves it, whose ``preprocessor_config.json`` says how pictures come to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluate.features import named
from ldm.evaluate.fitting import centre, check_pictures, cover, to_channels
from ldm.schema import Settings
from ldm.weights.components import load_tokenizer, quiet_transformers
from ldm.weights.files import read_json
from ldm.weights.model import latest_checkpoint

_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "*.safetensors"
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
_AT_ONCE = 256  # captions


class Preparation(Settings):
    """How pictures come to the image tower.

    Attributes:
        shortest: their shorter side is resized to this many pixels,
        side: of which the middle square is read.
        mode: of resizing, ``bilinear`` or ``bicubic``.
        mean, std: of each channel, of values 0..1.
    """

    shortest: int = Field(ge=1)
    side: int = Field(ge=1)
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ClipFolder:
    """See ``ldm.evaluate.features.Features``; the features are the projected embeddings, not normalised.

    Args:
        place: the folder, or a run of ``task: clip``.
        device: where to compute.

    Raises:
        UserError: a file is missing or damaged, or it is no CLIP.
    """

    def __init__(self, place: Path, device: torch.device) -> None:
        folder = latest_checkpoint(place) or place
        own = (folder / "clip").is_dir()
        self._folder = folder / "clip" if own else folder
        self._clip = _load(self._folder).to(device)
        self._tokenizer = load_tokenizer(folder / "tokenizer" if own else folder)
        config = self._clip.config
        self._channels = config.vision_config.num_channels
        self._how = _own(config) if own else _others(self._folder, config)
        self._device = device
        self.size = config.projection_dim
        weights = sorted(self._folder.glob(_WEIGHTS))
        self.name = named("CLIP's image tower", [self._folder / "config.json", *weights], self._how.model_dump_json())

    @torch.inference_mode()
    def describe(self, images: Tensor) -> Tensor:
        return self._clip.get_image_features(self.prepared(images)).pooler_output.float().cpu()

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> Tensor:
        """The embeddings of captions, float32 (N, size) on the CPU, not normalised; what is too long is cut off."""
        found = []
        for start in range(0, len(captions), _AT_ONCE):
            some = list(captions[start : start + _AT_ONCE])
            window = self._clip.config.text_config.max_position_embeddings
            tokens = self._tokenizer(
                some, padding="max_length", max_length=window, truncation=True, return_tensors="pt"
            ).input_ids
            found.append(self._clip.get_text_features(tokens.to(self._device)).pooler_output.float().cpu())
        return torch.cat(found)

    def prepared(self, images: Tensor) -> Tensor:
        """Pictures, uint8 (B, C, H, W), as the tower reads them: float32 (B, channels, side, side)."""
        check_pictures(images)
        how = self._how
        covering = cover(to_channels(images, self._channels), how.shortest, how.mode)
        images = centre(covering, how.side, how.side).to(self._device)
        mean, std = (torch.tensor(v, device=self._device)[:, None, None] for v in (how.mean, how.std))
        return (images.float() / 255 - mean) / std


def _load(folder: Path) -> Any:
    from transformers import CLIPModel

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no CLIP: expected a run of `task: clip`, or a CLIPModel of transformers")
    config = read_json(folder / "config.json")
    if "CLIPModel" not in (config.get("architectures") or []):
        raise UserError(f"{folder} holds a {config.get('architectures')}, not a CLIPModel: no CLIP with both towers")
    if not any(folder.glob(_WEIGHTS)):
        raise UserError(f"{folder} holds no {_WEIGHTS}")
    try:
        with quiet_transformers():
            clip = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever its parts do
        raise UserError(f"{folder} cannot be read as a CLIP: {' '.join(str(error).split())[:300]}") from error
    return clip.eval().requires_grad_(False)


def _own(config: Any) -> Preparation:
    """As ``task: clip`` shows pictures: of its size, in -1..1."""
    side, half = config.vision_config.image_size, (0.5,) * config.vision_config.num_channels
    return Preparation(shortest=side, side=side, mode="bicubic", mean=half, std=half)


def _others(folder: Path, config: Any) -> Preparation:
    """As a ``preprocessor_config.json`` says."""
    path = folder / _PREPROCESSOR
    told = read_json(path)
    side = config.vision_config.image_size
    try:
        shortest = _side(told["size"], "shortest_edge") if told.get("do_resize", True) else side
        mode = _RESAMPLING[told.get("resample", 3)]
        return Preparation(
            shortest=shortest, side=side, mode=mode, mean=tuple(told["image_mean"]), std=tuple(told["image_std"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be followed ({error!r}): {json.dumps(told)[:300]}") from error


def _side(told: Any, name: str) -> int:
    return told if isinstance(told, int) else told[name]
