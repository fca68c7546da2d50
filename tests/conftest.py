"""What all tests share: one thread, because several test processes on few cores slow each other down; model folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import MODELS, written

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind of model, not to be changed."""
    place = tmp_path_factory.mktemp("models")
    return {kind: written(kind, place / kind) for kind in MODELS}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / "model"))
