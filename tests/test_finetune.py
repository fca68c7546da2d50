"""Training that starts from a finished model: the same steps as diffusers makes, for every family; what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler  # type: ignore[attr-defined]
from tiny_families import FACTOR, FAMILIES, Folders
from torch import Tensor

from ldm.config import dump_config, load_config, parse_yaml, validate
from ldm.data.framing import Frame
from ldm.data.samples import Batch
from ldm.errors import UserError
from ldm.training.diffusion_player import DiffusionPlayer
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.masks import draw_masks
from ldm.training.settings import DiffusionRun
from ldm.training.start import Start
from ldm.training.tune_settings import FullTune, LoraTune, MaskConfig
from ldm.training.tuning import tuning_of
from ldm.weights.model import load_model

ROOT = Path(__file__).parent.parent
SIDE, COUNT = 32, 3
PROMPTS = ["two", "a thick tall one slanted to the right", "four"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def run_of(**changes: Any) -> DiffusionRun:
    tree: dict[str, Any] = {
        "task": "diffusion",
        "output": "nowhere",
        "model": "a place",
        "data": {"source": "mnist"},
        "train": {"steps": 1},
        **changes,
    }
    return validate(tree, "here")


def player_of(folder: Path, **changes: Any) -> DiffusionPlayer:
    start = Start(load_model(folder), lambda: pytest.fail("nothing is saved"))
    tuning = tuning_of(run_of(**changes), start)
    return DiffusionPlayer(start.model, run_of(**changes), tuning.encoders()).train()


def a_batch(seed: int = 0, *, dropped: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (COUNT, 4, SIDE // FACTOR, SIDE // FACTOR)
    return Batch(
        index=torch.arange(COUNT),
        images=torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8),
        conditions=[*PROMPTS[:-1], None if dropped else PROMPTS[-1]],
        captions=PROMPTS,
        uniform=torch.tensor([0.1, 0.55, 0.93]),
        codec_noise=torch.randn(shape, generator=generator),
        noise=torch.randn(shape, generator=generator),
        frames=[Frame((40 + k, 50), k, 3, SIDE, SIDE, False) for k in range(COUNT)],
        keys=["a", "b", "c"],
    )


# ------------------------------------------------------------------- one step, by hand with diffusers


def their_latents(pipe: Any, images: Tensor, batch: Batch | None = None) -> Tensor:
    with torch.no_grad():
        found = pipe.vae.encode(images).latent_dist
    drawn = found.mean if batch is None else found.mean + found.std * batch.codec_noise
    return drawn * pipe.vae.config.scaling_factor


def their_text(pipe: Any, prompts: list[str | None]) -> tuple[Tensor, dict[str, Any]]:
    """What the networks of diffusers read: states, and for SDXL the pooled vector; dropped ones are the empty prompt,
    or zeros where the pipeline says so."""
    words = [prompt or "" for prompt in prompts]
    if not hasattr(pipe, "text_encoder_2"):
        ids = pipe.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0], {}
    states, _, pooled, _ = pipe.encode_prompt(words, do_classifier_free_guidance=False)
    if pipe.config.force_zeros_for_empty_prompt:
        kept = torch.tensor([float(prompt is not None) for prompt in prompts])
        states, pooled = states * kept[:, None, None], pooled * kept[:, None]
    return states, {"text_embeds": pooled}


def their_loss(pipe: Any, batch: Batch, masks: Tensor | None) -> Tensor:
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    images = batch.images.float() / 127.5 - 1
    latents = their_latents(pipe, images, batch)
    t = (batch.uniform * scheduler.config.num_train_timesteps).long()
    noisy = scheduler.add_noise(latents, batch.noise, t)
    states, added = their_text(pipe, batch.conditions)  # type: ignore[arg-type]
    if added:
        frames = [(*f.original, f.top, f.left, f.height, f.width) for f in batch.frames]
        added["time_ids"] = torch.tensor(frames).float()
    if masks is not None:
        small = F.interpolate(masks, size=latents.shape[-2:])
        noisy = torch.cat([noisy, small, their_latents(pipe, images * (masks < 0.5))], dim=1)
    output = pipe.unet(noisy, t, states, added_cond_kwargs=added or None).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(latents, batch.noise, t) if is_v else batch.noise
    return F.mse_loss(output, wanted)


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert sum(value.abs().sum() for value in wanted.values()) > 1
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda told, n=name: f"{n}: {told}")


@pytest.mark.parametrize(
    ("family", "text_encoder"), [*((name, True) for name in FAMILIES if name != "lcm"), ("sd1", False), ("sdxl", False)]
)
def test_a_step_has_the_gradients_of_diffusers(family, text_encoder, folders):
    batch = a_batch()
    player = player_of(folders.folder(family), tune={"kind": "full", "text_encoder": text_encoder})
    found = player(batch, 0)
    found.loss.backward()
    pipe = folders.theirs(family)
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    for module in (pipe.unet, *encoders):
        if module is not None:
            module.requires_grad_(module is pipe.unet or text_encoder).zero_grad()
    masks = draw_masks(batch.index, 0, (SIDE, SIDE), MaskConfig()) if "inpaint" in family else None
    loss = their_loss(pipe, batch, masks)
    loss.backward()
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same(gradients(player.net), gradients(pipe.unet))
    for ours, theirs in zip(player.encoders, encoders, strict=False):
        assert_same(gradients(ours.encoder), gradients(theirs))
    assert bool(player.encoders) == text_encoder


def test_cached_moments_and_contexts_give_the_same_step(folders):
    player = player_of(folders.folder("sdxl"))
    batch = a_batch()
    wanted = player(batch, 0).loss
    moments = player.codec.encode(batch.images.float() / 127.5 - 1)
    context = player.conditioner.encode(batch.conditions)
    kept = Batch(**{**vars(batch), "images": moments, "context": context, "conditions": ["nothing reads this"] * COUNT})
    assert torch.equal(player(kept, 0).loss, wanted)


def test_offset_noise_moves_whole_channels(folders):
    batch = a_batch()
    plain, moved = (player_of(folders.folder("sd1"), offset_noise=s)._noise(batch) for s in (0.0, 0.25))
    assert torch.equal(plain, batch.noise)
    offsets = moved - plain
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), atol=1e-6, rtol=0)
    many = torch.arange(5000)
    many_batch = Batch(**{**vars(batch), "index": many, "noise": torch.zeros(5000, 4, 1, 1)})
    drawn = player_of(folders.folder("sd1"), offset_noise=0.25)._noise(many_batch)
    assert drawn.std() == pytest.approx(0.25, rel=0.03)
    # a sample's own, whatever batch it is in
    one = Batch(**{**vars(batch), "index": many[7:8], "noise": torch.zeros(1, 4, 1, 1)})
    assert torch.equal(player_of(folders.folder("sd1"), offset_noise=0.25)._noise(one), drawn[7:8])


def test_prior_pictures_weigh_as_they_are_told(folders):
    """Loss = mean over the member's pictures + weight * mean over those of the class (diffusers' train_dreambooth)."""
    batch = a_batch()
    parts = {key: value[:2] if isinstance(value, Tensor | list) else value for key, value in vars(batch).items()}
    batch = Batch(**{**parts, "keys": ["mine.png", "class picture 0.png"]})
    player = player_of(folders.folder("sd1"), prior={"generate": {"prompt": "a two"}, "weight": 0.3})
    losses, _ = player.losses(batch)
    found = player(batch, 0)
    assert found.loss.item() == pytest.approx((losses[0] + 0.3 * losses[1]).item(), rel=1e-6)
    assert found.parts["loss"][0] == losses[0]
    assert found.parts["loss_prior"][0] == losses[1]


def on_meta(model: Any) -> Batch:
    """A batch with its contexts on the meta device, and a model's networks too: who asks for a number there fails."""
    batch = a_batch()
    context = model.conditioner.encode(batch.conditions).map(lambda value: value.to("meta"))
    for module in (model.net, model.codec.vae):
        module.to("meta")
    return replace(batch.to(torch.device("meta")), context=context)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd1-inpaint"])
