"""Forms of captions: what stays, what moves, what is left out, and that a cache can know them all."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ldm.data.caption_forms import CaptionConfig, form, forms

picks = st.floats(0, 1, exclude_max=True)
tags = st.lists(st.text("abcxyz é", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=6)


@given(st.text(), picks)
def test_a_caption_is_left_as_it_is(caption, pick):
    assert form(caption, CaptionConfig(), 0, pick) == caption
    assert forms(caption, CaptionConfig(), 0) == (caption,)
    assert form(caption, CaptionConfig(prefix="sks, "), 0, pick) == f"sks, {caption}"


@given(tags, picks, st.integers(0, 3))
def test_shuffling_moves_parts_and_loses_none(parts, pick, keep):
    found = form(",".join(parts), CaptionConfig(shuffle=True, keep=keep), 0, pick).split(", ")
    assert Counter(found) == Counter(parts)
    assert found[:keep] == parts[:keep]


def test_every_order_comes_up():
    config = CaptionConfig(shuffle=True)
    found = Counter(form("a, b, c", config, 0, k / 600) for k in range(600))
    assert len(found) == 6
    assert min(found.values()) > 60  # 100 expected, standard deviation 9


def test_parts_are_left_out_as_often_as_asked():
    config = CaptionConfig(drop_parts=0.3, keep=1)
    found = [form("first, a, b, c, d", config, 1, k / 500).split(", ") for k in range(500)]
    assert all(parts[0] == "first" for parts in found)
    assert sum(len(parts) - 1 for parts in found) / 2000 == pytest.approx(0.7, abs=0.04)
    assert all(parts == sorted(parts, key=["first", "a", "b", "c", "d"].index) for parts in found)


@given(tags, picks, st.integers(1, 5), st.integers(0, 9))
def test_a_fixed_number_of_forms_is_known_beforehand(parts, pick, variants, seed):
    config = CaptionConfig(shuffle=True, variants=variants, prefix="p ")
    known = forms(",".join(parts), config, seed)
    assert form(",".join(parts), config, seed, pick) in known
    assert 1 <= len(known) <= variants


def test_another_separator():
    assert form("one two", CaptionConfig(shuffle=True, separator=" ", keep=1), 0, 0.3) == "one two"
    assert form("one|two", CaptionConfig(shuffle=True, separator="|", keep=2), 0, 0.3) == "one| two"


@pytest.mark.parametrize("idle", [{"keep": 1}, {"variants": 3}])
def test_settings_that_would_do_nothing(idle):
    with pytest.raises(ValidationError, match="does nothing"):
        CaptionConfig(**idle)
