"""What is reached with equal means, against curves whose values are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.compare.equal import Point, over_seeds, ratios, spent_for, spread, value_at

POWERS = st.floats(0.1, 2)
SCALES = st.floats(0.1, 100)


def power_law(scale: float, power: float, spent: Sequence[float]) -> list[Point]:
    return [Point(s, scale * s**-power) for s in spent]


@given(SCALES, POWERS, st.floats(1, 64))
def test_between_points_a_power_law_is_met(scale: float, power: float, budget: float) -> None:
    points = power_law(scale, power, [1, 2, 4, 8, 16, 32, 64])
    assert value_at(points, budget) == pytest.approx(scale * budget**-power, rel=1e-9)


@given(SCALES, POWERS, st.floats(1, 64))
def test_what_was_spent_for_a_distance_is_the_inverse(scale: float, power: float, budget: float) -> None:
    points = power_law(scale, power, [1, 2, 4, 8, 16, 32, 64])
    assert spent_for(points, scale * budget**-power) == pytest.approx(budget, rel=1e-6)


def test_nothing_is_said_outside_what_was_looked_at() -> None:
    points = power_law(1, 1, [2, 4])
    assert value_at(points, 1.99) is None
    assert value_at(points, 4.01) is None
    assert (value_at(points, 2), value_at(points, 4)) == (0.5, 0.25)
    assert spent_for(points, 0.2) is None


def test_a_distance_that_was_there_at_the_first_look_took_at_most_that_much() -> None:
    assert spent_for(power_law(1, 1, [2, 4]), 0.9) == 2


def test_a_curve_that_rises_again_is_first_reached_on_its_way_down() -> None:
    points = [Point(1, 4.0), Point(2, 1.0), Point(4, 2.0), Point(8, 0.5)]
    found = spent_for(points, 1.5)
    assert found is not None
    assert 1 < found < 2


@given(st.floats(-1, 1), st.floats(0.01, 0.2), st.floats(1, 64))
def test_a_share_is_linear_in_the_logarithm(first: float, slope: float, budget: float) -> None:
    points = [Point(s, first + slope * math.log(s)) for s in (1, 4, 16, 64)]
    assert value_at(points, budget, power=False) == pytest.approx(first + slope * math.log(budget), abs=1e-9)


def test_spread_is_of_a_sample() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.std == pytest.approx(math.sqrt(sum((x - 7 / 3) ** 2 for x in (1, 2, 4)) / 2))
    assert spread([3.0]).std is None


def test_seeds_of_which_one_says_nothing_say_nothing() -> None:
    both = [power_law(1, 1, [1, 2]), power_law(2, 1, [1, 2])]
    found = over_seeds(both, lambda points: value_at(points, 2))
    assert found is not None
    assert found.mean == pytest.approx(0.75)
    assert over_seeds([*both, power_law(1, 1, [4, 8])], lambda points: value_at(points, 2)) is None


def test_ratios_are_of_the_same_turn() -> None:
    found = ratios([10.0, 20.0], [5.0, 10.0])  # a machine that was half as fast in the second turn
    assert (found.mean, found.std) == (2.0, 0.0)
