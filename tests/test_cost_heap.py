"""A heap and its holes, against sums that were done by hand and what no heap can break."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.cost.heap import Freed, Heap, Learned, Made, holes_of

_BESIDE = 32 + 64 + 112 + 192 + 272 + 480  # bytes of the small objects of a tensor
_LOST = 8 + 64 + 32  # of header and alignment, at most


def test_what_stays_lies_side_by_side() -> None:
    heap = Heap()
    for k in range(5):
        heap.make(k, 10_000)
    assert heap.most == 50_000
    assert 50_000 + 5 * _BESIDE <= heap.reached <= 50_000 + 5 * (_BESIDE + _LOST)


def test_a_smaller_one_finds_the_hole_and_an_equal_does_not() -> None:
    """As it looks for 96 bytes more; the small objects that lie behind the hole stay where they are, for the next."""
    for size, finds in ((9_000, True), (10_000, False)):
        heap = Heap()
        heap.make("first", 10_000)
        heap.make("last", 64)
        before = heap.reached
        heap.free("first")
        heap.make("next", size)
        assert (heap.reached == before) == finds


def test_neighbours_that_are_gone_leave_one_hole() -> None:
    heap = Heap()
    for k in range(40):  # more than are kept for the next to ask
        heap.make(k, 10_000)
    before = heap.reached
    for k in range(39):
        heap.free(k)
    heap.make("large", 250_000)
    assert heap.reached == before


def test_moments_settle_once() -> None:
    """They come at the end of the first step, and the most that is held is reached in the second."""
    trace = [Made(1, 8_000), Learned((1_000,)), Freed(1)]
    found, without = holes_of(trace), holes_of([Made(1, 8_000), Freed(1)])
    assert 0 < without <= _BESIDE + _LOST
    assert 0 < found <= 3 * (_BESIDE + _LOST) + 8_000  # at most one hole that nothing fits


_EVENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50_000)), max_size=60)


@given(_EVENTS)
@settings(max_examples=50, deadline=None)
def test_no_heap_reaches_less_than_is_held_or_gives_a_place_twice(events: list[tuple[int, int]]) -> None:
    heap, there = Heap(), {}
    most = 0
    for tensor, size in events:
        if tensor in there:
            heap.free(tensor)
            del there[tensor]
        else:
            heap.make(tensor, size)
            there[tensor] = size
        most = max(most, sum(there.values()))
        spans = sorted(heap.span(tensor) for tensor in there)
        assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
        assert all(end - begin == there[tensor] for tensor in there for begin, end in [heap.span(tensor)])
        assert all(begin % 64 == 0 for begin, _ in spans)
    assert heap.most == most
    assert heap.reached >= most


def test_a_heap_forgets_nothing() -> None:
    """All freed, it is as it was, but for what is kept for the next to ask: no byte is lost."""
    heap = Heap()
    for k in range(100):
        heap.make(k, 1_000 + 137 * k)
    before = heap.reached
    for k in range(100):
        heap.free(k)
    for k in range(99, -1, -1):
        heap.make(k, 1_000 + 137 * k)
    assert heap.reached <= before * 1.2
