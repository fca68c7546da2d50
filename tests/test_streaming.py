"""Reading streams along their order: from real tars, by real data loaders."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tar_shards import colour_of, members_of, picture, write_shards, write_tar
from test_lanes import sample
from tiny_runs import differences, log_of
from torch.utils.data import DataLoader

from ldm.config import validate
from ldm.data.example import BadExample
from ldm.data.framing import FrameConfig
from ldm.data.lanes import Lanes
from ldm.data.order import ShardedBatches
from ldm.data.samples import TrainingSamples, collate
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.errors import UserError
from ldm.training.run import train

COUNTS = [23, 0, 41, 1, 30, 25]  # of the shards on the disk
TOTAL = sum(COUNTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    write_shards(place, COUNTS)
    return place


def source(folder: Path, per_step: int = 8, seed: int = 5, **changes) -> WebDatasetSource:
    found = WebDatasetSource(WebDatasetConfig(path=str(folder), **{"shuffle": 64, **changes}))
    found.arrange(per_step, seed)
    return found


def number(example) -> int:
    """Which sample it is, by its caption; its picture and its name have to agree."""
    found = int(example.captions[0].split()[1])
    assert tuple(example.image[:, 0, 0].tolist()) == colour_of(found)
    assert example.key.endswith(f"/{found:09}.png")
    return found


def numbers(found: WebDatasetSource, ks) -> list[int]:
    return [number(found.read(k)) for k in ks]


# ----------------------------------------------------------- reading along it


def test_reading_is_the_order(folder):
    found = source(folder)
    order = Lanes(COUNTS, 5, 8, processes=8, workers=4, shuffle=64)
    firsts = [sum(COUNTS[:shard]) for shard in range(len(COUNTS))]
    for k in range(2 * TOTAL):
        shard, i = sample(order, k)
        example = found.read(k)
        assert number(example) == firsts[shard] + i
        assert example.key.startswith(f"{shard:05}.tar/")


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 3 * TOTAL), st.integers(1, 24), st.integers(0, 9))
def test_starting_anywhere_is_the_tail(folder, first, per_step, seed):
    whole, begun = (source(folder, per_step, seed, processes=2, workers=2) for _ in range(2))
    numbers(whole, range(max(0, first - 50), first))
    assert numbers(whole, range(first, first + 20)) == numbers(begun, range(first, first + 20))


def test_any_numbers_in_any_order_are_the_same_samples(folder):
    changes = {"shuffle": 12, "processes": 2, "workers": 1}
    expected = numbers(source(folder, **changes), range(2 * TOTAL))
    chosen = random.Random(1).choices(range(2 * TOTAL), k=60)
    assert numbers(source(folder, **changes), chosen) == [expected[k] for k in chosen]


def keys_seen(folder: Path, processes: int, workers: int, *, accumulation: int = 1):
    """Keys of every step, from the data loaders of all processes."""
    steps: dict[int, list[str]] = defaultdict(list)
    batch = 8 // processes // accumulation
    for rank in range(processes):
        samples = TrainingSamples(source(folder), 5, frame=FrameConfig(resolution=8, step=8, buckets=False))
        samples.begin(8)
        samples.first(3)  # opens shards in this process, as a task does that measures its latents
        order = ShardedBatches(2, 9, batch, rank=rank, processes=processes, accumulation=accumulation)
        loader = DataLoader(
            samples,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
        )
        for found in loader:
            for n, key, image, caption in zip(found.index, found.keys, found.images, found.captions, strict=True):
                assert tuple(image[:, 0, 0].tolist()) == colour_of(int(caption.split()[1]))
                steps[int(n) // 8].append((int(n), key))
    return {step: [key for _, key in sorted(found)] for step, found in steps.items()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 1), (1, 4), (2, 0), (2, 1), (4, 0)])
def test_neither_workers_nor_processes_change_anything(folder, processes, workers):
    alone = source(folder)
    expected = {step: [alone.read(k).key for k in range(8 * step, 8 * step + 8)] for step in range(2, 9)}
    assert keys_seen(folder, processes, workers) == expected


def test_accumulated_steps_are_the_same_samples(folder):
    assert keys_seen(folder, 2, 0, accumulation=2) == keys_seen(folder, 1, 0)


def test_a_source_that_is_read_can_be_sent_to_another_process(folder):
    found = source(folder)
    first = numbers(found, range(10))
    sent = pickle.loads(pickle.dumps(found))
    assert numbers(sent, range(10)) == first
    assert numbers(found, range(10, 30)) == numbers(sent, range(10, 30))


def test_a_scan_gives_every_sample_as_stored(folder):
    found = [(key, pickle.loads(pickle.dumps(read))()) for key, read in source(folder).scan()]
    assert [number(example) for _, example in found] == list(range(TOTAL))
    assert [key for key, _ in found] == [example.key for _, example in found]


# ------------------------------------------------------ what cannot be used


def test_left_out_samples_are_replaced_and_all_others_keep_their_place(folder, tmp_path):
    whole = source(folder)
    before = [whole.read(k).key for k in range(TOTAL)]
    gone = set(before[3:40:4])
    (tmp_path / "skip.txt").write_text("\n".join(sorted(gone)) + "\n")
    found, again = (source(folder, skip=tmp_path / "skip.txt") for _ in range(2))
    after = [found.read(k).key for k in range(TOTAL)]
    assert after == [again.read(k).key for k in range(TOTAL)]
    assert set(after) == set(before) - gone
    assert all(new == old for new, old in zip(after, before, strict=True) if old not in gone)
    assert {key for key, _ in found.scan()} == set(before) - gone


def test_a_whole_shard_left_out_is_replaced_too(folder, tmp_path):
    gone = [f"00002.tar/{n:09}.png" for n in range(23, 64)]
    (tmp_path / "skip.txt").write_text("\n".join(gone))
    found = source(folder, per_step=2, processes=1, workers=1, shuffle=5, skip=tmp_path / "skip.txt")
    assert {found.read(k).key for k in range(TOTAL)} == {key for key, _ in source(folder).scan()} - set(gone)


def test_a_list_of_other_data_is_refused(folder, tmp_path):
    (tmp_path / "skip.txt").write_text("other/00000.tar/000000001.png\n")
    with pytest.raises(UserError, match="is of a shard of webdataset"):
        source(folder, skip=tmp_path / "skip.txt")


@pytest.mark.parametrize("how", ["cut off", "cut off between files", "header"])
@pytest.mark.parametrize("told", [True, False], ids=["statistics", "counted"])
def test_what_a_damaged_shard_lost_is_bad_and_all_else_is_read(tmp_path, monkeypatch, how, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = tmp_path / "shards"
    write_shards(shards, [20, 30, 20])
    good = [*range(100, 112), *range(20), *range(50, 70)]
    samples = [(f"{n:09}", members_of(n)) for n in range(100, 130)]
    whole = write_tar(shards / "00001.tar", samples).read_bytes()
    start = whole.index(b"000000112.json")
    damaged = {
        "cut off": whole[: whole.index(b"000000112.png") + 512 + 20],
        "cut off between files": whole[:start],
        "header": whole[: start + 130] + b"?" + whole[start + 131 :],
    }
    (shards / "00001.tar").write_bytes(damaged[how])
    if not told:
        for path in shards.glob("*.json"):
            path.unlink()
    found = source(shards, skip_bad=100)
    lost = 18 if told else 2 if how == "cut off" else 1
    assert len(found) == len(good) + lost
    seen, bad = [], {}
    for k in range(len(found)):
        try:
            seen.append(number(found.read(k)))
        except BadExample as error:
            bad[error.key] = str(error)
            stand_in = number(found.read(k, turn=1))
            assert stand_in in good
            assert number(found.read(k, turn=2)) != stand_in
    assert sorted(seen) == sorted(good)
    assert len(bad) == lost
    assert all(key.startswith("00001.tar/") and str(shards / "00001.tar") in message for key, message in bad.items())
    assert sum(isinstance(failure(read), BadExample) for _, read in found.scan()) == lost


def failure(read) -> BadExample | None:
    try:
        read()
    except BadExample as error:
        return error
    return None


def test_training_passes_over_what_is_lost(tmp_path):
    paths = write_shards(tmp_path, [40, 40])
    paths[1].write_bytes(paths[1].read_bytes()[:20_000])
    samples = TrainingSamples(source(tmp_path), 5, frame=FrameConfig(resolution=8, step=8, buckets=False))
    samples.begin(8)
    batches = [collate([samples[n] for n in range(first, first + 8)]) for first in range(0, 80, 8)]
    lost = {skip.key for batch in batches for skip in batch.skipped}
    seen = {key for batch in batches for key in batch.keys}
    assert lost
    assert len(seen) + len(lost) == 80


def test_nothing_that_can_be_used_is_told(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{n}", {"png": b"none", "txt": b"a"}) for n in range(5)])
    found = source(tmp_path)
    keys = {failure(partial(found.read, 0, turn=turn)).key for turn in range(5)}
    assert len(keys) == 5
    with pytest.raises(UserError, match="no sample can stand in") as raised:
        found.read(0, turn=99)
    assert not isinstance(raised.value, BadExample)


# ------------------------------------------------------------------ training


def run_of(folder: Path, output: Path, *, resume: bool = False, skip_bad: int = 0, **changes) -> Path:
    settings = {"batch_size": 4, "steps": 6, "checkpoint_every": 4, "keep_checkpoints": 9, "log_every": 1, **changes}
    tree = {
        "task": "diffusion",
        "output": str(output),
        "data": {"source": "webdataset", "path": str(folder), "colours": "grey", "shuffle": 64, "skip_bad": skip_bad},
        "frame": {"resolution": 28, "step": 28, "buckets": False},
        "toy": {"in_channels": 1},
        "sample": {"steps": 1, "count": 1},
        "train": settings,
    }
    return train(validate(tree, "tiny"), resume=resume)


def test_a_training_run_goes_on_where_it_was(tmp_path):
    """With other workers than it began with, and in another epoch, as it goes through the data in 3 steps."""
    folder = tmp_path / "shards"
    write_shards(folder, [5, 4, 3])
    whole = run_of(folder, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000006")
    again = run_of(folder, tmp_path / "again", resume=True, workers=2)
    assert differences(whole, again) == []
    assert log_of(tmp_path / "again") == log_of(tmp_path / "whole")


def test_a_training_run_stops_at_what_is_lost_or_counts_it(tmp_path):
    paths = write_shards(tmp_path / "shards", [30, 30])
    paths[1].write_bytes(paths[1].read_bytes()[:30_000])
    changes = {"batch_size": 20, "steps": 2}
    with pytest.raises(UserError, match=r"00001\.tar"):
        run_of(tmp_path / "shards", tmp_path / "stopped", **changes)
    run_of(tmp_path / "shards", tmp_path / "on", skip_bad=40, **changes)


# ------------------------------------------------------------------- at size


def read_an_epoch(folder: Path, rank: int, told) -> None:
    """What one of two training processes does in an epoch: how often each sample came, and memory on the way."""
    samples = TrainingSamples(source(folder, shuffle=4096), 5, frame=FrameConfig(resolution=8, step=8, buckets=False))
    samples.begin(20)
    steps = len(samples.source) // 20
    order = ShardedBatches(0, steps, 10, rank=rank, processes=2)
    loader = DataLoader(samples, batch_sampler=order, num_workers=2, collate_fn=collate)
    seen, memory = bytearray(len(samples.source)), []
    for step, batch in enumerate(loader, start=1):
        for caption in batch.captions:
            seen[int(caption.split()[1])] += 1
        if step % (steps // 10) == 0:
            me = psutil.Process()
            memory.append(sum(one.memory_info().rss for one in (me, *me.children())) / 2**20)
    told.send((bytes(seen), memory))


@pytest.mark.slow  # minutes: 100,000 samples are written, read and decoded
def test_a_hundred_thousand_samples_by_two_processes(tmp_path):
    write_shards(tmp_path, [1000] * 100, image=picture(1))
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    readers = [context.Process(target=read_an_epoch, args=(tmp_path, rank, pipes[rank][1])) for rank in range(2)]
    for reader in readers:
        reader.start()
    (first, memory), (second, other) = (mine.recv() for mine, _ in pipes)
    for reader in readers:
        reader.join()
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * 100_000
    assert sum(first) == sum(second) == 50_000
    for rank, series in enumerate((memory, other)):
        print(f"process {rank} and its 2 workers, MiB after each tenth:", *(f"{value:.0f}" for value in series))
        assert max(series[2:]) < series[1] + 20
