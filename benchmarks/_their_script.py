"""Runs a training script of others as it is, in this process: `python _their_script.py [--free-encoders] SCRIPT FLAGS`.

Where torchvision cannot be imported, a stand-in for the few transforms that diffusers' examples use takes its place:
the same work on the same PIL pictures. With `--free-encoders`, the autoencoder and the text encoder give what they gave
for the first batch again and again, so that the step costs what it would if encodings were kept.
"""

from __future__ import annotations

import importlib.util
import random
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Compose:
    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


class Resize:
    """The shorter side to ``size``."""

    def __init__(self, size: int, interpolation: Image.Resampling) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.size / min(image.size)
        width, height = (max(self.size, int(side * scale)) for side in image.size)
        return image.resize((width, height), self.interpolation)


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def place(self, room: int) -> int:
        return random.randint(0, room)

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (self.place(side - self.size) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class CenterCrop(RandomCrop):
    def place(self, room: int) -> int:
        return room // 2


class RandomHorizontalFlip:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


class ToTensor:
    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: list[float], deviation: list[float]) -> None:
        self.mean, self.deviation = mean[0], deviation[0]

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.deviation


def Lambda(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function


def stand_in() -> types.ModuleType:
    """A module `torchvision` that has the transforms above and nothing else."""
    module, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    steps = (Compose, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize)
    for step in steps:
        setattr(transforms, step.__name__, step)
    transforms.Lambda = Lambda  # type: ignore[attr-defined]
    transforms.InterpolationMode = types.SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR)  # type: ignore[attr-defined]
    module.transforms = transforms  # type: ignore[attr-defined]
    return module


def free(cls: Any, method: str) -> None:
    """Have a method of a class compute once, and return that ever after."""
    compute, kept = getattr(cls, method), []

    def once(self: Any, *inputs: Any, **named: Any) -> Any:
        if not kept:
            kept.append(compute(self, *inputs, **named))
        return kept[0]

    setattr(cls, method, once)


def main() -> None:
    _, *flags = sys.argv
    # those that look for torchvision do so before there is a stand-in
    import datasets  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    if flags[0] == "--free-encoders":
        flags = flags[1:]
        free(AutoencoderKL, "encode")
        free(CLIPTextModel, "forward")
    if importlib.util.find_spec("torchvision") is None:
        module = stand_in()
        sys.modules |= {"torchvision": module, "torchvision.transforms": module.transforms}
    sys.argv = flags
    runpy.run_path(flags[0], run_name="__main__")


if __name__ == "__main__":
    main()
