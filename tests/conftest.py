"""What all tests share: one thread, because several test processes on few cores slow each other down; model folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import MODELS, written

torch.set_num_threads(1)

# Files of minutes, which would leave all processes but one idle if they came last: each runs in one process.
LONGEST = (
    *("readme", "notebook", "training_processes", "benchmarks_smoke", "signals", "compare", "fsdp", "recorded"),
    *("evaluate_command", "imports", "compare_families", "fidelity"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; pyproject.toml keeps pytest-xdist from an order of its own."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every kind of model, not to be changed."""
    place = tmp_path_factory.mktemp("models")
    return {kind: written(kind, place / kind) for kind in MODELS}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(whole[kind], tmp_path / "model"))
