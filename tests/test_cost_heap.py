"""Holes between tensors, against what heaps of one size each would have to hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ldm.cost.heap import CONSTANT, SHARE, Event, apart, holes_of


def test_equals_follow_each_other_without_a_hole() -> None:
    assert apart([event for k in range(5) for event in (Event(k, 100), Event(k))]) == 0


def test_tensors_of_two_sizes_that_are_never_there_together() -> None:
    """Apart they would take 300 bytes, together 200."""
    trace = [Event(1, 100), Event(1), Event(2, 200), Event(2)]
    assert apart(trace) == 100
    assert holes_of(trace) == CONSTANT + round(100 * SHARE)


@given(st.permutations([100, 100, 250, 400, 400, 70]), st.permutations(range(6)))
def test_what_is_all_there_at_once_leaves_no_holes(sizes: list[int], freed: list[int]) -> None:
    made = [Event(k, size) for k, size in enumerate(sizes)]
    assert apart([*made, *(Event(k) for k in freed)]) == 0
