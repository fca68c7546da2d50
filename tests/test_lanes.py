"""The order of streams: a function of the seed and the number of a sample."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.data.lanes import Lanes
from ldm.data.order import ShardedBatches

lanes = st.builds(
    Lanes,
    st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any),
    st.integers(0, 2**31),
    st.integers(1, 24),
    processes=st.integers(1, 8),
    workers=st.integers(1, 4),
    shuffle=st.integers(1, 80),
)


def sample(order: Lanes, k: int) -> tuple[int, int]:
    """(shard, position in it) of the stream's k-th sample."""
    place = order.place(k)
    rows = [(span.shard, i) for span in order.spans(*place[:3]) for i in range(span.first, span.last)]
    return rows[place.at]


@given(lanes)
def test_every_epoch_has_every_sample_once(order):
    everything = [(shard, i) for shard, count in enumerate(order.counts) for i in range(count)]
    for epoch in range(3):
        ks = range(epoch * order.total, (epoch + 1) * order.total)
        assert sorted(sample(order, k) for k in ks) == everything


@given(lanes, st.integers(0, 3))
def test_lanes_and_their_blocks_are_the_shards_from_front_to_end(order, epoch):
    """So a reader that goes along a lane never goes back, and of two lanes at most the shard between is in both."""
    done: dict[int, int] = defaultdict(int)
    visited = []
    for lane in range(order.count):
        for block in range(order.blocks(epoch, lane)):
            spans = order.spans(epoch, block, lane)
            assert sum(span.last - span.first for span in spans) <= order.size
            for span in spans:
                assert done[span.shard] == span.first < span.last
                done[span.shard] = span.last
                visited += [span.shard] if visited[-1:] != [span.shard] else []
    assert [done[shard] for shard in range(len(order.counts))] == order.counts
    assert len(visited) == len(set(visited))


@given(lanes, st.data())
def test_a_lane_is_asked_for_block_by_block(order, data):
    first = data.draw(st.integers(0, 3 * order.total))
    last: dict[int, tuple[int, int]] = {}
    for k in range(first, first + 2 * order.total):
        place = order.place(k)
        assert last.get(place.lane, (0, 0)) <= place[:2]
        last[place.lane] = place[:2]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2), (1, 8)])
def test_every_lane_has_one_reader(processes, workers, accumulation):
    order = Lanes([1000] * 7, 1, 16, processes=8, workers=4, shuffle=64)
    batch = 16 // processes // accumulation
    readers = defaultdict(set)
    for rank in range(processes):
        steps = ShardedBatches(3, 40, batch, rank=rank, processes=processes, accumulation=accumulation)
        for i, ks in enumerate(steps):
            for k in ks:
                readers[order.place(k).lane].add((rank, i % workers))
    assert len(readers) == order.count == 32
    assert all(len(found) == 1 for found in readers.values())


def test_seeds_and_epochs_differ_and_neighbours_are_far_apart():
    def series(seed, epoch, **changes):
        options = {"processes": 2, "workers": 2, "shuffle": 64, **changes}
        order = Lanes([50] * 8, seed, 4, **options)
        return [sample(order, k) for k in range(epoch * 400, (epoch + 1) * 400)]

    assert series(1, 0) == series(1, 0)
    assert len({tuple(series(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    batches = [series(1, 0)[i : i + 4] for i in range(0, 400, 4)]
    assert sum(len({shard for shard, _ in batch}) > 1 for batch in batches) > 90
    in_order = series(1, 0, shuffle=1, processes=1, workers=1)
    assert [i for _, i in in_order] == [*range(50)] * 8
    shuffled = series(1, 0, processes=1, workers=1)
    assert sum(abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(shuffled)) < 40
