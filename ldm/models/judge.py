"""A judge of digits: which digit a picture shows, and features in which two sets of pictures can be compared.

The network is small on purpose: it is trained in minutes on two cores, and its file is kept under a megabyte.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.judge_file import read_judge, write_judge
from ldm.schema import Settings

_SIDE = 28
_KIND = "digit judge"


class JudgeConfig(Settings):
    """Sizes of a ``DigitJudge``: channels of its three stages, features, and classes."""

    channels: tuple[int, int, int] = (24, 48, 96)
    features: int = 128
    classes: int = 10


class DigitJudge(nn.Module):
    """A convolutional classifier of digits.

    Attributes:
        name: what to call its features in a report.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config or JudgeConfig()
        self.name = f"digit judge, {self.config.features} features"
        first, second, third = self.config.channels
        self.trunk = nn.Sequential(
            *_convolution(1, first, 3),
            *_convolution(first, first, 3, stride=2),  # (B, first, 14, 14)
            *_convolution(first, second, 3),
            *_convolution(second, second, 3, stride=2),  # (B, second, 7, 7)
            *_convolution(second, third, 3),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * third, self.config.features, bias=False),
            nn.BatchNorm1d(self.config.features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.config.features, self.config.classes)

    def features(self, images: Tensor) -> Tensor:
        """The layer before the classes.

        Args:
            images: (B, 1, H, W) in -1..1; larger than 28 x 28, the centre counts.

        Returns:
            (B, 128), not negative.
        """
        return self.trunk(_crop_to_digit(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of pictures (B, 1, H, W) in -1..1."""
        return self.head(self.features(images))

    @torch.inference_mode()
    def classify(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The digit (B,) int64 that each picture (B, 1, H, W) in -1..1 shows."""
        return torch.cat([self(batch).argmax(1) for batch in images.split(batch_size)])

    @torch.inference_mode()
    def describe(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The features (B, 128) of many pictures (B, 1, H, W) in -1..1, a batch at a time."""
        return torch.cat([self.features(batch) for batch in images.split(batch_size)])

    def save(self, path: str | Path) -> None:
        """Write weights and sizes to one safetensors file; folders are made as needed."""
        write_judge(Path(path), self, self.config, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> DigitJudge:
        """Read a judge that ``save`` wrote, ready to judge.

        Raises:
            UserError: the file is missing, damaged, or not a judge.
        """
        config, tensors = read_judge(Path(path), _KIND, "scripts/train_judge.py")
        judge = cls(JudgeConfig.model_validate_json(config))
        judge.load_state_dict(tensors)
        return judge.eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _crop_to_digit(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if images.ndim != 4 or images.shape[1] != 1 or min(height, width) < _SIDE:
        found = f"the judge of digits was given pictures of shape {tuple(images.shape)}"
        raise UserError(f"{found}, expected (B, 1, H, W) with H and W of {_SIDE} or more")
    top, left = (height - _SIDE) // 2, (width - _SIDE) // 2
    return images[..., top : top + _SIDE, left : left + _SIDE]
