"""Pictures as tensors, as bytes, as sheets and as files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ldm.errors import UserError
from ldm.images import FORMATS, check_folder, check_writable, grid, save_grid, save_image, to_bytes, to_pil, to_signed

SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def random_bytes(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def noise_image() -> Image.Image:
    return to_pil(to_signed(random_bytes((1, 3, 16, 16), 0)))[0]


# ----------------------------------------------------------------------- tensors and bytes


def test_every_byte_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    signed = to_signed(every)
    assert (signed.dtype, signed.min(), signed.max()) == (torch.float32, -1, 1)
    assert torch.equal(to_bytes(signed), every)
    assert (signed.diff() > 0).all()


@given(st.lists(st.floats(-4, 4, width=32), min_size=1))
def test_rounding_is_to_the_nearest_byte_and_beyond_the_range_clamped(values: list[float]) -> None:
    signed = torch.tensor(values)
    back = to_signed(to_bytes(signed))
    assert (back - signed.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_rounded_in_float32(dtype: torch.dtype) -> None:
    signed = torch.linspace(-1, 1, 301).to(dtype)
    assert torch.equal(to_bytes(signed), to_bytes(signed.float()))


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32))
def test_pil_images_have_the_same_bytes(shape: tuple[int, int, int, int], seed: int) -> None:
    expected = random_bytes(shape, seed)
    images = to_pil(to_signed(expected))
    assert [i.mode for i in images] == ["L" if shape[1] == 1 else "RGB"] * shape[0]
    shown = np.stack([np.asarray(i).reshape(*shape[2:], shape[1]) for i in images])
    assert np.array_equal(shown, expected.permute(0, 2, 3, 1).numpy())


# ------------------------------------------------------------------------------------ sheets


@settings(deadline=None)
@given(SHAPES, st.integers(1, 5), st.integers(0, 3))
def test_every_picture_lies_in_its_cell_and_the_rest_is_white(
    shape: tuple[int, int, int, int], columns: int, border: int
) -> None:
    count, channels, height, width = shape
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1  # below 0: never white
    sheet = grid(images, columns, border)
    rows = -(-count // columns)
    assert sheet.shape == (channels, border + rows * (height + border), border + columns * (width + border))
    left = sheet.clone()
    for k, image in enumerate(images):
        row, column = divmod(k, columns)
        top, start = border + row * (height + border), border + column * (width + border)
        cell = (..., slice(top, top + height), slice(start, start + width))
        assert torch.equal(sheet[cell], image)
        left[cell] = 1
    assert (left == 1).all()


def test_a_sheet_is_enlarged_without_smoothing(tmp_path: Path) -> None:
    images = to_signed(random_bytes((3, 1, 4, 5), 1))
    save_grid(images, tmp_path / "sheet.png", columns=2, scale=3)
    shown = np.asarray(Image.open(tmp_path / "sheet.png"))
    plain = np.asarray(to_pil(grid(images, 2)[None])[0])
    assert np.array_equal(shown, plain.repeat(3, axis=0).repeat(3, axis=1))


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ending", [*FORMATS, ".PNG"])
def test_the_format_follows_the_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new folder" / f"picture{ending}"
    image = noise_image()
    save_image(image, path)
    found = Image.open(path)
    assert (found.format, found.size) == (FORMATS[ending.lower()], image.size)
    if ending.lower() == ".png":
        assert found.tobytes() == image.tobytes()
    assert os.listdir(path.parent) == [path.name]


def test_a_picture_that_is_replaced_is_never_half_there(tmp_path: Path) -> None:
    # What the name stood for stays whole for whoever has it open: the file is replaced, not written over.
    path = tmp_path / "picture.png"
    save_image(noise_image(), path)
    with path.open("rb") as before:
        old = path.read_bytes()
        save_image(Image.new("L", (3, 3)), path)
        assert before.read() == old
    assert Image.open(path).size == (3, 3)


class Breaking(Image.Image):
    """Writes a part and fails, as on a full disk."""

    def save(self, fp: object, format: str | None = None, **params: object) -> None:
        assert isinstance(fp, Path)
        fp.write_bytes(b"\x89PNG half of a picture")
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_image(noise_image(), path)
    old = path.read_bytes()
    with pytest.raises(UserError, match=r"picture\.png cannot be written: .*No space left"):
        save_image(Breaking(), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["picture.png"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file, folder = tmp_path / "file.png", tmp_path / "folder.png"
    file.touch()
    folder.mkdir()
    faults = {
        tmp_path / "a.bmp": r"unknown picture format '\.bmp'",
        tmp_path / "a": "unknown picture format ''",
        folder: "it is a folder",
        tmp_path / "missing" / "a.png": "there is no folder .*missing",
        file / "a.png": r"file\.png is a file",
    }
    before = sorted(tmp_path.rglob("*"))
    for path, fault in faults.items():
        with pytest.raises(UserError, match=fault):
            check_writable(path)
    with pytest.raises(UserError, match=r"file\.png is a file"):
        check_folder(file / "deep" / "deeper")
    check_writable(tmp_path / "a.jpg")
    check_writable(file)  # may be replaced
    check_folder(tmp_path / "to be" / "made")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for check, path in ((check_writable, tmp_path / "a.png"), (check_folder, tmp_path / "deep")):
        with pytest.raises(UserError, match="no permission to write"):
            check(path)
