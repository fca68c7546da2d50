"""Pictures of others: every kind that can be opened comes out right, every other is refused in one message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hand_made_png import png, png_chunk
from PIL import Image
from random_records import example

from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.read import read_record
from ldm.metadata.record import hash_pixels
from ldm.metadata.show import describe_picture
from ldm.open_picture import open_picture

Picture = Image.Image
ACTIONS: list[Callable[[Path], object]] = [open_picture, read_record, describe_picture]
COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))
SMOOTH = COLOURS.resize((4, 6)).resize((16, 24), Image.Resampling.BICUBIC)


def put(path: Path, image: Picture, **options: object) -> Path:
    image.save(path, **options)
    return path


def far(one: Picture, other: Picture) -> int:
    assert (one.size, one.mode) == (other.size, other.mode)
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


# --------------------------------------------------------------------------------- what is opened


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif", "a.ppm", "a.gif"])
def test_formats_without_loss(tmp_path: Path, name: str) -> None:
    source = COLOURS.quantize(16).convert("RGB") if name == "a.gif" else COLOURS
    path = put(tmp_path / name, source, **({"lossless": True} if name == "a.webp" else {}))
    assert far(open_picture(path), source) == 0
    assert far(open_picture(str(path), "L"), source.convert("L")) == 0


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_exif_says(tmp_path: Path, ending: str, orientation: int) -> None:
    """EXIF 2.32, 4.6.4: where row 0 and column 0 of what is stored lie in what is seen."""
    stored = np.asarray(SMOOTH)
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    path = put(tmp_path / f"a.{ending}", SMOOTH, exif=exif, **options)
    assert far(open_picture(path), Image.fromarray(np.ascontiguousarray(seen))) <= (3 if ending == "jpg" else 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = put(tmp_path / name, Image.fromarray(wide))
    expected = Image.fromarray(np.round(wide / 257).astype(np.uint8))
    assert far(open_picture(path, "L"), expected) == 0
    assert far(open_picture(path), expected.convert("RGB")) == 0


def test_sixteen_bits_big_endian_and_turned(tmp_path: Path) -> None:
    wide = np.arange(0, 65536, 16, dtype=np.uint16).reshape(32, 128)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(tmp_path / "a.tif", Image.fromarray(wide.astype(">u2")), exif=exif)
    assert far(open_picture(path, "L"), Image.fromarray(np.round(wide[::-1].T / 257).astype(np.uint8))) == 0


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png((2, 1, 16, 2), b"\0" + struct.pack(">6H", 0, 32896, 65535, 257, 514, 771)))
    assert np.asarray(open_picture(path)).tolist() == [[[0, 128, 255], [1, 2, 3]]]


def test_sixteen_bits_with_a_transparent_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png((3, 1, 16, 0), b"\0" + struct.pack(">3H", 0, 257, 65535), png_chunk(b"tRNS", b"\x01\x01")))
    assert np.asarray(open_picture(path, background=(9, 8, 7))).tolist() == [[[0, 0, 0], [9, 8, 7], [255, 255, 255]]]


@pytest.mark.parametrize("alpha", [0, 77, 128, 255])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
def test_transparent_parts_show_the_background(tmp_path: Path, alpha: int, background: tuple[int, int, int]) -> None:
    clear = COLOURS.copy()
    clear.putalpha(alpha)
    found = np.asarray(open_picture(put(tmp_path / "a.png", clear), background=background)).astype(float)
    share = alpha / 255
    assert np.abs(found - (np.asarray(COLOURS) * share + np.array(background) * (1 - share))).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palettes_with_transparency(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = put(tmp_path / name, image, transparency=0)
    assert np.asarray(open_picture(path, background=(7, 8, 9))).tolist() == [[[7, 8, 9], [200, 100, 50]]]
    assert np.asarray(open_picture(put(tmp_path / name, image))).tolist() == [[[1, 2, 3], [200, 100, 50]]]


def test_palette_with_a_share_of_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    path = put(tmp_path / "a.png", image, transparency=bytes([51, 255]))
    assert np.asarray(open_picture(path, "L", background=(100, 100, 100))).tolist() == [[80, 80]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK"])
def test_other_colours(tmp_path: Path, mode: str) -> None:
    source = SMOOTH.convert("CMYK" if mode == "CMYK" else "L" if mode == "LA" else mode)
    source = source.convert("LA") if mode == "LA" else source
    path = put(tmp_path / "a.tif", source)
    assert far(open_picture(path), source.convert("RGB")) == 0


def test_cmyk_as_jpeg(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jpg", SMOOTH.convert("CMYK"), quality=100, subsampling=0)
    assert far(open_picture(path), SMOOTH) <= 6


def test_what_is_ours_opens_as_it_was(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp"):
        save_image(COLOURS, tmp_path / name, example())
        assert hash_pixels(open_picture(tmp_path / name)) == hash_pixels(COLOURS)


def test_previews_inside_a_photograph_are_no_animation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    SMOOTH.save(path, format="MPO", save_all=True, append_images=[SMOOTH.resize((4, 4))], quality=100, subsampling=0)
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert far(open_picture(path), SMOOTH) <= 3


# -------------------------------------------------------------------------------- what is refused


def test_moving_pictures(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in (0, 90, 180)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        path = put(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=rf"{name} has 3 frames, .* save one"):
            open_picture(path)
        assert "says nothing" in describe_picture(path)
        assert open_picture(put(path, frames[1], save_all=True)).size == (4, 4)


@pytest.mark.parametrize("array", [np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)])
def test_ranges_that_are_not_known(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"a\.tif has 32 bits per pixel"):
        open_picture(put(tmp_path / "a.tif", Image.fromarray(array)))
