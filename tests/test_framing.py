"""Buckets, and pictures cut to them, against Pillow and against what a bucket is said to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from ldm.data.framing import Buckets, Frame, FrameConfig, cut, least_to_decode
from ldm.errors import UserError

sides = st.integers(16, 400)


@given(st.sampled_from([64, 128, 320, 512, 1024]), st.sampled_from([8, 32, 64]), st.floats(1, 4))
def test_shapes_are_what_they_are_said_to_be(side, step, ratio):
    shapes = Buckets(FrameConfig(resolution=side, step=step, max_ratio=ratio)).shapes
    assert (side, side) in shapes
    assert len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert height * width <= side * side
        assert max(height, width) * (min(height, width) + step) > side * side  # no larger one of this length fits
        assert max(height, width) / min(height, width) <= ratio
        assert (width, height) in shapes


def test_sdxl_at_1024_has_the_shapes_that_it_is_known_for():
    """The appendix of Podell et al. 2023 lists these among others."""
    shapes = Buckets(FrameConfig(resolution=1024, step=64, max_ratio=2.5)).shapes
    assert {(1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640), (640, 1536)} <= set(shapes)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=30))
def test_a_picture_goes_to_the_nearest_ratio(sizes):
    buckets = Buckets(FrameConfig(resolution=128, step=16, max_ratio=3))
    found = buckets.assign(torch.tensor(sizes, dtype=torch.int32)).tolist()
    for (height, width), bucket in zip(sizes, found, strict=True):
        distance = [abs(math.log(height / width) - math.log(h / w)) for h, w in buckets.shapes]
        assert distance[bucket] <= min(distance) + 1e-9


def test_of_several_areas_the_largest_that_is_filled():
    buckets = Buckets(FrameConfig(resolution=(128, 64, 256), step=32))
    sizes = torch.tensor([(30, 30), (64, 64), (127, 127), (128, 128), (200, 100), (900, 900)])
    areas = [h * w for h, w in (buckets.shapes[i] for i in buckets.assign(sizes).tolist())]
    assert areas[:4] == [64**2, 64**2, 64**2, 128**2]
    assert 64**2 < areas[4] <= 128**2
    assert areas[5] == 256**2


def test_squares_only():
    buckets = Buckets(FrameConfig(resolution=96, buckets=False, step=32))
    assert buckets.shapes == ((96, 96),)
    assert buckets.assign(torch.tensor([(10, 900), (900, 10)])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 500}, "500 is no multiple of step 64; 512 is"),
        ({"resolution": ()}, "a side in pixels"),
        ({"resolution": -64}, "no multiple|should name|-64"),
    ],
)
def test_sides_that_cannot_be(settings, message):
    with pytest.raises((UserError, ValidationError), match=message):
        FrameConfig(**settings)


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@settings(deadline=None)
@given(sides, sides, st.integers(8, 200), st.integers(8, 200), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_the_cut_is_the_part_of_the_resized_picture_that_it_says(height, width, h, w, down, across, mirrored):
    image = picture(height, width)
    found, frame = cut(image, (height, width), (h, w), down, across, mirrored)
    assert found.shape == (3, h, w)
    assert (frame.original, frame.height, frame.width) == ((height, width), h, w)
    # the whole picture resized, mirrored, then cut where the frame says
    scale = max(h / height, w / width)
    size = (max(w, round(width * scale)), max(h, round(height * scale)))
    whole = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.LANCZOS)
    whole = np.asarray(whole)[:, ::-1] if mirrored else np.asarray(whole)
    expected = whole[frame.top : frame.top + h, frame.left : frame.left + w]
    assert expected.shape == (h, w, 3)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_a_picture_of_the_right_size_is_kept_to_the_bit():
    image = picture(32, 48, 1)
    found, frame = cut(image, (32, 48), (32, 48), 0.5, 0.5, False)
    assert torch.equal(found, image)
    assert frame == Frame((32, 48), 0, 0, 32, 48, False)
    assert torch.equal(cut(image, (32, 48), (32, 48), 0.5, 0.5, True)[0], image.flip(-1))


def test_centre_and_ends():
    image = picture(40, 20)
    for down, top in ((0.0, 0), (0.5, 10), (1.0, 20)):
        found, frame = cut(image, (40, 20), (20, 20), down, 0.5, False)
        assert torch.equal(found, image[:, top : top + 20])
        assert frame.top == top


@given(sides, sides, st.integers(8, 200), st.integers(8, 200))
def test_the_least_to_decode_covers_the_shape(height, width, h, w):
    least = least_to_decode((height, width), (h, w))
    assert least[0] >= h
    assert least[1] >= w
    assert least[0] == h or least[1] == w
