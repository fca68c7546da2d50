"""Pictures of every kind to tensors, beside what Pillow says of them, and their sizes from their headers alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made_png import png, png_chunk
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_folders import picture, put
from PIL import Image

from ldm.data.decode import decode, stored_size
from ldm.data.example import BadExample

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # of a bomb
RED = (200, 30, 20)
WIDTH, HEIGHT = 24, 16
PLAIN = picture(5, (WIDTH, HEIGHT))
CLEAR = picture(6, (WIDTH, HEIGHT)).convert("L")


def held(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def translucent(mode: str) -> Image.Image:
    found = PLAIN.convert(mode)
    found.putalpha(CLEAR)
    return found


def over(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Porter and Duff's "over", in numbers."""
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + np.array(colour) * (1 - alpha)


def palette_with_a_clear_colour() -> bytes:
    return held(PLAIN.quantize(16), "PNG", transparency=3)


def sixteen_bits() -> bytes:
    return held(Image.fromarray(np.asarray(PLAIN.convert("L")).astype(np.uint16) * 257), "PNG")


CASES = {
    "RGB": (held(PLAIN, "PNG"), np.asarray(PLAIN)),
    "grey": (held(PLAIN.convert("L"), "PNG"), np.asarray(PLAIN.convert("L").convert("RGB"))),
    "RGBA": (held(translucent("RGB"), "PNG"), over(translucent("RGB"), RED)),
    "LA": (held(translucent("L"), "PNG"), over(translucent("L"), RED)),
    "palette": (held(PLAIN.quantize(16), "PNG"), np.asarray(PLAIN.quantize(16).convert("RGB"))),
    "16 bits": (sixteen_bits(), np.asarray(PLAIN.convert("L").convert("RGB"))),
    "CMYK": (held(PLAIN.convert("CMYK"), "TIFF"), np.asarray(PLAIN.convert("CMYK").convert("RGB"))),
    "one bit": (held(PLAIN.convert("1"), "PNG"), np.asarray(PLAIN.convert("1").convert("RGB"))),
    "WebP with alpha": (held(translucent("RGB"), "WEBP", lossless=True, exact=True), over(translucent("RGB"), RED)),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_of_pixel(kind: str) -> None:
    stored, expected = CASES[kind]
    image, original = decode(stored, "key", background=RED)
    assert (image.dtype, image.shape, original) == (torch.uint8, (3, HEIGHT, WIDTH), (HEIGHT, WIDTH))
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 1
    assert image.permute(1, 2, 0).is_contiguous()
    grey, _ = decode(stored, "key", channels=1, background=RED)
    luma = expected @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (1, HEIGHT, WIDTH)
    assert np.abs(grey[0].numpy() - luma).max() <= 1.5


def test_a_palette_with_a_clear_colour_shows_the_background() -> None:
    stored = palette_with_a_clear_colour()
    image, _ = decode(stored, "key", background=RED)
    clear = torch.from_numpy(np.asarray(Image.open(io.BytesIO(stored))) == 3)
    assert clear.any()
    assert (torch.tensor(RED, dtype=torch.uint8) == image[:, clear].T).all()


def test_a_file_its_bytes_and_an_open_one_are_the_same(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jpg", 7)
    with path.open("rb") as file:
        images = [decode(stored, "key", least=(8, 8)) for stored in (path, path.read_bytes(), file)]
    assert all(torch.equal(image, images[0][0]) and size == images[0][1] for image, size in images)


# ----------------------------------------------------------------------------------------------- sizes


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_upright(kind: str, orientation: int) -> None:
    stored = held(PLAIN, kind, exif=turned(orientation))
    seen = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    image, original = decode(stored, "key")
    assert stored_size(stored, "key") == original == tuple(image.shape[1:]) == seen


def test_sizes_need_no_pixels(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        stored = held(picture(8, (400, 300)), kind, exif=turned(6))
        cut = stored[: len(stored) * 3 // 4]
        with pytest.raises(BadExample, match=r"cut off|is no picture"):
            decode(cut, "key")
        if kind != "WEBP":  # whose reader wants the whole file
            assert stored_size(cut, "key") == (400, 300)


def behind_pixels(stored: bytes, chunk: bytes) -> bytes:
    end = stored.index(b"IEND") - 4
    return stored[:end] + chunk + stored[end:]


def test_a_png_that_says_how_it_lies_behind_its_pixels() -> None:
    exif = png_chunk(b"eXIf", turned(6).tobytes().removeprefix(b"Exif\0\0"))
    stored = behind_pixels(held(PLAIN, "PNG"), exif)
    assert stored_size(stored, "key") == decode(stored, "key")[1] == (WIDTH, HEIGHT)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(8, 300), st.integers(8, 300), st.integers(1, 320), st.integers(1, 320), st.sampled_from([1, 3, 6, 7])
)
def test_a_jpeg_is_decoded_smaller_but_not_too_small(w: int, h: int, least_h: int, least_w: int, lies: int) -> None:
    stored = held(picture(9, (w, h)), "JPEG", quality=95, exif=turned(lies))
    whole, original = decode(stored, "key")
    image, again = decode(stored, "key", least=(least_h, least_w))
    assert again == original == tuple(whole.shape[1:])
    factor = max(k for k in (1, 2, 4, 8) if k == 1 or (original[0] // least_h >= k and original[1] // least_w >= k))
    assert tuple(image.shape[1:]) == (-(-original[0] // factor), -(-original[1] // factor))
    if factor > 1 and min(image.shape[1:]) > 16:  # the same picture, and not one turned or flipped
        smaller = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize(image.shape[:0:-1], Image.Resampling.BOX)
        assert np.abs(np.asarray(smaller).astype(int) - image.permute(1, 2, 0).numpy()).mean() < 6


# --------------------------------------------------------------------------------------------- refusals


def bomb() -> bytes:
    """A PNG that claims 12,000 x 12,000 pixels, with a text behind them for whose sake Pillow decodes them first."""
    return behind_pixels(png((12_000, 12_000, 8, 2), bytes(1000)), png_chunk(b"tEXt", b"Software\0none"))


REFUSED = {
    "is no picture": b"plainly not",
    "is too large|at most": bomb(),
    "3 frames": held(PLAIN, "GIF", save_all=True, append_images=[picture(1, PLAIN.size), picture(2, PLAIN.size)]),
    "32 bits": held(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
    "cannot be read": held(PLAIN, "PNG")[:-60],
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_used_is_named(tmp_path: Path, told: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(REFUSED[told])
    with pytest.raises(BadExample, match=rf"bad\.png.*({told})") as caught:
        decode(path, "its/key")
    assert caught.value.key == "its/key"
    with pytest.raises(BadExample, match=rf"row 7.*({told})"):
        decode(path.read_bytes(), "7", name="row 7")


def test_a_bomb_has_no_size() -> None:
    with pytest.raises(BadExample, match=r"is too large|at most"):
        stored_size(bomb(), "key")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadExample, match="there is no file"):
        decode(tmp_path / "none.png", "key")
