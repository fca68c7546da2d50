"""Distillation: its loss by the paper's equations on diffusers' networks, what a run leaves, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel  # type: ignore[attr-defined]
from test_finetune import PROMPTS, a_batch, on_meta, their_latents, their_text
from tiny_families import FAMILIES, Folders
from tiny_models import MODELS, fill, written
from tiny_runs import command, config, differences, digits, log_of
from torch import Tensor

import ldm
from ldm.config import dump_config, validate
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import UserError
from ldm.training.lcm_player import StudentPlayer
from ldm.training.lcm_settings import LcmRun
from ldm.training.lcm_task import LcmTask, student_of
from ldm.training.run import train
from ldm.weights.files import read_json
from ldm.weights.model import load_model, save_model
from ldm.weights.opening import Loading, open_model

CPU = torch.device("cpu")
TRAIN = config("latent", Path())["train"]


def run_of(teacher: Path | str = "a place", output: Path | str = "nowhere", **changes: Any) -> LcmRun:
    data = {"source": "mnist", "size": 32, "captions": True, "path": str(digits())}
    sample = {"count": 4, "columns": 2}
    tree = {
        "task": "lcm",
        "teacher": str(teacher),
        "output": str(output),
        "data": data,
        "train": TRAIN,
        "sample": sample,
    }
    return validate(tree | changes, "here")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("teachers")
    return {kind: written(kind, place / kind) for kind in MODELS}


# ------------------------------------------------------------------------ the loss, by the paper


def as_diffusers(net: Any) -> UNet2DConditionModel:
    found: Any = UNet2DConditionModel.from_config(net.config.to_diffusers())
    found.load_state_dict(net.state_dict())
    return found


def both(pipe: Any, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return alpha * x - sigma * output, sigma * x + alpha * output
    return (x - sigma * output) / alpha, output


@torch.no_grad()
def their_loss(pipe: Any, nets: tuple[Any, Any], batch: Any, low: float, high: float, c: float, told: bool) -> Tensor:
    """Luo et al. 2023, algorithm 1: w there is g - 1 here, and the times are 50 of 1000."""
    student, target = nets
    rung = (batch.uniform * 50).floor().long()
    t, s = 20 * rung + 19, (20 * rung - 1).clamp(min=0)
    w = low + (high - low) * (batch.uniform * 50 - rung) - 1
    z = their_latents(pipe, batch.images.float() / 127.5 - 1, batch)
    bars = pipe.scheduler.alphas_cumprod
    levels = {
        n: (bars[at].sqrt()[:, None, None, None], (1 - bars[at]).sqrt()[:, None, None, None])
        for n, at in (("t", t), ("s", s))
    }
    z_t = levels["t"][0] * z + levels["t"][1] * batch.noise
    states, added = their_text(pipe, batch.conditions)
    empty, empty_added = their_text(pipe, [None] * len(z))
    for more in (added, empty_added):
        if more:
            more["time_ids"] = torch.tensor(
                [(*f.original, f.top, f.left, f.height, f.width) for f in batch.frames]
            ).float()
    x0, eps = both(pipe, pipe.unet(z_t, t, states, added_cond_kwargs=added or None).sample, z_t, *levels["t"])
    free = both(pipe, pipe.unet(z_t, t, empty, added_cond_kwargs=empty_added or None).sample, z_t, *levels["t"])
    spread = w[:, None, None, None]
    x0, eps = (1 + spread) * x0 - spread * free[0], (1 + spread) * eps - spread * free[1]
    z_s = levels["s"][0] * x0 + levels["s"][1] * eps
    waves = None
    if told:
        width = student.config.time_cond_proj_dim
        waves = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width)  # type: ignore[arg-type]

    def jump(net: Any, x: Tensor, at: Tensor, level: tuple[Tensor, Tensor]) -> Tensor:
        output = net(x, at, states, timestep_cond=waves, added_cond_kwargs=added or None).sample
        scaled = (10.0 * at)[:, None, None, None]
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return c_skip * x + c_out * both(pipe, output, x, *level)[0]

    error = jump(student, z_t, t, levels["t"]) - jump(target, z_s, s, levels["s"])
    return ((error**2 + c**2).sqrt() - c).mean()


@pytest.mark.parametrize("guidance", [(2.0, 9.0), 4.0], ids=["told", "learned"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_loss_is_that_of_the_paper_on_diffusers_networks(folders: Folders, family: str, guidance: Any) -> None:
    run, model = run_of(guidance=guidance, guidance_waves=16, huber_c=0.05), load_model(folders.folder(family))
    student = fill(student_of(model, run, guidance), 5, 0.02).train()
    player = StudentPlayer(student, model, run, guidance)
    averaged = copy.deepcopy(player)
    fill(averaged.net, 6, 0.02)
    player.follow(averaged)
    batch = a_batch()
    told = isinstance(guidance, tuple)
    nets = as_diffusers(student), as_diffusers(averaged.net)
    low, high = guidance if told else (guidance, guidance)
    expected = their_loss(folders.theirs(family), nets, batch, low, high, 0.05, told)
    found = player(batch, 0)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    found.loss.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in [*model.net.parameters(), *averaged.parameters()])
    quarters = [found.parts[f"loss_q{i}"] for i in range(1, 5)]
    assert sum(float(total) for total, _ in quarters) == pytest.approx(float(found.parts["loss"][0]))


def test_kept_contexts_give_the_same_loss(folders: Folders) -> None:
    """Also where a prompt of the batch takes two windows, and the empty one has to be as long."""
    run, model = run_of(guidance=3.0), load_model(folders.folder("sd1"))
    long = " ".join(["a handwritten seven"] * 8)
    batch = a_batch()
    batch = type(batch)(**{**vars(batch), "conditions": [PROMPTS[0], long, None]})
    with_texts = StudentPlayer(student_of(model, run, 3.0), model, run, 3.0)
    expected = with_texts(batch, 0).loss
    conditioner: Any = model.conditioner
    kept = type(batch)(**{**vars(batch), "context": conditioner.encode(batch.conditions)})
    assert kept.context.tokens.shape[1] > conditioner.window
    found = StudentPlayer(with_texts.net, model, run, 3.0, conditioner.encode([None]))(kept, 0).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_step_asks_nothing_of_its_device(folders: Folders) -> None:
    run, model = run_of(guidance=3.0), load_model(folders.folder("sdxl"))
    conditioner: Any = model.conditioner
    nothing = conditioner.encode([None]).map(lambda value: value.to("meta"))
    batch = on_meta(model)
    player = StudentPlayer(student_of(model, run, 3.0), model, run, 3.0, nothing)
    player(batch, 0).loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in player.parameters())


@pytest.mark.parametrize("changes", [{"guidance": [1.0, 4.0]}, {"guidance": 2.0}, {"tune": {"kind": "lora"}}])
def test_a_student_begins_as_its_teacher(folders: Folders, changes: dict[str, Any]) -> None:
    run, model = run_of(**changes), load_model(folders.folder("sd1"))
    student = student_of(model, run, run.guidance or 7.5)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([19, 999]), torch.randn(2, 5, 24)
    told = {"guidance": torch.tensor([0.5, 3.0])} if isinstance(run.guidance, tuple) else {}
    torch.testing.assert_close(student(x, t, context, **told), model.net(x, t, context))


# ----------------------------------------------------------------------------- what a run leaves


@pytest.fixture(scope="module")
def told(teachers: dict[str, Path], tmp_path_factory) -> Path:
    """A student of the text model that is told its guidance."""
    return train(run_of(teachers["text"], tmp_path_factory.mktemp("told") / "run", guidance=[1.0, 5.0]))


@pytest.mark.parametrize("kind", ["text", "label", "unconditional"])
def test_a_run_leaves_a_model_that_draws_in_four_steps(
    teachers: dict[str, Path], told: Path, tmp_path: Path, kind: str
) -> None:
    last = told
    if kind != "text":
        changes = {"guidance": [1.0, 5.0]} if kind == "label" else {}
        data = {"source": "mnist", "path": str(digits())}
        last = train(run_of(teachers[kind], tmp_path / "run", data=data, train={**TRAIN, "steps": 2}, **changes))
    model, index = load_model(last), read_json(last / "model_index.json")
    usual = {"text": 3.0, "label": 2.0, "unconditional": 1.0}[kind]  # the teachers' own
    assert model.defaults == {"sampler": "lcm", "steps": 4, "guidance": usual}
    assert getattr(model.net.config, "time_cond_proj_dim", None) == (None if kind == "unconditional" else 256)
    assert str(teachers[kind]) not in str(index)
    asked: list[Any] = {"text": ["two"], "label": [2], "unconditional": [None]}[kind]
    assert ldm.load(last, device="cpu").generate(asked, [0]).isfinite().all()
    before: Any = load_model(teachers[kind]).net
    assert not torch.equal(before.conv_in.weight, model.net.conv_in.weight)  # type: ignore[union-attr]


def test_what_is_not_trained_is_written_as_it_was_read(teachers: dict[str, Path], told: Path) -> None:
    for file in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (told / file).read_bytes() == (teachers["text"] / file).read_bytes()


def test_diffusers_opens_the_student_and_draws_the_same(told: Path) -> None:
    pipe: Any = LatentConsistencyModelPipeline.from_pretrained(told)
    assert type(pipe.scheduler).__name__ == "LCMScheduler"
    pipe.set_progress_bar_config(disable=True)
    state = [torch.Generator().manual_seed(7)]
    noise = torch.randn(4, 8, 8, generator=state[0])[None]
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    expected = pipe("two", height=32, width=32, latents=noise, generator=state, **options).images
    found = ldm.load(told, device="cpu", dtype="fp32").generate(["two"], [7])
    torch.testing.assert_close(found / 2 + 0.5, expected, rtol=0, atol=2e-4)


def test_resuming_changes_nothing(teachers: dict[str, Path], told: Path, tmp_path: Path) -> None:
    """So the target network is resumed too."""
    again, changes = tmp_path / "again", {"guidance": [1.0, 5.0]}
    train(run_of(teachers["text"], again, **changes, train={**TRAIN, "steps": 3}))
    assert differences(told, train(run_of(teachers["text"], again, **changes), resume=True)) == []


def test_a_lora_is_merged_and_beside_it(teachers: dict[str, Path], tmp_path: Path) -> None:
    tune = {"kind": "lora", "rank": 2, "targets": "conv"}
    last = train(run_of(teachers["text"], tmp_path / "run", tune=tune, guidance=3.0))
    merged, teacher = load_model(last).net.state_dict(), load_model(teachers["text"]).net.state_dict()
    file = last / "pytorch_lora_weights.safetensors"
    with_lora = open_model(teachers["text"], Loading(loras=((file, 1.0),))).net.state_dict()
    assert merged.keys() == teacher.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, with_lora[name], rtol=0, atol=1e-7)
    assert any(not torch.equal(merged[name], teacher[name]) for name in merged)
    assert load_model(last).defaults == {"sampler": "lcm", "steps": 4, "guidance": 1.0}
    assert (last / "lcm.kohya.safetensors").is_file()


@pytest.mark.parametrize("tune", [{"kind": "lora", "targets": "conv"}, {"kind": "full"}])
def test_a_frozen_teacher_in_half_precision_teaches_the_same(
    teachers: dict[str, Path], tmp_path: Path, tune: dict[str, Any]
) -> None:
    """Under bf16 autocast its weights are rounded so in any case; no rounded one is begun with or written."""
    train_in_half = {**TRAIN, "mixed_precision": "bf16", "steps": 2, "channels_last": True}
    changes = {"tune": tune, "guidance": 3.0, "train": train_in_half}
    runs = {
        dtype: run_of(teachers["text"], tmp_path / dtype, frozen_dtype=dtype, **changes) for dtype in ("fp32", "bf16")
    }
    task = LcmTask(runs["bf16"], CPU)
    kernel, own = (next(iter(net.parameters())) for net in (task.teacher.net, task.teacher.codec.vae))
    assert kernel.dtype == own.dtype == torch.bfloat16
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert own.is_contiguous(memory_format=torch.channels_last)
    assert all(p.dtype == torch.float32 for p in task.player.parameters() if p.requires_grad)
    places = {dtype: train(run) for dtype, run in runs.items()}
    losses = [[record["loss"] for record in log_of(tmp_path / dtype)] for dtype in places]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    teacher: Any = load_model(teachers["text"]).net
    student: Any = task.player.net if tune["kind"] == "full" else load_model(places["bf16"]).net
    assert torch.equal(student.conv_in.weight, teacher.conv_in.weight)  # which no LoRA changes
    assert {p.dtype for p in load_model(places["bf16"]).net.parameters()} == {torch.float32}


def test_a_cache_takes_the_place_of_pictures_and_texts(teachers: dict[str, Path], told: Path, tmp_path: Path) -> None:
    kept = run_of(teachers["text"], tmp_path / "kept", guidance=[1.0, 5.0], cache={"dtype": "fp32"})
    (tmp_path / "run.yaml").write_text(dump_config(kept))
    assert command("data", "cache", str(tmp_path / "run.yaml")) == 0
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept" / "cache").iterdir()}
    train(kept)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept" / "cache").iterdir()} == files
    losses = [[record["loss"] for record in log_of(run)] for run in (told.parents[1], tmp_path / "kept")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    sample = LcmTask(kept, CPU).samples[0]
    assert sample["images"].is_floating_point()
    assert sample["context"] is not None


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guidance": [4.0, 4.0]}, "the second is larger"),
        ({"tune": {"kind": "lora"}, "guidance": [1.0, 4.0]}, "one number in place of a range"),
        ({"frozen_dtype": "bf16"}, "frozen_dtype bf16 needs train.mixed_precision bf16"),
        ({"tune": {"kind": "full", "text_encoder": True}}, "leaves the text encoder as it is"),
        ({"guidance": 3.0, "sample": {"guidance": 3.0}}, "sample.guidance is for students that are told"),
        ({"tune": {"kind": "textual_inversion", "token": "x", "initializer": "y"}}, "tune.kind"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_of(**changes)


def test_steps_of_the_solver_that_the_sampler_does_not_know(teachers: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="solver_steps should be one of 50, 100, 200, 250, 500, 1000, got 60"):
        LcmTask(run_of(teachers["text"], solver_steps=60), CPU)


def test_guidance_without_conditions(teachers: dict[str, Path]) -> None:
    data = {"source": "mnist", "path": str(digits())}
    with pytest.raises(UserError, match="needs a teacher with conditions"):
        LcmTask(run_of(teachers["unconditional"], guidance=3.0, data=data), CPU)


def test_teachers_that_cannot_be_distilled(teachers: dict[str, Path], tmp_path: Path) -> None:
    save_model(FAMILIES["lcm"](), tmp_path / "lcm")
    with pytest.raises(UserError, match="distilled"):
        LcmTask(run_of(tmp_path / "lcm"), CPU)
    flow = load_model(teachers["unconditional"])
    flow.process, flow.prediction = ProcessConfig(kind="flow"), "flow"
    save_model(flow, tmp_path / "flow")
    with pytest.raises(UserError, match="this one's is a flow"):
        LcmTask(run_of(tmp_path / "flow", data={"source": "mnist", "path": str(digits())}), CPU)
