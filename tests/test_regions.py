"""Fitting pictures, masks, outpainting and the masked region: properties that hold for every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from ldm.errors import UserError
from ldm.regions import (
    FITS,
    Box,
    fit_image,
    latent_mask,
    masked_region,
    pad_for_outpainting,
    paste_back,
    prepare_mask,
)

SIDES = st.integers(1, 40)
MODES = st.sampled_from(["L", "RGB"])


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image)


@st.composite
def masks(draw: st.DrawFn) -> Image.Image:
    """A mask that is not empty: some rectangles of some greys."""
    width, height = draw(SIDES), draw(SIDES)
    values = np.zeros((height, width), dtype=np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        values[top:bottom, left:right] = draw(st.integers(1, 255))
    return Image.fromarray(values)


@given(SIDES, SIDES, SIDES, SIDES, MODES, st.sampled_from(FITS))
def test_fitted_pictures_have_the_size(w: int, h: int, width: int, height: int, kind: str, mode: str) -> None:
    fitted = fit_image(noise(w, h, kind), width, height, mode)
    assert (fitted.size, fitted.mode) == ((width, height), kind)


@pytest.mark.parametrize("mode", FITS)
def test_a_picture_of_the_size_stays_as_it_is(mode: str) -> None:
    image = noise(9, 7)
    assert pixels(fit_image(image, 9, 7, mode)).tolist() == pixels(image).tolist()


def test_stretching_is_lanczos() -> None:
    image = noise(20, 10)
    assert fit_image(image, 31, 8).tobytes() == image.resize((31, 8), Image.Resampling.LANCZOS).tobytes()


def test_cropping_keeps_the_middle_and_filling_keeps_it_all() -> None:
    """A wide picture of three upright stripes, the outer ones as wide as the middle one is."""
    image = Image.fromarray(np.repeat(np.array([[10, 120, 240]], dtype=np.uint8), 8, axis=1).repeat(8, axis=0))
    assert image.size == (24, 8)
    cropped = pixels(fit_image(image, 8, 8, "crop"))
    assert abs(cropped.astype(int)[:, 1:-1] - 120).max() == 0  # the very middle stripe, unscaled
    filled = pixels(fit_image(image, 24, 24, "fill"))
    assert (filled[8:16] == pixels(image)).all()
    assert (filled[:8] == pixels(image)[:1]).all()
    assert (filled[16:] == pixels(image)[-1:]).all()


@given(SIDES, SIDES, st.integers(8, 40), st.integers(8, 40))
def test_proportions_stay_within_a_pixel(w: int, h: int, width: int, height: int) -> None:
    """A picture whose left edge alone is white, fitted by filling, is white on the left only as far as it is wide."""
    assume(w >= 4)
    assume(w / h <= width / height)  # room on the left and right
    values = np.zeros((h, w), dtype=np.uint8)
    values[:, 0] = 255
    filled = pixels(fit_image(Image.fromarray(values), width, height, "fill"))
    drawn = max(1, round(w * height / h))
    left = (width - drawn) // 2
    assert (filled[:, : left + 1] == filled[:, :1]).all()


def test_masks_in_order_fit_invert_threshold_blur() -> None:
    mask = Image.fromarray(np.array([[0, 100, 200, 255]], dtype=np.uint8).repeat(4, axis=0))
    assert pixels(prepare_mask(mask, 4, 4))[0].tolist() == [0, 100, 200, 255]
    assert pixels(prepare_mask(mask, 4, 4, invert=True))[0].tolist() == [255, 155, 55, 0]
    assert pixels(prepare_mask(mask, 4, 4, threshold=0.5))[0].tolist() == [0, 0, 255, 255]
    assert pixels(prepare_mask(mask, 4, 4, invert=True, threshold=0.5))[0].tolist() == [255, 255, 0, 0]
    blurred = prepare_mask(mask, 4, 4, threshold=0.5, blur=2)
    sharp = prepare_mask(mask, 4, 4, threshold=0.5)
    assert blurred.tobytes() == sharp.filter(ImageFilter.GaussianBlur(2)).tobytes()
    assert prepare_mask(mask.convert("RGB"), 8, 6).size == (8, 6)


@pytest.mark.parametrize("blur", [1.0, 3.0, 6.0])
def test_blur_is_a_gaussian_of_so_many_pixels(blur: float) -> None:
    """The slope of a blurred edge has the standard deviation that was asked for."""
    edge = Image.fromarray(np.repeat([[0] * 40 + [255] * 40], 80, axis=0).astype(np.uint8))
    slope = np.diff(pixels(prepare_mask(edge, 80, 80, blur=blur))[40].astype(float)) / 255
    places = np.arange(79) + 0.5
    mean = (slope * places).sum()
    assert mean == pytest.approx(39.5, abs=0.2)
    assert np.sqrt((slope * (places - mean) ** 2).sum()) == pytest.approx(blur, rel=0.12)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 8]), st.integers(0, 99))
def test_a_latent_mask_is_the_mean_over_its_pixels(w: int, h: int, factor: int, seed: int) -> None:
    mask = noise(w * factor, h * factor, "L", seed)
    found = latent_mask(mask, factor)
    expected = pixels(mask).reshape(h, factor, w, factor).mean((1, 3)) / 255
    assert found.shape == (1, 1, h, w)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


@given(SIDES, SIDES, st.tuples(*[st.integers(0, 20)] * 4), MODES, st.sampled_from(["edge", "noise"]))
def test_outpainting_keeps_the_picture_and_masks_the_rest(
    w: int, h: int, sides: tuple[int, int, int, int], kind: str, fill: str
) -> None:
    assume(any(sides))
    left, top, right, bottom = sides
    image = noise(w, h, kind)
    padded, mask = pad_for_outpainting(image, *sides, fill=fill, seed=3)
    assert padded.size == mask.size == (w + left + right, h + top + bottom)
    inside = (slice(top, top + h), slice(left, left + w))
    assert (pixels(padded)[inside] == pixels(image)).all()
    assert (pixels(mask)[inside] == 0).all()
    assert (pixels(mask) == 255).sum() == padded.width * padded.height - w * h
    if fill == "edge":
        pads = [(top, bottom), (left, right)] + [(0, 0)] * (kind == "RGB")
        assert (pixels(padded) == np.pad(pixels(image), pads, mode="edge")).all()


def test_noise_for_outpainting_is_like_the_picture_and_follows_its_seed() -> None:
    image = Image.fromarray(
        np.clip(np.random.default_rng(0).normal((60, 120, 200), 12, (50, 50, 3)), 0, 255).astype("u1")
    )
    padded, mask = pad_for_outpainting(image, 50, 50, 50, 50, "noise", seed=1)
    room = pixels(padded)[pixels(mask) == 255].astype(float)
    np.testing.assert_allclose(room.mean(0), pixels(image).mean((0, 1)), atol=1)
    np.testing.assert_allclose(room.std(0), pixels(image).std((0, 1)), atol=1)
    assert padded.tobytes() == pad_for_outpainting(image, 50, 50, 50, 50, "noise", seed=1)[0].tobytes()
    assert padded.tobytes() != pad_for_outpainting(image, 50, 50, 50, 50, "noise", seed=2)[0].tobytes()


@given(masks(), st.integers(0, 20), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_the_region_holds_the_mask_inside_the_picture(mask: Image.Image, padding: int, width: int, height: int) -> None:
    box = masked_region(mask, padding, width, height)
    assert 0 <= box.left < box.right <= mask.width
    assert 0 <= box.top < box.bottom <= mask.height
    outside = pixels(mask).copy()
    outside[box.top : box.bottom, box.left : box.right] = 0
    assert not outside.any()
    rows, columns = pixels(mask).nonzero()
    assert box.left <= max(columns.min() - padding, 0)
    assert box.right >= min(columns.max() + 1 + padding, mask.width)
    assert box.top <= max(rows.min() - padding, 0)
    assert box.bottom >= min(rows.max() + 1 + padding, mask.height)


@given(masks(), st.integers(0, 20), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_the_region_has_the_proportions_asked_for(mask: Image.Image, padding: int, width: int, height: int) -> None:
    """To within a pixel on one side, or else the side that should be longer is that of the picture."""
    wide, high = masked_region(mask, padding, width, height).size
    if abs(wide - high * width / height) > 1 and abs(high - wide * height / width) > 1:
        assert wide == mask.width if wide < high * width / height else high == mask.height


def test_the_region_lies_evenly_around_the_mask_where_there_is_room() -> None:
    mask = Image.new("L", (200, 200))
    mask.paste(255, (90, 95, 110, 105))
    assert masked_region(mask, 10, 64, 64) == Box(80, 80, 120, 120)
    assert masked_region(mask, 0, 64, 32) == Box(90, 95, 110, 105)
    mask.paste(255, (0, 95, 2, 105))
    assert masked_region(mask, 8, 512, 512) == Box(0, 41, 118, 159)


@given(masks(), MODES, st.integers(0, 9), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_pasting_back_leaves_what_is_not_masked(mask: Image.Image, kind: str, pad: int, w: int, h: int) -> None:
    original, drawn = noise(*mask.size, kind, 1), noise(w, h, kind, 2)
    before = original.tobytes()
    box = masked_region(mask, pad, w, h)
    result = paste_back(original, drawn, box, mask)
    old, new, share = pixels(original).astype(int), pixels(result).astype(int), pixels(mask)
    assert original.tobytes() == before
    assert (result.size, result.mode) == (original.size, kind)
    assert (new[share == 0] == old[share == 0]).all()
    fitted = np.zeros_like(old)
    fitted[box.top : box.bottom, box.left : box.right] = pixels(drawn.resize(box.size, Image.Resampling.LANCZOS))
    assert (new[share == 255] == fitted[share == 255]).all()
    assert (new >= np.minimum(old, fitted)).all()
    assert (new <= np.maximum(old, fitted)).all()


def test_half_a_mask_is_half_of_each() -> None:
    original, drawn = Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 200)
    result = paste_back(original, drawn, Box(0, 0, 4, 4), Image.new("L", (4, 4), 51))
    assert set(pixels(result).flatten()) == {40}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_image(noise(4, 4), 8, 8, "stretch"), "unknown way to fit a picture 'stretch'"),
        (lambda: fit_image(noise(4, 4), 0, 8), "cannot be brought to 0x8"),
        (lambda: fit_image(noise(4, 4).convert("CMYK"), 8, 8), "mode CMYK must be converted to L or RGB"),
        (lambda: prepare_mask(noise(4, 4), 4, 4, threshold=2), "threshold must be between 0 and 1, got 2"),
        (lambda: prepare_mask(noise(4, 4), 4, 4, blur=-1), "blur must be 0 or more pixels, got -1"),
        (lambda: latent_mask(noise(12, 8, "L"), 8), "a mask of 12x8 cannot be brought to latents"),
        (lambda: pad_for_outpainting(noise(4, 4), 0, 0, 0, 0), r"some on one, got \(0, 0, 0, 0\)"),
        (lambda: pad_for_outpainting(noise(4, 4), 8, 0, -1, 0), r"got \(8, 0, -1, 0\)"),
        (lambda: pad_for_outpainting(noise(4, 4), 8, 0, 0, 0, "mirror"), "unknown filling for outpainting 'mirror'"),
        (lambda: masked_region(Image.new("L", (4, 4)), 0, 8, 8), "the mask is empty"),
        (lambda: masked_region(Image.new("L", (4, 4), 9), -1, 8, 8), "got -1 and 8x8"),
        (lambda: paste_back(noise(4, 4), noise(4, 4), Box(0, 0, 5, 4), Image.new("L", (4, 4))), "does not lie inside"),
        (lambda: paste_back(noise(4, 4), noise(4, 4), Box(0, 0, 4, 4), Image.new("L", (5, 4))), "do not fit a picture"),
    ],
)
def test_what_cannot_be(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # pyright: ignore[reportCallIssue]


def test_a_mask_of_latents_is_a_float_tensor() -> None:
    assert latent_mask(Image.new("L", (8, 8), 255), 8).dtype == torch.float32
