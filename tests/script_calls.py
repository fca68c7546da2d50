"""Scripts and commands, started in this process; what they read and what they wrote."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.images import from_pil

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))  # where a script looks for its neighbours when it is started


def call(name: str, *arguments: str | Path) -> int:
    """Run a script with these arguments; its exit code."""
    return start(importlib.import_module(name).main, f"{name}.py", *arguments)


def start(main: Callable[[], object], name: str, *arguments: str | Path) -> int:
    """Run what a command runs, with these arguments; its exit code."""
    kept, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = kept
    return 0


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shown(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawn(folder: Path) -> list[np.ndarray]:
    return [shown(path) for path in sorted((folder / "samples").iterdir())]


def assert_same(found: list[np.ndarray], expected: list[Image.Image], apart: int = 1) -> None:
    """Alike but for rounding, which may go another way in another batch."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == np.asarray(b).shape
        assert np.abs(a - np.asarray(b)).max() <= apart


def picture(path: Path, width: int = 32, height: int = 32, seed: int = 0) -> torch.Tensor:
    """Write a colourful picture; (3, H, W) in -1..1."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return from_pil(image)


def hole(path: Path, width: int = 32, height: int = 32) -> torch.Tensor:
    """Write a mask whose left half is white; (1, H, W), 1 where to draw."""
    white = np.zeros((height, width), dtype=np.uint8)
    white[:, : width // 2] = 255
    Image.fromarray(white).save(path)
    return torch.from_numpy(white)[None] / 255
