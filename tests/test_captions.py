"""Captions are true of their pictures: checked on 5,000 real digits and on shapes whose measures are known."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.captions import DIGIT_NAMES, corpus, digit_captions, plain_prompts, slant, stroke_width
from ldm.data.mnist import MnistConfig, MnistSource

OPPOSITES = [{"thin", "thick"}, {"left", "right"}, {"upright", "slanted"}]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, list[tuple[str, ...]]]:
    source = MnistSource(MnistConfig(captions=True))
    return source.images[:, 0], source.labels, source.captions


def sheared(images: Tensor, amount: float) -> Tensor:
    """Lean pictures (N, 28, 28) to the right: `amount` pixels for every pixel above the middle."""
    theta = torch.tensor([[1.0, amount, 0.0], [0.0, 1.0, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, [len(images), 1, 28, 28], align_corners=False)
    return F.grid_sample(images[:, None].float(), grid, align_corners=False)[:, 0].round().to(torch.uint8)


def mentioning(words: str, captions: list[tuple[str, ...]]) -> Tensor:
    return torch.tensor([any(words in caption for caption in own) for own in captions])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_width_of_a_bar(width: int) -> None:
    bars = torch.zeros(2, 28, 28, dtype=torch.uint8)
    bars[0, 2:26, 10 : 10 + width] = 255
    bars[1, 10 : 10 + width, 2:26] = 90
    area, perimeter = width * 24, 2 * (width + 24)
    expected = torch.full((2,), 2 * area / perimeter)
    torch.testing.assert_close(stroke_width(bars), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("amount", [-0.5, 0.0, 0.3, 1.0])
def test_the_slant_of_a_bar(amount: float) -> None:
    bar = torch.zeros(1, 28, 28, dtype=torch.uint8)
    bar[0, 6:22, 12:16] = 255
    torch.testing.assert_close(slant(sheared(bar, amount)), torch.tensor([amount]), atol=0.01, rtol=0)


def test_measures_of_real_digits_follow_a_change(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    images = digits[0]
    thicker = F.max_pool2d(images[:, None].float(), (2, 2), stride=1)[:, 0].to(torch.uint8)
    thinner = -F.max_pool2d(-images[:, None].float(), (2, 2), stride=1)[:, 0]
    width = stroke_width(images)
    assert (stroke_width(thicker) > width).all()
    assert (stroke_width(thinner).nan_to_num() < width).all()  # NaN where nothing is left
    leaning = slant(sheared(images, 0.2)) - slant(images)
    assert leaning.min() > 0.1
    assert abs(leaning.mean().item() - 0.2) < 0.01


def test_dimmer_ink_has_the_same_captions(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    images, labels, captions = digits
    assert (stroke_width(images // 2) - stroke_width(images)).abs().max() < 0.05
    same = [a == b for a, b in zip(digit_captions(images // 2, labels), captions, strict=True)]
    assert sum(same) > 0.98 * len(same)


def test_captions_order_the_digits(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    images, labels, captions = digits
    width, lean = stroke_width(images), slant(images)
    thin, thick = mentioning("thin strokes", captions), mentioning("thick strokes", captions)
    assert width[thin].max() < width[~thin & ~thick].min()
    assert width[~thin & ~thick].max() < width[thick].min()
    for digit in range(10):
        own = labels == digit
        upright, right = mentioning("upright", captions) & own, mentioning("slanted right", captions) & own
        assert lean[upright].max() < lean[right].min()
        for share in (upright, right):
            assert 0.02 < share.sum() / own.sum() < 0.5
    left = mentioning("slanted left", captions)
    assert left.any()
    assert lean[left].max() < -0.2


def test_no_caption_contradicts_another(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    for own in digits[2]:
        words = set(re.findall(r"\w+", " ".join(own)))
        assert not any(pair <= words for pair in OPPOSITES)


def test_every_caption_names_its_digit_and_no_other(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    _, labels, captions = digits
    names = [{name, str(digit)} for digit, name in enumerate(DIGIT_NAMES)]
    for kind, label in set(zip(captions, labels.tolist(), strict=True)):
        for caption in kind:
            words = set(re.findall(r"\w+", caption))
            assert [digit for digit in range(10) if names[digit] & words] == [label]


def test_the_corpus_has_every_caption_once(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    every = corpus()
    assert len(every) == len(set(every))
    assert {caption for own in digits[2] for caption in own} <= set(every)
    assert {prompt for digit in range(10) for prompt in plain_prompts(digit)} <= set(every)
    assert not [caption for caption in every if "seven" in caption and "left" in caption]  # never claimed


def test_captions_do_not_depend_on_the_set(digits: tuple[Tensor, Tensor, list[tuple[str, ...]]]) -> None:
    images, labels, captions = digits
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:50]
    assert digit_captions(images[order], labels[order]) == [captions[i] for i in order.tolist()]


def test_an_empty_picture_is_only_named() -> None:
    blank = torch.zeros(1, 28, 28, dtype=torch.uint8)
    assert digit_captions(blank, torch.tensor([3])) == [tuple(plain_prompts(3))]
