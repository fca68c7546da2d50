"""The four tasks, trained from configurations: the loss falls, and every checkpoint is a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tar_shards import write_shards
from tiny_models import WIDTH, written
from tiny_runs import config, judge_file, log_of, trained
from torch._dynamo.utils import counters
from transformers import CLIPModel

from ldm.codec import VAECodec
from ldm.config import validate
from ldm.data.samples import collate
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.models.discriminator import PatchDiscriminator, hinge_discriminator_loss
from ldm.recorded import load
from ldm.training.run import build_task, train
from ldm.weights.components import load_tower
from ldm.weights.files import read_json, read_tensors
from ldm.weights.model import load_model, load_vae, resolve

LONGER = {
    "train__steps": 21,
    "train__batch_size": 8,
    "train__checkpoint_every": 7,
    "train__keep_checkpoints": 9,
    "train__learning_rate": 0.005,
}


COMPILES = pytest.mark.slow(reason="a minute of compilation each")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each task, a few steps long; latent diffusion uses the VAE and the CLIP."""
    base = tmp_path_factory.mktemp("runs")
    extra = {
        "vae": {"loss__perceptual": 0.1, "loss__perceptual_path": judge_file(base / "judge.safetensors")},
        "latent": {"codec__path": base / "vae", "cache": {}, "condition__path": base / "clip"},
    }
    for kind in ("label", "toy", "vae", "clip", "latent"):
        trained(kind, base / kind, **LONGER, **extra.get(kind, {}))
    return {kind: base / kind for kind in ("label", "toy", "vae", "clip", "latent")}


@pytest.mark.parametrize(
    ("kind", "name", "share"),
    [
        ("label", "loss", 0.6),
        ("toy", "loss", 0.6),
        ("vae", "reconstruction", 0.6),
        ("clip", "loss", 0.9),
        ("latent", "loss", 0.95),
    ],
)
def test_the_loss_falls(kind, name, share, runs):
    values = [record[name] for record in log_of(runs[kind])]
    assert len(values) == 21
    assert sum(values[-6:]) < share * sum(values[:3]) * 2


