"""A judge of composed pictures: which thing a picture shows, and in which style it is drawn.

It looks at one thing at a time, which should fill most of the square that it is given: a whole picture of one thing,
or the part of a picture that holds one of several. One trunk (residual blocks, He et al. 2016, arXiv:1512.03385) has
a head for each question. What it can tell apart is in its file, by name.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.judge_file import read_judge, write_judge
from ldm.schema import Settings

_KIND = "picture judge"


class PictureJudgeConfig(Settings):
    """What a ``PictureJudge`` tells apart, and how large it is.

    Attributes:
        things: names of what it knows, such as code points of emoji.
        styles: names of the styles that it knows.
        side: pictures are brought to this height and width, in pixels.
        channels: of its stages, each at half the resolution of the last; the first is at half that of the picture.
    """

    things: tuple[str, ...] = Field(min_length=2)
    styles: tuple[str, ...] = Field(min_length=2)
    side: int = Field(default=96, ge=32, multiple_of=16)
    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (32, 64, 128, 256)


class _Block(nn.Module):
    """Two convolutions beside an identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.beside = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if (inputs, stride) != (outputs, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        beside = x if self.beside is None else self.beside(x)
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(beside + self.second_norm(self.second(x)))


class PictureJudge(nn.Module):
    """A classifier of things and of styles.

    Args:
        config: what it tells apart, and its size.
    """

    def __init__(self, config: PictureJudgeConfig) -> None:
        super().__init__()
        self.config = config
        first, *rest = config.channels
        self.stem = nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = [_Block(first, first, 1)]
        for width, following in zip(config.channels, rest, strict=False):
            blocks += [_Block(width, following, 2), _Block(following, following, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.thing = nn.Linear(config.channels[-1], len(config.things))
        self.style = nn.Linear(config.channels[-1], len(config.styles))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What pictures show.

        Args:
            images: (B, 3, side, side) in -1..1; ``fit`` brings others to this size.

        Returns:
            Logits of things (B, things) and of styles (B, styles).
        """
        x = F.relu(self.stem_norm(self.stem(images)))  # (B, C, side / 2, side / 2)
        x = self.blocks(x).mean((2, 3))  # (B, C')
        return self.thing(x), self.style(x)

    def fit(self, images: Tensor) -> Tensor:
        """Square pictures (B, 3, H, H) in -1..1 at the size that it reads, smoothed where they shrink."""
        side = self.config.side
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise UserError(f"the judge of pictures was given {tuple(images.shape)}, expected (B, 3, H, H)")
        if images.shape[-1] == side:
            return images
        return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)

    @torch.inference_mode()
    def look(self, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """Logits of things and styles of many square pictures (N, 3, H, H) in -1..1, a batch at a time, on the CPU."""
        device = self.stem.weight.device
        found = [self(self.fit(batch.to(device))) for batch in images.split(batch_size)]
        things, styles = zip(*found, strict=True)
        return torch.cat(things).float().cpu(), torch.cat(styles).float().cpu()

    def save(self, path: Path) -> None:
        """Write weights, names and sizes to one safetensors file; folders are made as needed."""
        write_judge(path, self, self.config, _KIND)

    @classmethod
    def load(cls, path: Path) -> PictureJudge:
        """Read a judge that ``save`` wrote, ready to judge.

        Raises:
            UserError: the file is missing, damaged, or no judge of pictures.
        """
        config, tensors = read_judge(path, _KIND, "scripts/train_starter_judge.py")
        judge = cls(PictureJudgeConfig.model_validate_json(config))
        judge.load_state_dict(tensors)
        return judge.eval().requires_grad_(False)
