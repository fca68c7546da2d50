"""Whole runs that start from a finished model: what is held out, drawn, compared, cached and kept on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_folders import put
from PIL import Image
from tar_shards import write_shards
from tiny_models import written
from tiny_runs import digits, log_of, training_state

import ldm
from ldm.config import validate
from ldm.data.samples import collate
from ldm.errors import UserError
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.memorised import Memory
from ldm.training.run import build_task, processes, train
from ldm.training.trainer import Trainer
from ldm.training.tune_settings import MemorisedConfig
from ldm.weights.files import read_tensors
from ldm.weights.model import load_model
from ldm.weights.tuned import LORA_FILE

LORA = {"kind": "lora", "rank": 2}
TRAIN = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "lr_warmup_steps": 0, "ema_decay": 0, "log_every": 1}
HELD = {"validation": {"count": 6, "times": 3, "every": 2, "prompts": ["two", "four"], "pictures": 3}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return written("text", tmp_path_factory.mktemp("base") / "model")


def tree(base: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "diffusion",
        "output": str(output),
        "model": str(base),
        "data": {"source": "mnist", "path": str(digits()), "size": 32, "captions": True},
        "sample": {"count": 3, "columns": 3, "conditions": ["two"]},
        "train": TRAIN,
        **changes,
    }


def task_of(base: Path, output: Path, **changes: Any) -> DiffusionTask:
    task = build_task(validate(tree(base, output, **changes), "here"), torch.device("cpu"))
    assert isinstance(task, DiffusionTask)
    task.player.eval()
    return task


def trained(base: Path, output: Path, **changes: Any) -> Path:
    return train(validate(tree(base, output, **changes), "here"))


# ------------------------------------------------------------------------------- the held-out loss


def test_pictures_that_cannot_be_measured_are_named(base, tmp_path, capsys):
    """Training never comes by them, so it cannot be what names them."""
    folder = tmp_path / "pictures"
    for number in range(8):
        (put(folder / f"{number}.png", number, (32, 32)).with_suffix(".txt")).write_text("two")
    data = {"source": "folder", "path": str(folder), "colours": "grey"}
    judged: dict[str, Any] = {"data": data, "validation": {"count": 3}}
    held = task_of(base, tmp_path / "run", **judged)._held_out
    assert held is not None
    bad = folder / held.samples.source.key(1)
    bad.write_bytes(bad.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"1 held-out examples cannot be used, and data.skip_bad allows 0"):
        trained(base, tmp_path / "none", **judged)
    trained(base, tmp_path / "one", data={**data, "skip_bad": 1}, validation={"count": 3, "every": 1})
    assert capsys.readouterr().err.count(f"skipped in validation: {bad}") == 1 + 1


def test_a_cache_has_the_captions_of_what_is_held_out(base, tmp_path):
    captions = {"shuffle": True, "variants": 3}
    held = {"count": 6, "every": 2, "seed": 1}
    half = {**TRAIN, "mixed_precision": "bf16"}  # in which autocast cannot stack what the cache keeps, float16
    trained(base, tmp_path / "run", captions=captions, cache={}, validation=held, train=half)
    assert [r for r in log_of(tmp_path / "run") if "validation_loss" in r]


def test_the_validation_loss_is_fixed_and_shared_out(base, tmp_path):
    task = task_of(base, tmp_path, **HELD)
    (total, count) = task.validation(task.player, 0, 1)["loss"]
    assert count == 6 * 3
    assert task.validation(task.player, 0, 1)["loss"] == (total, count)  # the same noise and times again
    shares = [task.validation(task.player, rank, 3)["loss"] for rank in range(3)]
    assert sum(share for share, _ in shares) == pytest.approx(total, rel=1e-5)
    assert sum(n for _, n in shares) == count
    other = task_of(base, tmp_path, **{**HELD, "seed": 5})  # what is validated on does not depend on the run's seed
    assert other.validation(other.player, 0, 1)["loss"][0] == pytest.approx(total, rel=1e-5)
    with torch.no_grad():
        for parameter in task.player.net.parameters():
            parameter += 0.1
    assert task.validation(task.player, 0, 1)["loss"][0] != pytest.approx(total, rel=1e-2)


def test_held_out_pictures_are_not_trained_on_and_times_are_stratified(base, tmp_path):
    task = task_of(base, tmp_path, **HELD)
    assert task._held_out is not None
    batches = [task._held_out.batch(k) for k in range(5)]
    held = {key for batch in batches for key in batch.keys}
    assert len(held) == 6
    task.samples.begin(4)
    seen = {task.samples[n]["keys"] for n in range(80)}
    assert len(seen) == 34
    assert not seen & held
    uniform = torch.cat([batch.uniform for batch in batches]).sort().values
    torch.testing.assert_close(uniform, (torch.arange(18) + 0.5) / 18)


def test_a_run_leaves_its_validation(base, tmp_path):
    trained(base, tmp_path / "run", tune=LORA, **HELD)
    records = log_of(tmp_path / "run")
    losses = {r["step"]: r["validation_loss"] for r in records if "validation_loss" in r}
    assert sorted(losses) == [2, 4]
    for step in (2, 4):
        sheet = Image.open(tmp_path / "run" / "validation" / f"step_{step:08d}.png")
        assert sheet.width > 3 * 96
        assert sheet.height > 2 * 96


def test_validation_pictures_do_not_depend_on_the_number_of_processes(base, tmp_path):
    task = task_of(base, tmp_path, **HELD)
    alone = task.draw_validation(task.player, 0, 1)
    shares = [task.draw_validation(task.player, rank, 4) for rank in range(4)]
    together = [shares[k % 4][k // 4] for k in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    # rows are prompts, columns are seeds: the noise of a column is the same
    wanted = ldm.load(base, device="cpu", dtype="fp32").generate(["four"], [1])
    torch.testing.assert_close(alone[4], wanted[0])


# ---------------------------------------------------------------------------------- memorised


def memory(task: DiffusionTask, **config: Any) -> Memory:
    return Memory(task.samples, MemorisedConfig(**config), lambda: task.base.codec)


def by_hand(task: DiffusionTask, pictures: torch.Tensor) -> np.ndarray:
    """Vectors of pictures: the means of their latents, (N, D)."""
    codec: Any = task.base.codec
    return (codec.vae.encode(pictures)[:, :4] * codec.scale).flatten(1).detach().double().numpy()


def test_copies_are_found_and_the_limit_is_the_datas_own(base, tmp_path, capsys):
    task = task_of(base, tmp_path, data={"source": "mnist", "path": str(digits()), "size": 32, "captions": True})
    found = memory(task, quantile=0.1)
    pictures = torch.stack([e.image for e in task.samples.first(40)]).float() / 127.5 - 1
    vectors = by_hand(task, pictures)
    apart = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).mean(-1))
    np.fill_diagonal(apart, np.inf)
    assert found.limit == pytest.approx(np.quantile(apart.min(1), 0.1), rel=1e-4)
    noise = torch.randn(pictures[:3].shape, generator=torch.Generator().manual_seed(0))
    samples = [*(pictures[:3] + 0.01 * noise), *noise]
    near = found.look(samples)
    assert [found.places[int(row)].index for row in near.rows[:3]] == [0, 1, 2]
    told = found.report(samples, tmp_path / "sheet.png")
    assert told["copies"] == 3
    assert told["nearest_limit"] == found.limit
    assert "3 of 6 samples are nearer to a training picture than training pictures are" in capsys.readouterr().err
    assert Image.open(tmp_path / "sheet.png").height > 6 * 96


def test_a_run_compares_its_samples(base, tmp_path):
    changes = {"memorised": {"pictures": 12}, "tune": LORA, "cache": {}}
    trained(base, tmp_path / "run", **changes, train={**TRAIN, "ema_decay": 0.9})
    (told,) = [r for r in log_of(tmp_path / "run") if "nearest_distance" in r]
    assert told["nearest_distance"] <= told["nearest_distance_median"]
    assert (tmp_path / "run" / "samples" / "step_00000004_nearest.png").is_file()


def test_pictures_of_several_shapes_are_compared(base, tmp_path):
    for k in range(6):
        put(tmp_path / "pictures" / f"{k}.png", k, (64, 64 - 16 * (k % 2)))
    changes = {
        "data": {"source": "folder", "path": str(tmp_path / "pictures"), "caption": "two", "colours": "grey"},
        "frame": {"resolution": 64, "step": 16},
        "memorised": {},
        "sample": {"count": 2, "steps": 2, "sampler": "ddim", "conditions": ["two"]},
        "train": {**TRAIN, "steps": 1},
    }
    trained(base, tmp_path / "run", **changes)
    assert (tmp_path / "run" / "samples" / "step_00000001_nearest.png").is_file()


def test_one_picture_is_compared_with_none(base, tmp_path):
    with pytest.raises(UserError, match=r"there are fewer than two: memorised=null does without"):
        trained(base, tmp_path / "run", memorised={}, limit=1)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_draw_into_its_own_data(base, tmp_path):
    put(tmp_path / "pictures" / "one.png", 1, (32, 32))
    folder = {"source": "folder", "path": str(tmp_path / "pictures"), "caption": "two", "colours": "grey"}
    mnist = {"source": "mnist", "path": str(digits()), "size": 32, "captions": True}
    for data in (folder, {"source": "mix", "sources": [{"data": mnist}, {"data": folder}]}):
        with pytest.raises(UserError, match="the folder of the pictures, and what the run draws would be data"):
            trained(base, tmp_path / "pictures" / "deep" / "run", data=data)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["one.png"]


def test_vectors_of_cached_moments_are_those_of_pictures(base, tmp_path):
    plain = memory(task_of(base, tmp_path / "a"))
    kept = memory(task_of(base, tmp_path / "b", cache={"dtype": "fp32"}))
    torch.testing.assert_close(kept._features, plain._features, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------ caches, checkpoints, bases


def test_training_from_a_cache_reads_neither_vae_nor_text_encoder(base, tmp_path):
    task = task_of(base, tmp_path / "run", cache={"dtype": "fp32"}, tune=LORA)
    plain = task_of(base, tmp_path / "plain", tune=LORA)
    for own, other in zip(task.player.parameters(), plain.player.parameters(), strict=True):
        own.data.copy_(other.data)
    codec: Any = task.base.codec
    conditioner: Any = task.base.conditioner
    for module in (codec.vae, conditioner.towers[0].encoder):
        for parameter in module.parameters():
            parameter.data = torch.full_like(parameter, torch.nan)
    numbers = [0, 1, 2, 3]
    for each in (task, plain):
        each.samples.begin(4)
    losses = [each.player.losses(collate(each.samples.__getitems__(numbers)))[0] for each in (task, plain)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-4)
    # and samples are drawn with parts that are read for that alone
    for mine, theirs in zip(task.draw(task.player, 0, 1), plain.draw(plain.player, 0, 1), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_recomputed_activations_give_the_same_gradients(base, tmp_path):
    found = []
    for again in (False, True):
        settings = {"tune": {"kind": "full", "text_encoder": True}, "train": {**TRAIN, "gradient_checkpointing": again}}
        task = task_of(base, tmp_path, **settings)
        task.samples.begin(4)
        task.player.train()(collate(task.samples.__getitems__([0, 1, 2, 3])), 0).loss.backward()
        found.append({name: p.grad for name, p in task.player.named_parameters() if p.requires_grad})
    assert any(getattr(part, "gradient_checkpointing", False) for part in task.player.encoders.modules())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5)


def test_a_cache_of_texts_is_not_for_text_encoders_that_change(base, tmp_path):
    word = {"kind": "textual_inversion", "token": "zork", "initializer": "two"}
    for tune in ({"kind": "full", "text_encoder": True}, word):
        with pytest.raises(UserError, match=r"cache\.texts must be false"):
            task_of(base, tmp_path, tune=tune, cache={}, captions={"prefix": "zork "})


def test_a_lora_run_draws_at_once_and_leaves_the_base_alone(base, tmp_path):
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    checkpoint = trained(base, tmp_path / "zork", tune=LORA, cache={})
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        LORA_FILE,
        "training",
        "tuned.json",
        "zork.kohya.safetensors",
    ]
    note = json.loads((checkpoint / "tuned.json").read_text())
    assert note["model"] == str(base)
    assert note["provenance"]["steps"] == 4
    assert "model" not in note["provenance"]["config"]
    options = {"device": "cpu", "dtype": "fp32"}
    drawn = ldm.load(base, loras=[(tmp_path / "zork", 1.0)], **options).generate(["two"], [0])
    plain = ldm.load(base, **options).generate(["two"], [0])
    assert not torch.allclose(drawn, plain, atol=1e-2)
    sheet = Image.open(tmp_path / "zork" / "samples" / "step_00000004.png")
    assert sheet.size == ((3 * 34 + 2) * 2, (34 + 2) * 2)


def test_an_interrupted_lora_run_ends_as_one_that_was_not(base, tmp_path):
    changes: dict[str, Any] = {"tune": {**LORA, "dropout": 0.5, "text_encoder": True, "text_learning_rate": 1e-3}}
    whole = trained(base, tmp_path / "a", **changes)
    trained(base, tmp_path / "b", **{**changes, "train": {**TRAIN, "steps": 2}})
    resumed = train(validate(tree(base, tmp_path / "b", **changes), "here"), resume=True)
    one, other = training_state(whole), training_state(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_full_run_writes_what_it_does_not_train_as_it_was(tmp_path):
    """A base in float16: the VAE comes out bit for bit, the U-Net in float32."""
    base = written("text", tmp_path / "half", torch.float16)
    checkpoint = trained(base, tmp_path / "run", tune={"kind": "full", "text_encoder": True})
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (checkpoint / vae).read_bytes() == (base / vae).read_bytes()
    model = load_model(checkpoint)
    assert next(model.net.parameters()).dtype == torch.float32
    text = "text_encoder/model.safetensors"
    own, old = read_tensors(checkpoint / text), read_tensors(base / text)
    assert own.keys() == old.keys()
    assert any(not torch.equal(own[name], old[name].float()) for name in own)
    assert ldm.load(tmp_path / "run", device="cpu", dtype="fp32").generate(["two"], [0]).isfinite().all()
    assert model.defaults == {"sampler": "ddim", "steps": 3, "guidance": 3.0}  # the base's own


def test_what_is_trained_is_in_training(base, tmp_path):
    """Models are opened for drawing, and recompute activations only while they train."""
    settings = validate(tree(base, tmp_path, tune={"kind": "full", "text_encoder": True}), "here")
    with processes(settings) as (accelerator, team):
        task = build_task(settings, accelerator.device)
        Trainer(settings, task, accelerator, team, {})
        assert all(module.training for module in task.player.modules())


def test_text_encoders_that_are_trained_begin_unrounded(base, tmp_path):
    half: dict[str, Any] = {"frozen_dtype": "bf16", "train": {**TRAIN, "mixed_precision": "bf16"}}
    begun = task_of(base, tmp_path, tune={"kind": "full", "text_encoder": True}, **half)
    conditioner: Any = load_model(base).conditioner
    as_read, own = conditioner.towers[0].encoder.state_dict(), begun.player.encoders[0].encoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, own[name]) for name, value in as_read.items())


def test_a_lora_leaves_the_tokens_of_labels_alone(tmp_path):
    """Its files have no place for them."""
    base = written("label", tmp_path / "label")
    sample = {"count": 2, "conditions": [3]}
    task = task_of(base, tmp_path / "run", tune=LORA, sample=sample)
    assert all("lora_" in name for name, p in task.player.named_parameters() if p.requires_grad)
    word = {"kind": "textual_inversion", "token": "two", "initializer": "a"}
    with pytest.raises(UserError, match="teaches a text encoder a word, and this model has none"):
        task_of(base, tmp_path / "run", tune=word, sample=sample, captions={"prefix": "two "})
    for wrong in ({"sample": {"conditions": ["x"]}}, {"sample": sample, "validation": {"prompts": ["x"]}}):
        with pytest.raises(UserError, match="draws a label from 0 to 9, or nothing; got 'x'"):
            task_of(base, tmp_path / "run", **wrong)


def test_steps_with_pictures_of_the_class_alone(base, tmp_path):
    data = tree(base, tmp_path)["data"]
    trained(base, tmp_path / "run", prior={"data": data}, train={**TRAIN, "batch_size": 1})
    assert {("loss" in r, "loss_prior" in r) for r in log_of(tmp_path / "run") if "lr" in r} == {
        (True, False),
        (False, True),
    }


def test_a_stream_is_not_looked_through_for_copies(base, tmp_path):
    write_shards(tmp_path, [8])
    data = {"source": "webdataset", "path": str(tmp_path), "colours": "grey"}
    frame = {"resolution": 32, "step": 32, "buckets": False}
    with pytest.raises(UserError, match=r"memorised looks through the training pictures, and .* is a stream"):
        task_of(base, tmp_path / "run", data=data, frame=frame, memorised={})


def test_pictures_of_the_class_are_drawn_once(base, tmp_path):
    prior = {"prior": {"generate": {"prompt": "two", "count": 5, "batch_size": 2}}}
    task = task_of(base, tmp_path / "run", **prior)
    folder = tmp_path / "run" / "prior"
    files = sorted(folder.glob("*.png"))
    assert [file.name for file in files] == [f"{k:05}.png" for k in range(5)]
    first = {file: file.read_bytes() for file in files}
    files[3].unlink()
    stamps = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    task_of(base, tmp_path / "run", **prior)
    assert {file: file.read_bytes() for file in files} == first
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    task.samples.begin(4)
    for step in range(4):
        batch = collate(task.samples.__getitems__([*range(4 * step, 4 * step + 4)]))
        of_class = [key.startswith("class picture") for key in batch.keys]
        assert sum(of_class) == 2
        assert all(c == "two" for c, own in zip(batch.captions, of_class, strict=True) if own)
    prior["prior"]["generate"]["count"] = 3  # what a larger count left stays, and is not learned from
    fewer = task_of(base, tmp_path / "run", **prior).samples.plan.parts[-1]
    assert [fewer.key(i) for i in range(len(fewer))] == [f"class picture {k:05}.png" for k in range(3)]
    assert all(file.is_file() for file in files)
    with pytest.raises(UserError, match="drawn in another way: delete it to draw anew"):
        task_of(base, tmp_path / "run", prior={"generate": {"prompt": "four", "count": 5}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction": "v", "tune": LORA}, "predicts epsilon, and prediction says v: a lora is drawn with beside"),
        ({"data": {"source": "mnist", "path": None, "size": 32}}, "needs captions, but .* has none"),
        ({"sample": {"sampler": "ddim"}}, "sample.sampler beside a finished model needs sample.steps"),
        ({"tune": {"kind": "textual_inversion", "token": "zork", "initializer": "two"}}, "do not have the word 'zork'"),
    ],
)
def test_what_does_not_fit_the_model(changes, said, base, tmp_path):
    if "data" in changes:
        changes["data"]["path"] = str(digits())
    with pytest.raises(UserError, match=said):
        task_of(base, tmp_path, **changes)


def test_models_that_were_distilled_are_not_undone(tmp_path):
    from tiny_families import FAMILIES

    from ldm.weights.model import save_model

    save_model(FAMILIES["lcm"](), tmp_path / "lcm")
    with pytest.raises(UserError, match="was distilled to draw in a few steps"):
        task_of(tmp_path / "lcm", tmp_path / "run")


def test_a_model_can_be_taught_to_predict_v(base, tmp_path, capsys):
    checkpoint = trained(base, tmp_path / "run", prediction="v")
    assert "it will be taught the other" in capsys.readouterr().out
    assert load_model(checkpoint).prediction == "v"