@pytest.mark.parametrize(("kind", "wanted"), [("label", 7), ("toy", None), ("latent", "a handwritten two")])
def test_every_checkpoint_draws_at_once(kind, wanted, runs):
    checkpoints = sorted((runs[kind] / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step_00000007", "step_00000014", "step_00000021"]
    pictures = [load(path).generate([wanted], [3]) for path in checkpoints]
    assert all(picture.isfinite().all() and picture.std() > 0.01 for picture in pictures)
    assert not torch.equal(pictures[0], pictures[2])
    newest = load(runs[kind])  # a run is its newest checkpoint, and has the settings of its sample sheet
    assert torch.equal(newest.generate([wanted], [3]), pictures[2])
    assert newest.model.defaults["steps"] == 2
    assert newest.model.provenance["steps"] == 21


def test_a_checkpoint_of_the_latent_model_holds_its_vae_and_text_encoder(runs):
    model = load_model(resolve(runs["latent"]))
    for name, tensor in load_vae(resolve(runs["vae"])).state_dict().items():
        assert torch.equal(model.codec.vae.state_dict()[name], tensor)
    encoder, _ = load_tower(resolve(runs["clip"]))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.conditioner.towers[0].encoder.state_dict()[name], tensor)


def test_a_vae_or_clip_alone_cannot_draw(runs):
    for kind in ("vae", "clip"):
        with pytest.raises(UserError, match="but no unet: it cannot draw"):
            load(runs[kind])


# --------------------------------------------------------- the autoencoder


def test_latents_of_the_vae_have_unit_deviation(runs):
    """The scaling factor is one over the deviation of the latents of the data."""
    codec = VAECodec(load_vae(resolve(runs["vae"])))
    source = open_source(validate(config("vae", runs["vae"]), "tiny").data)
    images = to_signed(torch.stack([source.read(i).image for i in range(len(source))]))
    encoded = codec.encode(images)
    noise = torch.randn((len(source), 4, 8, 8), generator=torch.Generator().manual_seed(5))
    assert codec.latents(encoded, noise).std() == pytest.approx(1, abs=0.03)
    own = read_json(resolve(runs["vae"]) / "model_index.json")["_ldm"]["provenance"]
    assert own["latent_std"] == pytest.approx(1 / codec.scale)
    assert codec.decode(codec.mean(encoded)).shape == images.shape


def test_the_parts_of_the_loss_add_up(tmp_path):
    """With a fixed variance, loss = distance + perceptual + KL + weight * adaptive weight * generator."""
    judge = judge_file(tmp_path / "judge.safetensors")
    weights = {"loss__kl": 0.01, "loss__perceptual": 30.0, "loss__adversarial": 0.7, "loss__learned_logvar": False}
    trained("vae", tmp_path / "run", **weights, loss__perceptual_path=judge)
    records = log_of(tmp_path / "run")
    assert ["generator" in record for record in records] == [False, False, True, True, True, True]
    assert ["discriminator" in record for record in records] == [False, False, True, True, True, True]
    for r in records:
        wanted = r["reconstruction"] + 30.0 * r["perceptual"] + 0.01 * r["kl"]
        wanted += 0.7 * r.get("adaptive_weight", 0) * r.get("generator", 0)
        assert r["loss"] == pytest.approx(wanted, rel=1e-5)
        assert r["perceptual"] > 0


def test_the_adversary_learns_from_the_hinge_loss_alone(tmp_path):
    """Its first gradient is that of the hinge loss on pictures and reconstructions; what fools it adds nothing."""
    changes = {"train__checkpoint_every": 1, "train__keep_checkpoints": 9, "train__max_grad_norm": 1e6}
    last = trained("vae", tmp_path / "run", **changes, train__steps=3)  # the adversary starts at step 2
    before = last.with_name("step_00000002") / "training"
    first = last.with_name("step_00000001") / "training" / "adversary.safetensors"
    assert all(t.equal(read_tensors(first)[k]) for k, t in read_tensors(before / "adversary.safetensors").items())
    run = validate(config("vae", tmp_path / "other"), "tiny")
    task = build_task(run, torch.device("cpu"))
    for name, player in task.players.items():
        player.load_state_dict(read_tensors(before / f"{name}.safetensors"))
    batch = collate([task.samples[8 + i] for i in range(4)])
    images = to_signed(batch.images)
    with torch.no_grad():
        rebuilt = task.player.vae(images, batch.codec_noise)[0]
    adversary: PatchDiscriminator = task.players["adversary"].adversary
    hinge_discriminator_loss(adversary(images), adversary(rebuilt)).backward()
    state = torch.load(last / "training" / "state.pt", weights_only=True)["optimizers"]["adversary"]["state"]
    for number, parameter in enumerate(adversary.parameters()):
        torch.testing.assert_close(state[number]["exp_avg"] / 0.1, parameter.grad, atol=1e-5, rtol=1e-3)


# --------------------------------------------------------------------- CLIP


def test_the_clip_opens_in_transformers_with_the_same_text_tower(runs):
    folder = resolve(runs["clip"])
    clip = CLIPModel.from_pretrained(folder / "clip")
    encoder, tokenizer = load_tower(folder)
    tokens = tokenizer(["a handwritten two", "seven"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            clip.text_model(input_ids=tokens).last_hidden_state, encoder(tokens).last_hidden_state
        )


def test_parts_that_are_stored_in_half_precision_are_used_in_full(tmp_path):
    folder = written("text", tmp_path / "model", torch.float16)
    stored = read_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    changes = {"codec__path": folder, "condition__path": folder, "unet__cross_attention_dim": WIDTH}
    task = build_task(validate(config("latent", tmp_path / "run", **changes), "tiny"), torch.device("cpu"))
    parts = (task.base.codec.vae, task.player.conditioner.towers[0].encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


# ------------------------------------------------------------ compiled


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("kind", "graphs"),
    [("toy", 1), *(pytest.param(*case, marks=COMPILES) for case in (("label", 1), ("vae", 1), ("clip", 2)))],
)
def test_compiled_networks_train_alike(kind, graphs, tmp_path):
    changes = {"train__steps": 2, **({"loss__adversarial": 0.0} if kind == "vae" else {})}
    trained(kind, tmp_path / "plain", **changes)
    before = counters["stats"]["unique_graphs"]
    trained(kind, tmp_path / "compiled", **changes, train__compile=True)
    assert counters["stats"]["unique_graphs"] >= before + graphs
    plain, compiled = log_of(tmp_path / "plain"), log_of(tmp_path / "compiled")
    assert [record["step"] for record in plain] == [1, 2]
    assert compiled == [{name: pytest.approx(value, rel=1e-4) for name, value in record.items()} for record in plain]


def test_an_adversary_and_compilation_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match=r"train\.compile and loss\.adversarial do not go together"):
        validate(config("vae", tmp_path, loss__adversarial=0.5, train__compile=True), "tiny")


# ------------------------------------------------- the unconditional branch


@pytest.mark.parametrize(("kind", "drop"), [("label", 0.0), ("label", 1.0)])
def test_dropped_labels_train_the_empty_token_and_no_other(kind, drop, tmp_path):
    """AdamW without decay moves the rows of the label table that were read, and those alone."""
    changes = {"condition__drop": drop, "train__weight_decay": 0.0, "train__checkpoint_every": 1}
    run = validate(config(kind, tmp_path / "run", **changes, train__steps=3), "tiny")
    last = trained(kind, tmp_path / "run", **changes, train__steps=3)
    torch.manual_seed(0)
    task = build_task(run, torch.device("cpu"))
    state = torch.load(last / "training" / "state.pt", weights_only=True)["optimizers"]["net"]["state"]
    names = [name for name, p in task.players["net"].named_parameters() if p.requires_grad]
    moved = state[names.index("label_encoder.embedding.weight")]["exp_avg_sq"].abs().sum(1) > 0
    shown = {task.samples[n]["conditions"] for n in range(12)}
    wanted = [label in shown for label in range(10)] + [None in shown]
    assert moved.tolist() == wanted
    assert (None in shown) == (drop == 1)


def test_dropped_captions_give_the_context_of_the_empty_prompt(runs):
    run = validate(
        config("latent", runs["latent"], codec__path=runs["vae"], condition__path=runs["clip"], condition__drop=0.5),
        "tiny",
    )
    task = build_task(run, torch.device("cpu"))
    batch = collate([task.samples[n] for n in range(16)])
    assert 0 < batch.conditions.count(None) < 16
    context = task.players["net"].conditioner.encode(batch.conditions).tokens
    empty = task.players["net"].conditioner.encode([""]).tokens[0]
    for row, condition in zip(context, batch.conditions, strict=True):
        assert torch.allclose(row, empty, atol=1e-5) == (condition is None)


def test_a_clip_of_few_pictures(tmp_path):
    run = trained("clip", tmp_path / "run", limit=4, train__steps=1, train__gradient_checkpointing=True).parents[1]
    width, _ = Image.open(run / "samples" / "step_00000001.png").size
    assert width == (4 * 34 + 2) * 2


def test_a_clip_cannot_learn_its_words_from_a_stream(tmp_path):
    write_shards(tmp_path, [8])
    data = {"source": "webdataset", "path": str(tmp_path), "colours": "grey"}
    tree = config("clip", tmp_path / "run") | {"data": data, "frame": {"resolution": 64, "buckets": False}}
    with pytest.raises(UserError, match=r"learns its vocabulary from all captions, and .* is a stream"):
        train(validate(tree, "here"))