def test_a_step_asks_nothing_of_its_device(folders, family):
    player = player_of(folders.folder(family), snr_gamma=5.0, offset_noise=0.1)
    batch = on_meta(player)
    player(batch, 0).loss.backward()
    assert player.net.conv_in.weight.grad.is_meta  # type: ignore[union-attr]


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"toy": {}}, "exactly one of `unet`, `toy` and `model`"),
        ({"process": {}}, "process comes from `model`, whose network knows no other"),
        ({"codec": {"kind": "pixel"}}, "codec comes from `model`"),
        ({"condition": {"kind": "none"}}, "condition.kind should be `model`"),
        ({"loading": {"live": True}}, "loading.live is for drawing"),
        ({"frozen_dtype": "bf16"}, "frozen_dtype bf16 needs train.mixed_precision bf16"),
        ({"tune": {"kind": "full", "text_learning_rate": 1e-6}}, "does nothing while text_encoder is false"),
        ({"prior": {}}, "exactly one of `data` and `generate`"),
        ({"validation": {}}, "validation has nothing to do"),
        ({"masks": {"rectangles": 0, "strokes": 0, "whole": 0, "border": 0}}, "must be more than 0"),
        ({"model": None, "toy": {"in_channels": 1}, "tune": {"kind": "lora"}}, "tune is for runs that start from"),
        ({"model": None, "toy": {"in_channels": 1}, "condition": {"kind": "model"}}, "for runs that start from one"),
    ],
)
def test_settings_that_do_not_go_together(changes, said):
    with pytest.raises(UserError, match=said):
        run_of(**changes)


