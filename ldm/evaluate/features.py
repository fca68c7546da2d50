"""Networks that describe pictures, so that sets of pictures can be compared in their features.

A distance depends on the network. So each has a name with a hash of its weights and of how it is given pictures, and
numbers are only ever set beside others of the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import UserError, choose
from ldm.evaluate.fitting import check_pictures, to_channels
from ldm.images import to_signed
from ldm.models.judge import DigitJudge
from ldm.weights.fingerprint import fingerprint

HOW = "KIND:PLACE, such as judge:FILE, clip:FOLDER, inception:FILE or onnx:FILE"


class Features(Protocol):
    """A network that describes pictures.

    Attributes:
        name: what to call its features: the kind and a short hash of all that they depend on.
        size: how many numbers describe a picture.
    """

    name: str
    size: int

    def describe(self, images: Tensor) -> Tensor:
        """The features of pictures.

        Args:
            images: uint8 (B, C, H, W), on any device; C is 1 or 3, and is brought to what the network reads.

        Returns:
            float32 (B, size), on the CPU.

        Raises:
            UserError: the network cannot read such pictures.
        """
        ...


class JudgeFeatures:
    """The features of a judge of digits (``scripts/train_judge.py``), and the class that they speak for.

    Attributes:
        classes: how many it tells apart.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._judge = DigitJudge.load(path).to(device)
        self._device = device
        self.name, self.size = named(self._judge.name, [path]), self._judge.config.features
        self.classes = self._judge.config.classes

    def describe(self, images: Tensor) -> Tensor:
        check_pictures(images)
        return self._judge.describe(to_signed(to_channels(images, 1).to(self._device))).cpu()

    @torch.inference_mode()
    def classify(self, features: Tensor) -> Tensor:
        """The class (N,) int64 of pictures by their features (N, size)."""
        return self._judge.head(features.to(self._device)).argmax(1).cpu()


def named(kind: str, files: Sequence[Path], told: str = "") -> str:
    """The name of a network's features.

    Args:
        kind: what it is.
        files: that it was read from, in an order of their own.
        told: all else that its features depend on.
    """
    digest = hashlib.sha256(" ".join([told, *map(fingerprint, files)]).encode())
    return f"{kind} {digest.hexdigest()[:8]}"


def _judge(place: str, device: torch.device) -> Features:
    return JudgeFeatures(Path(place), device)


def _clip(place: str, device: torch.device) -> Features:
    from ldm.evaluate.clip_folder import ClipFolder

    return ClipFolder(Path(place), device)


def _inception(place: str, device: torch.device) -> Features:
    from ldm.evaluate.inception import InceptionFeatures

    return InceptionFeatures(Path(place), device)


def _onnx(place: str, device: torch.device) -> Features:
    from ldm.evaluate.onnx_network import OnnxFeatures, parse

    return OnnxFeatures(*parse(place))  # onnxruntime as it is installed from PyPI computes on the CPU


FEATURES: dict[str, Callable[[str, torch.device], Features]] = {
    "judge": _judge,
    "clip": _clip,
    "inception": _inception,
    "onnx": _onnx,
}


def open_features(told: str, device: torch.device) -> Features:
    """Open a network of features.

    Args:
        told: ``KIND:PLACE``, the kind from ``FEATURES``.
        device: where it computes.

    Raises:
        UserError: it is told in another form, or cannot be opened.
    """
    kind, colon, place = told.partition(":")
    if not colon or not place:
        raise UserError(f"features {told!r}: expected {HOW}")
    return FEATURES[choose(kind, FEATURES, "kind of features")](place, device)
