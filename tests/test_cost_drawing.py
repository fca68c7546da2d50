"""What a picture takes on paper, against what is metered while it is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import written

import ldm
from ldm.cost.architecture import of_model
from ldm.cost.drawing import count_drawing
from ldm.weights.opening import Loading


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_receipt_of_a_drawing_is_what_was_counted(tmp_path: Path, guidance: float) -> None:
    """Euler asks once for each of its steps."""
    folder = written("text", tmp_path / "model")
    counted = count_drawing(of_model(str(folder), Loading()), 32, asks=3, guided=guidance != 1)
    studio = ldm.load(folder, device="cpu", dtype="fp32")
    (picture,) = studio("two", sampler="euler", steps=3, guidance=guidance, height=32, width=32)
    assert list(counted) == ["U-Net", "VAE decoder", "text encoder"]
    assert picture.info["record"].cost.flops == sum(counted.values())


def test_a_call_of_a_batch(tmp_path: Path) -> None:
    shape = of_model(str(written("text", tmp_path / "model")), Loading())
    one, several = count_drawing(shape, 32), count_drawing(shape, 32, batch=5)
    assert several == {name: 5 * flops for name, flops in one.items()}
