"""Pictures on the way: to any caller, and in a file on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ldm
from ldm import generate_command
from ldm.batch import Progress
from ldm.cli import app
from ldm.diffusion.samplers import Step
from ldm.errors import UserError
from ldm.studio import Studio


@pytest.fixture(scope="module")
def studio() -> Studio:
    return ldm.load(device="cpu", dtype="fp32")


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float()


def likeness(one: Image.Image, other: Image.Image) -> float:
    """As a preview has them: one colour for each latent."""
    one, other = one.reduce(4), other.reduce(4)
    return float(torch.corrcoef(torch.stack([pixels(one), pixels(other)]))[0, 1])


def test_a_caller_is_shown_every_step(studio: Studio) -> None:
    seen: list[tuple[int, int, Image.Image]] = []

    def look(done: int, total: int, step: Step) -> None:
        seen.append((done, total, studio.preview.pictures(step.x0)[0]))

    image = studio("a handwritten seven", seed=3, steps=8, progress=look)[0]
    assert [(done, total) for done, total, _ in seen] == [(k, 8) for k in range(1, 9)]
    assert all(picture.size == image.size for _, _, picture in seen)
    assert likeness(seen[-1][2], image) > 0.8
    assert likeness(seen[-1][2], image) > likeness(seen[0][2], image)


def test_looking_changes_nothing(studio: Studio) -> None:
    look: Progress = lambda done, total, step: studio.preview.pictures(step.x0)  # noqa: E731
    plain = studio("two", seed=3, steps=4)[0]
    assert studio("two", seed=3, steps=4, progress=look)[0].tobytes() == plain.tobytes()


def test_the_second_larger_pass_is_shown_too(studio: Studio) -> None:
    sizes = []

    def look(done: int, total: int, step: Step) -> None:
        sizes.append(studio.preview.pictures(step.x0)[0].size)

    studio("two", steps=4, hires_scale=2, hires_strength=0.5, progress=look)
    assert sizes == [(32, 32)] * 4 + [(64, 64)] * 2


def test_the_command_line_rewrites_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Image.Image] = []
    save = generate_command.save_image

    def keep(image: Image.Image, path: Path, *rest: Any, **more: Any) -> None:
        save(image, path, *rest, **more)
        if path.name == "now.png":
            written.append(Image.open(shutil.copy(path, tmp_path / f"{len(written)}.png")))

    monkeypatch.setattr("ldm.generate_command.save_image", keep)
    out = tmp_path / "out.png"
    common = ["generate", "a handwritten seven", "--steps", "5", "--seed", "3", "-o", str(out), "--dtype", "fp32"]
    app([*common, "--preview", str(tmp_path / "now.png")], standalone_mode=False)
    assert len(written) == 5
    assert likeness(written[-1], Image.open(out)) > 0.8


def test_several_at_once_are_a_sheet(tmp_path: Path) -> None:
    common = ["generate", "two", "--count", "3", "--steps", "2", "-o", str(tmp_path / "out.png"), "--dtype", "bf16"]
    app([*common, "--preview", str(tmp_path / "now.png")], standalone_mode=False)
    assert Image.open(tmp_path / "now.png").width >= 64


def test_a_preview_that_cannot_be_written_is_told_before_drawing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture format"):
        app(["generate", "two", "-o", str(tmp_path / "out.png"), "--preview", "now.txt"], standalone_mode=False)
    assert not (tmp_path / "out.png").exists()
