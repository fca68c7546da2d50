"""Memory, time and money from what was counted, against sums that were done by hand and machines that were made up."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.cost.architecture import of_family
from ldm.cost.counting import Kind, Work, Works
from ldm.cost.estimate import Speed, works_of_step
from ldm.cost.inventory import networks_of
from ldm.cost.machine import Machine, Measured, Price, calibrate
from ldm.cost.memory import memory_of
from ldm.cost.plans import estimate_plan, read
from ldm.cost.settings import CostPlan
from ldm.cost.step import Counted, Part
from ldm.errors import UserError
from ldm.training.train_settings import TrainSettings

PLANS = Path(__file__).parent.parent / "configs" / "cost"
TRAINED, FROZEN = 1000, 300  # numbers, bytes


def counted(half: bool = False, peak: int = 50_000) -> Counted:
    """A network of two blocks and some numbers outside, and a frozen one."""
    parts = {
        "net": Part(TRAINED, TRAINED, 0, 10, 20, (600, 300, 100)),
        "frozen": Part(75, 0, FROZEN, 5, 0, (75,)),
    }
    works: Works = {Kind("mm", "float32"): Work(35, 70, 3)}
    return Counted(2, half, 16, parts, works, {"float32": 40_000}, peak, TRAINED)


def train(**changes: Any) -> TrainSettings:
    return TrainSettings(steps=1, batch_size=2, ema_decay=0.9, **changes)


def test_one_device_holds_everything() -> None:
    found = memory_of(counted(), train(), 1)
    assert (found.weights, found.optimiser, found.average) == (4 * TRAINED + FROZEN, 8 * TRAINED, 4 * TRAINED)
    assert found.gradients + found.working == 10_000  # both are in what was held at the worst moment
    assert found.total == 16 * TRAINED + FROZEN + 50_000
    assert memory_of(counted(), train(), 1, beside=77).total == found.total + 77


def test_what_is_left_out_takes_nothing() -> None:
    whole = memory_of(counted(), train(), 1)
    assert memory_of(counted(), train(optimizer="adamw8bit"), 1).optimiser == whole.optimiser / 4
    assert memory_of(counted(), train(ema_device="cpu"), 1).average == 0
    none = TrainSettings(steps=1, ema_decay=0)
    assert memory_of(counted(), none, 1).total == whole.total - whole.average


def test_gradients_are_there_all_the_time_where_they_are_exchanged_or_summed() -> None:
    alone, several = memory_of(counted(), train(), 1), memory_of(counted(), train(), 2)
    assert several.total == alone.total + 4 * TRAINED
    assert memory_of(counted(), train(gradient_accumulation=2), 1) == several
    assert memory_of(counted(), train(), 64) == several  # each device has all of it


@pytest.mark.parametrize("half", [False, True])
def test_shares_of_a_network(half: bool) -> None:
    """FSDP: all that is trained is divided; the two largest blocks and what is outside of all are put together."""
    settings = train(parallel="fsdp", mixed_precision="bf16" if half else "no")
    width = 2 if half else 4
    for devices in (1, 4, 1000):
        found = memory_of(counted(half), settings, devices)
        share = TRAINED / devices
        shares = (found.weights - FROZEN, found.gradients, found.optimiser, found.average)
        assert shares == (4 * share, 4 * share, 8 * share, 4 * share)
        assert found.gathered == width * (100 + 600 + 300) + (width + 4) * 600
        assert found.activations + found.working == 50_000


def test_what_lies_outside_of_all_blocks_is_gathered_once() -> None:
    """Where it is the largest, as the table of tokens of a CLIP, its own gradients are the most, in the end."""
    step = replace(counted(half=True), parts={"net": Part(1050, 1050, 0, 10, 20, (100, 50, 900))})
    found = memory_of(step, train(parallel="fsdp", mixed_precision="bf16"), 4)
    assert found.gathered == 2 * 900 + (2 + 4) * 900


# ------------------------------------------------------------------------------------- time


def made_up(seed: int) -> list[tuple[Kind, Work]]:
    """Calls of every size, without seconds."""
    draw = random.Random(seed)
    calls = []
    for _ in range(60):
        size = 10 ** draw.uniform(3, 8)
        calls.append((Kind("mm", "float32"), Work(size * draw.uniform(1, 50), size, 1)))
        calls.append((Kind("add", "float32"), Work(0, size, 1)))
    return calls


PRICES = {"mm": Price(2e-11, 1e-10, 3e-6), "add": Price(0, 2e-10, 1e-6)}


def timed(calls: list[tuple[Kind, Work]], slower: float = 1.0) -> list[tuple[Kind, Work]]:
    return [(k, Work(w.flops, w.moved, 1, slower * PRICES[k.operator].of(w))) for k, w in calls]


def total(calls: list[tuple[Kind, Work]]) -> tuple[Works, float]:
    works: Works = {}
    for kind, work in calls:
        works.setdefault(kind, Work()).add(work)
    return works, sum(work.seconds for _, work in calls)


def test_calibration_finds_the_prices_of_a_machine() -> None:
    """And so foresees other work; a clock that was disturbed in one round of three changes nothing."""
    first = made_up(0)
    rounds = [timed(first), timed(first, slower=3), timed(first)]
    machine = calibrate([Measured(rounds, total(rounds[0])[1])])
    for operator, price in PRICES.items():
        assert machine.prices[Kind(operator, "float32")] == pytest.approx(price, rel=0.01, abs=1e-15)
    works, seconds = total(timed(made_up(1)))
    assert machine.seconds(works) == pytest.approx(seconds, rel=0.01)


@given(st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_whole_step_sets_the_scale(slower: float, seed: int) -> None:
    """What the operators do not account for, such as the time between them, is shared out among them."""
    calls = timed(made_up(seed))
    works, seconds = total(calls)
    machine = calibrate([Measured([calls], slower * seconds)])
    assert machine.seconds(works) == pytest.approx(slower * seconds, rel=1e-6)
    assert all(value >= 0 for price in machine.prices.values() for value in price)


def test_an_operator_that_was_not_met_costs_as_those_that_only_move_bytes() -> None:
    calls = timed(made_up(0))
    machine = calibrate([Measured([calls], total(calls)[1])])
    strange: Works = {Kind("gelu", "float32"): Work(0, 1e8, 2)}
    assert machine.seconds(strange) == pytest.approx(2e-10 * 1e8 + 2e-6, rel=0.01)
    assert machine.unmet(strange) == 1
    assert machine.unmet(total(calls)[0]) == 0


def test_time_at_a_utilisation() -> None:
    works = works_of_step(counted(), train(gradient_accumulation=3))
    assert Speed(tflops=2, mfu=0.25).seconds(works) == pytest.approx(3 * 35 / 0.5e12)
    # norm, clipping, AdamW and the average, of each number that is trained
    assert works[Kind("optimiser", "float32")].moved == TRAINED * (4 + 8 + 28 + 12)
    free = Machine({}, Price(0, 0, 1))
    assert Speed(free).seconds(works) == 9


# ------------------------------------------------------------------------------------ plans


def test_families_have_the_sizes_that_are_known() -> None:
    """Parameters as published with the models, in millions."""
    found = networks_of(of_family("sd1", 64), 64)
    assert [round(network.parameters / 1e6, 1) for network in found.values()] == [859.5, 34.2, 49.5, 123.1]
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        of_family("sdxll", 1024)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_plans_of_the_repository_are_read(name: str) -> None:
    plan = read(PLANS / f"{name}.yaml", ["devices=3"])
    assert isinstance(plan, CostPlan)
    assert (plan.family, plan.devices) == (name, 3)


@pytest.mark.slow  # a minute: three networks at their full size, each at two or three
def test_plans_beside_what_was_published() -> None:
    plan = read(PLANS / "sd2.yaml", [])
    assert isinstance(plan, CostPlan)
    found = estimate_plan(plan, Speed(tflops=312, mfu=plan.mfu), 8, 2.0)
    assert [round(figure.error, 2) for figure in found.published] == [
        pytest.approx(0.2, abs=0.02),
        pytest.approx(0.0, abs=0.02),
    ]
    unet = found.stages[1].counted.parts["U-Net"]
    assert unet.forward / 8 == pytest.approx(0.804e12, rel=0.01)
    assert found.money == pytest.approx(2 * (found.device_hours or 0))