# ---------------------------------------------------------------------------- small things of players


def test_text_encoders_have_a_rate_of_their_own(folders):
    tune = {"kind": "full", "text_encoder": True, "text_learning_rate": 2e-6}
    run = run_of(tune=tune, train={"steps": 1, "learning_rate": 1e-5})
    task: Any = DiffusionTask.__new__(DiffusionTask)
    task.run = run
    player = player_of(folders.folder("sd1"), tune=tune)
    rates = {name: task.pace("net", name) for name, _ in player.named_parameters()}
    assert set(name.split(".")[0] for name in rates) == {"net", "encoders"}
    assert all(rate == (1.0 if name.startswith("net.") else pytest.approx(0.2)) for name, rate in rates.items())


def test_every_trained_parameter_has_a_gradient_though_all_conditions_are_dropped(folders):
    """Processes that train together wait for the gradients of all parameters from each of them."""
    player = player_of(folders.folder("sdxl"), tune={"kind": "full", "text_encoder": True})
    batch = Batch(**{**vars(a_batch()), "conditions": [None] * COUNT})
    player(batch, 0).loss.backward()
    trained = {name: p for name, p in player.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert all(not p.grad.any() for name, p in trained.items() if name.startswith("encoders."))  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------- the scripts


def configured(script: str, *flags: str) -> DiffusionRun:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from _finetune import CONFIGS, overrides_of
        from _finetune import flags as parser
    finally:
        sys.path.pop(0)
    lora = script == "finetune_lora.py"
    given = parser("", lora=lora).parse_intermixed_args(list(flags))
    found = load_config(CONFIGS / ("lora.yaml" if lora else "full.yaml"), overrides_of(given))
    assert isinstance(found, DiffusionRun)
    return found


def test_flags_of_diffusers_become_a_configuration():
    run = configured(
        "finetune_lora.py",
        *("pictures", "--pretrained_model_name_or_path", "someone/model", "--output_dir", "runs/dog"),
        *("--instance_prompt", "a photo of sks dog: mine", "--resolution", "96", "--rank", "7", "--seed", "3"),
        *("--max_train_steps", "12", "--learning_rate", "1e-3", "--train_batch_size", "2", "--mixed_precision", "no"),
        *("--class_prompt", "a dog", "--validation_prompt", "one", "--validation_prompt", "two", "train.workers=5"),
    )
    assert run.model == "someone/model"
    assert str(run.output) == "runs/dog"
    data: Any = run.data
    assert (data.source, str(data.path), data.caption) == ("folder", "pictures", "a photo of sks dog: mine")
    assert run.frame is not None
    assert (run.frame.resolution, run.frame.step, run.frame.buckets) == (96, 32, False)
    assert isinstance(run.tune, LoraTune)
    assert (run.tune.rank, run.seed, run.frozen_dtype) == (7, 3, "fp32")
    train = run.train
    assert (train.steps, train.learning_rate, train.batch_size, train.mixed_precision) == (12, 1e-3, 2, "no")
    assert train.workers == 5
    assert run.prior is not None
    assert run.prior.generate is not None
    assert run.prior.generate.prompt == "a dog"
    assert run.validation is not None
    assert run.validation.prompts == run.sample.conditions == ("one", "two")
    few = configured(
        "finetune.py", "pictures", "--model", "m", "-o", "runs/x", "--instance_prompt", "a photo of sks dog"
    )
    assert few.validation is not None
    assert few.validation.count == 0  # of five pictures none is held out


def test_what_is_missing_is_named_and_nothing_else(capsys):
    with pytest.raises(SystemExit) as end:
        configured("finetune_lora.py", "--model", "m")
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("required: train_data_dir\n")


def test_all_weights_and_the_text_encoder():
    run = configured("finetune.py", "pictures", "--model", "m", "-o", "runs/x", "--train_text_encoder")
    assert isinstance(run.tune, FullTune)
    assert run.tune.text_encoder
    assert run.cache is None  # it would keep what the text encoder gave before


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_that_come_with_the_project(path):
    run = load_config(path)
    assert isinstance(run, DiffusionRun)
    assert run.model is not None
    assert validate(parse_yaml(dump_config(run), "again"), "again") == run
