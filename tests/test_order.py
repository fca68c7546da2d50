"""Order of samples and their draws: functions of the seed and the sample's number, and of nothing else."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ldm.data.example import Source
from ldm.data.mnist import MnistConfig
from ldm.data.order import ShardedBatches, draws, mix, permutation, shuffled
from ldm.data.samples import Batch, TrainingSamples, collate
from ldm.data.sources import open_source
from ldm.diffusion.process import FlowProcess

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(1, 300), st.integers(0, 5))
def test_every_example_comes_once_in_every_epoch(seed, size, epoch):
    found = [shuffled(seed, n, size) for n in range(epoch * size, (epoch + 1) * size)]
    assert sorted(found) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(permutation(seed, epoch, 50).tolist()) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_step_takes_the_same_samples_however_they_are_shared_out(first, steps, batch, processes, accumulation):
    shards = [
        list(ShardedBatches(first, first + steps, batch, rank=rank, processes=processes, accumulation=accumulation))
        for rank in range(processes)
    ]
    per_step = batch * processes * accumulation
    for step in range(steps):
        taken = [n for shard in shards for b in shard[step * accumulation : (step + 1) * accumulation] for n in b]
        start = (first + step) * per_step
        assert sorted(taken) == list(range(start, start + per_step))
    for shard in shards:
        assert len(shard) == steps * accumulation
        assert all(len(micro) == batch for micro in shard)
    alone = [n for whole in ShardedBatches(first, first + steps, per_step) for n in whole]
    assert sorted(n for shard in shards for micro in shard for n in micro) == alone


def test_the_length_is_known_beforehand():
    assert len(ShardedBatches(3, 10, 4, accumulation=2)) == 14


def test_mixed_seeds_are_apart_and_fit_a_generator():
    values = [mix(a, b, c) for a in range(20) for b in range(3) for c in range(200)]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**63 for value in values)
    # Each bit is set about as often as not: 12,000 draws have a standard deviation of 0.5 / sqrt(12000) = 0.0046.
    bits = torch.tensor([[value >> k & 1 for k in range(63)] for value in values]).double().mean(0)
    assert (bits - 0.5).abs().max() < 0.025


def test_mix_is_the_published_splitmix64():
    """Started at 0, splitmix64's first output is 0xE220A8397B1DCDAF (the reference implementation's)."""
    assert mix(0) == 0xE220A8397B1DCDAF >> 1


@functools.cache
def digits() -> Source:
    return open_source(MnistConfig(limit=12, captions=True))


def samples(**options) -> TrainingSamples:
    return TrainingSamples(digits(), 7, space=(1, 1), process=FlowProcess(1000, "gaussian"), **options)


def test_a_setting_shifts_no_other_draw():
    plain, busy = samples(), samples(condition="text", drop=0.5, flip=True)
    for n in range(30):
        a, b = plain[n], busy[n]
        assert a["uniform"] == b["uniform"]
        assert a["captions"] == b["captions"]
        assert torch.equal(a["noise"], b["noise"])
        assert torch.equal(a["codec_noise"], b["codec_noise"])
        assert torch.equal(b["images"], a["images"]) or torch.equal(b["images"], a["images"].flip(-1))
        assert b["conditions"] in (None, a["captions"])


def test_shares_of_what_is_drawn():
    busy, plain = samples(condition="text", drop=0.25, flip=True), samples()
    found = [busy[n] for n in range(800)]
    dropped = sum(item["conditions"] is None for item in found) / 800
    flipped = sum(not torch.equal(item["images"], plain[n]["images"]) for n, item in enumerate(found)) / 800
    assert abs(dropped - 0.25) < 0.06  # four standard deviations
    assert abs(flipped - 0.5) < 0.075
    uniform = torch.tensor([item["uniform"] for item in found])
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / 800) ** 0.5
    assert 0 <= uniform.min() <= uniform.max() < 1
    noise = torch.stack([item["noise"] for item in found])
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert not torch.equal(found[0]["noise"], found[0]["codec_noise"])


def test_a_sample_differs_from_epoch_to_epoch():
    items = samples()
    size = len(items.source)
    noises = [tuple(items[n]["noise"].flatten()[:4].tolist()) for n in range(3 * size)]
    assert len(set(noises)) == 3 * size
    captions = {}
    for n in range(20 * size):
        captions.setdefault(shuffled(7, n, size), set()).add(items[n]["captions"])
    assert all(len(found) > 3 for found in captions.values())


def test_draws_do_not_touch_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    torch.rand(5, generator=draws(1, 2))
    permutation.cache_clear()
    shuffled(5, 100, 37)
    assert torch.equal(torch.rand(1), expected)


def batches(workers: int, context: str | None) -> list[Batch]:
    items = samples(condition="text", drop=0.3, flip=True)
    loader = DataLoader(
        items,
        batch_sampler=ShardedBatches(2, 7, 4),
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
    )
    return list(loader)


@pytest.mark.parametrize(("workers", "context"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(workers, context):
    for alone, shared in zip(batches(0, None), batches(workers, context), strict=True):
        for key, value in vars(alone).items():
            other = getattr(shared, key)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_the_order_is_the_same_on_every_start_of_python():
    """Nothing may hang on Python's hashes, which are salted."""
    shown = "shuffled(9, 1234, 500), mix(1, 2, 3), float(torch.rand(1, generator=draws(4, 5)))"
    code = f"from ldm.data.order import *; print({shown})"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        ).stdout
        for s in "12"
    }
    assert found == {f"{shuffled(9, 1234, 500)} {mix(1, 2, 3)} {float(torch.rand(1, generator=draws(4, 5)))}\n"}


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True))
def test_collate_keeps_the_rows_apart(numbers):
    items = samples()
    batch = collate([items[n] for n in numbers])
    assert batch.index.tolist() == numbers
    for row, n in enumerate(numbers):
        assert torch.equal(batch.images[row], items[n]["images"])
        assert torch.equal(batch.noise[row], items[n]["noise"])
        assert batch.captions[row] == items[n]["captions"]
        assert float(batch.uniform[row]) == items[n]["uniform"]
