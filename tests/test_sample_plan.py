"""Which example comes when: shares, buckets, mixtures, held-out pictures and what stands in for bad ones."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import Made

from ldm.data.example import Source
from ldm.data.framing import Buckets, FrameConfig
from ldm.data.mixture import Mixture
from ldm.data.order import share
from ldm.data.plan import Plan, common_size
from ldm.data.samples import TrainingSamples, collate
from ldm.data.split import hold_out, thin_out
from ldm.errors import UserError

SQUARE, TALL, WIDE = (64, 64), (96, 48), (48, 96)
BUCKETS = Buckets(FrameConfig(resolution=64, step=16, max_ratio=2.5))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any), st.integers(0, 400))
def test_shares_are_exact_and_numbered_without_a_gap(weights, count):
    found = [share(n, weights) for n in range(count)]
    levels = (len(weights) - 1).bit_length()
    for lane, weight in enumerate(weights):
        own = [k for who, k in found if who == lane]
        assert own == list(range(len(own)))
        assert abs(len(own) - count * weight / sum(weights)) <= max(1, levels)


def test_shares_come_back_exactly_after_their_sum():
    found = Counter(share(n, (3, 0, 5, 2))[0] for n in range(1000, 2000))
    assert found == {0: 300, 2: 500, 3: 200}


def test_one_source_of_one_shape_shows_each_picture_once_an_epoch():
    plan = Plan(Made([SQUARE] * 10), 3, 4)
    for epoch in range(3):
        assert sorted(plan.at(n).index for n in range(epoch * 10, epoch * 10 + 10)) == list(range(10))


sides = st.integers(40, 130)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 99))
def test_a_step_is_of_one_bucket_and_pictures_come_equally_often(sizes, per_step, seed):
    source = Made(sizes)
    plan = Plan(source, seed, per_step, BUCKETS)
    buckets = BUCKETS.assign(source.sizes)
    steps = 60
    seen = Counter()
    for step in range(steps):
        tickets = [plan.at(step * per_step + slot) for slot in range(per_step)]
        assert len({ticket.bucket for ticket in tickets}) == 1
        for ticket in tickets:
            assert buckets[ticket.index] == ticket.bucket
            seen[ticket.index] += 1
    for bucket in buckets.unique().tolist():
        own = [seen[i] for i in torch.nonzero(buckets == bucket).flatten().tolist()]
        assert max(own) - min(own) <= 1  # each once before any comes again, in its bucket


def test_buckets_take_turns_by_their_pictures_in_no_fixed_order():
    source = Made([SQUARE] * 60 + [TALL] * 30 + [WIDE] * 10)
    plan = Plan(source, 0, 5, BUCKETS)
    turns = [plan.at(5 * step).bucket for step in range(2048)]
    counts = sorted(Counter(turns).values())
    assert counts == pytest.approx([204.8, 614.4, 1228.8], abs=3)
    pairs = Counter(pairwise(turns))
    rare = turns.index(min(set(turns), key=turns.count))
    assert pairs[turns[rare], turns[rare]] > 0  # the rarest also comes twice in a row


def test_mixed_sources_have_their_share_of_every_batch():
    mixed = Mixture([Made([SQUARE] * 7, "a"), Made([SQUARE] * 50, "b")], [3, 1])
    plan = Plan(mixed, 0, 8)
    for step in range(30):
        assert sum(plan.at(step * 8 + slot).part == 0 for slot in range(8)) == 6
    own = [plan.at(n) for n in range(2000)]
    shown = Counter(ticket.index for ticket in own if ticket.part == 0)
    assert max(shown.values()) - min(shown.values()) <= 1
    assert set(shown) == set(range(7))


def test_a_mixture_is_its_parts_one_after_the_other():
    mixed = Mixture([Made([SQUARE] * 2, "a"), Made([TALL] * 3, "b")], [1, 1])
    assert [mixed.key(i) for i in range(5)] == ["a: a/0.png", "a: a/1.png", "b: b/0.png", "b: b/1.png", "b: b/2.png"]
    assert mixed.sizes.tolist() == [[*SQUARE]] * 2 + [[*TALL]] * 3
    assert int(mixed.read(4).image[0, 0, 0]) == 2
    with pytest.raises(UserError, match="agree in captioned"):
        Mixture([Made([SQUARE], "a", captions=["x"]), Made([SQUARE], "b")], [1, 1])


def test_sizes_that_differ_want_a_frame():
    with pytest.raises(UserError, match=r"64 x 64 .*48 x 96|48 x 96 .*64 x 64"):
        common_size(Made([SQUARE, TALL]))
    with pytest.raises(UserError, match="no pictures"):
        Plan(Made([]), 0, 1)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_what_is_held_out_is_not_trained_on(size, seed):
    count = size // 3
    train, held = hold_out(Made([SQUARE] * size), count, seed)
    keys = lambda source: {source.key(i) for i in range(len(source))}  # noqa: E731
    assert len(keys(held)) == count
    assert not keys(train) & keys(held)
    assert len(keys(train) | keys(held)) == size
    again = hold_out(Made([SQUARE] * size), count, seed)[1]
    assert keys(again) == keys(held)


class Repeated(Made):
    """Each picture twice, as kohya's repeats."""

    def key(self, index: int) -> str:
        return super().key(index // 2)


def test_a_repeated_picture_is_on_one_side():
    train, held = hold_out(Repeated([SQUARE] * 20), 3, 0)
    assert (len(train), len(held)) == (14, 3)
    assert not {train.key(i) for i in range(14)} & {held.key(i) for i in range(3)}
    with pytest.raises(UserError, match="10 cannot be held out"):
        hold_out(Repeated([SQUARE] * 20), 10, 0)


def test_holding_out_of_a_mixture_keeps_its_weights():
    mixed = Mixture([Made([SQUARE] * 30, "a"), Made([SQUARE] * 10, "b")], [1, 5])
    train, held = hold_out(mixed, 8, 0)
    assert isinstance(train, Mixture)
    assert train.weights == mixed.weights
    assert [len(part) for part in train.parts] == [24, 8]
    assert len(held) == 8


def samples(source: Source, per_step: int, **options) -> TrainingSamples:
    made = TrainingSamples(source, 0, frame=BUCKETS.config, space=(4, 8), skip_bad=3, **options)
    made.begin(per_step)
    return made


def test_a_bad_picture_gives_its_place_to_the_next_of_its_bucket():
    sizes = [SQUARE, TALL] * 6
    good, bad = samples(Made(sizes), 4), samples(Made(sizes, bad=[2, 4, 9]), 4)
    for n in range(48):
        wanted, found = good[n], bad[n]
        index = int(wanted["keys"].split("/")[1].split(".")[0])
        expected = {2: 6, 4: 6, 9: 11}.get(index, index)
        assert found["keys"] == f"made/{expected}.png"
        assert found["images"].shape == wanted["images"].shape
        assert torch.equal(found["codec_noise"], wanted["codec_noise"])
        told = [skip.key for skip in found["skipped"]]
        assert told == {2: ["made/2.png", "made/4.png"], 4: ["made/4.png"], 9: ["made/9.png"]}.get(index, [])
    batch = collate([bad[n] for n in range(4)])
    assert all("cut off" in skip.message for skip in batch.skipped)


def test_a_bucket_of_bad_pictures_ends_in_a_message():
    with pytest.raises(UserError, match="no picture of made in this bucket can be used"):
        samples(Made([SQUARE] * 3, bad=[0, 1, 2]), 1)[0]


def test_a_batch_tells_how_its_pictures_were_cut():
    made = samples(Made([(128, 256)] * 3 + [(64, 100)] * 3), 2, flip=True)
    batch = collate(made.__getitems__([0, 1]))
    assert batch.images.dtype == torch.uint8
    for image, frame, numbers in zip(batch.images, batch.frames, batch.sizes().tolist(), strict=True):
        assert tuple(image.shape[1:]) == (frame.height, frame.width)
        assert numbers == [*frame.original, frame.top, frame.left, frame.height, frame.width]
        bright_left = bool(image[1, 0, 0] > image[1, 0, -1])
        assert bright_left != frame.mirrored


def test_shapes_fit_the_codec():
    with pytest.raises(UserError, match="not a multiple of the codec's factor 32"):
        TrainingSamples(Made([SQUARE]), 0, frame=BUCKETS.config, space=(4, 32))


def test_a_part_of_a_source_is_spread_over_it():
    source = Made([SQUARE] * 100)
    few = thin_out(source, 4)
    assert [few.key(i) for i in range(len(few))] == [f"made/{i}.png" for i in (0, 25, 50, 75)]
    assert thin_out(source, 100) is source
    mixed = thin_out(Mixture([Made([SQUARE] * 30, "a"), Made([SQUARE] * 10, "b")], [1, 5]), 8)
    assert isinstance(mixed, Mixture)
    assert [len(part) for part in mixed.parts] == [6, 2]


def test_a_mixture_in_a_mixture_divides_its_own_share():
    inner = Mixture([Made([SQUARE] * 7, "a"), Made([SQUARE] * 9, "b")], [3, 1])
    plan = Plan(Mixture([inner, Made([SQUARE] * 5, "c")], [0.2, 0.6]), 0, 4)
    assert [part.name for part in plan.parts] == ["a", "b", "c"]
    assert Counter(plan.at(n).part for n in range(160)) == {0: 30, 1: 10, 2: 120}


def test_a_small_weight_is_no_weight_of_nothing():
    plan = Plan(Mixture([Made([SQUARE], "a"), Made([SQUARE], "b")], [2e-8, 6e-8]), 0, 1)
    assert Counter(plan.at(n).part for n in range(80)) == {0: 20, 1: 60}
