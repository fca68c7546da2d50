"""Pixels as they are, and latents at unit variance: scaled once, measured on data, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL  # type: ignore[attr-defined]
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import vae
from tiny_runs import digits
from torch import Tensor

from ldm.codec import PixelCodec, VAECodec
from ldm.data.mnist import MnistConfig
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.training.settings import TrainSettings, VAELoss, VAERun
from ldm.training.vae_task import VAETask
from ldm.weights.components import save_module
from ldm.weights.embedded import DEFAULT, as_path
from ldm.weights.model import load_vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, channels: int = 1, side: int = 16) -> Tensor:
    return noise(count, channels, side, side, seed=1).clamp(-1, 1)


# ------------------------------------------------------------------------------------- pixels


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_pixels_are_themselves(channels: int, height: int, width: int, seed: int) -> None:
    codec = PixelCodec(channels)
    images = noise(2, channels, height, width, seed=seed).clamp(-1, 1)
    encoded = codec.encode(images)
    clean = codec.latents(encoded, noise(2, channels, height, width))
    assert torch.equal(clean, images)
    assert torch.equal(codec.mean(encoded), images)
    assert torch.equal(codec.decode(clean), images)
    assert (codec.factor, codec.bounds, codec.channels) == (1, 1.0, channels)


def test_pixels_come_out_within_range_and_in_float32() -> None:
    drawn = PixelCodec(1).decode(torch.tensor([[-3.0, -1.0, 0.25, 7.0]], dtype=torch.bfloat16))
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == [[-1.0, -1.0, 0.25, 1.0]]


# ------------------------------------------------------------------------------------ latents


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_are_those_of_diffusers_times_the_scale(tmp_path: Path, channels: int) -> None:
    codec = VAECodec(vae(channels))
    save_module(codec.vae, tmp_path / "vae")
    theirs: Any = DiffusersAutoencoderKL.from_pretrained(tmp_path / "vae")
    images, scale = pictures(2, channels), theirs.config.scaling_factor
    encoded = codec.encode(images)
    assert encoded.shape == (2, 2 * codec.channels, 4, 4)
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(5)) * scale
        decoded = theirs.decode(drawn / scale).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.mean(encoded), posterior.mode() * scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.latents(encoded, noise(2, 4, 4, 4, seed=5)), drawn, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(drawn), decoded, rtol=0, atol=1e-5)


def test_samples_spread_about_the_mode_as_the_encoder_says() -> None:
    codec = VAECodec(vae())
    encoded = codec.encode(pictures(1))
    drawn = codec.latents(encoded.expand(20_000, -1, -1, -1), noise(20_000, 4, 4, 4))
    spread = (0.5 * encoded[:, 4:]).exp()[0] * 0.7  # the scaling factor of the tiny autoencoder
    assert torch.equal(codec.latents(encoded, torch.zeros(1, 4, 4, 4)), codec.mean(encoded))
    # five standard errors of a mean and of a standard deviation
    assert ((drawn.mean(0) - codec.mean(encoded)[0]).abs() < 5 * spread / 20_000**0.5).all()
    assert ((drawn.std(0) / spread - 1).abs() < 5 / 40_000**0.5).all()


def test_the_scale_cancels_on_the_way_back() -> None:
    """A latent space of another scale is the same space: pictures do not know it."""
    images, found = pictures(2), {}
    for scale in (0.18215, 0.7, 13.0):
        module = vae()
        module.config = module.config.model_copy(update={"scaling_factor": scale})
        codec = VAECodec(module)
        clean = codec.mean(codec.encode(images))
        found[scale] = (clean / scale, codec.decode(clean))
    for unscaled, decoded in found.values():
        torch.testing.assert_close(unscaled, found[0.7][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(decoded, found[0.7][1], rtol=0, atol=1e-5)


def test_what_is_encoded_is_kept_in_float32_and_without_gradients() -> None:
    codec = VAECodec(vae().to(torch.bfloat16))
    encoded = codec.encode(pictures(1).requires_grad_())
    decoded = codec.decode(codec.mean(encoded) * 1000)
    assert encoded.dtype == decoded.dtype == torch.float32
    assert not encoded.requires_grad
    assert decoded.abs().max() <= 1
    assert not any(p.requires_grad for p in codec.vae.parameters())


def test_a_step_does_not_ask_a_device_what_came_out() -> None:
    """The meta device has shapes and no numbers, so whoever asks for one fails."""
    codec, images = VAECodec(vae().to("meta")), pictures(2).to("meta")
    assert codec.encode(images, wait=False).shape == (2, 2 * codec.channels, 4, 4)
    with pytest.raises(RuntimeError):
        codec.encode(images)


@pytest.mark.parametrize("wait", [False, True])
def test_a_cpu_says_at_once_that_weights_are_no_numbers(wait: bool) -> None:
    codec = VAECodec(vae())
    codec.vae.encoder.conv_in.weight.data[0, 0, 1, 2] = torch.nan
    with pytest.raises(UserError, match=r"no number: .*encoder\.conv_in\.weight holds NaN"):
        codec.encode(pictures(1), wait=wait)


# ----------------------------------------------------------------------- the scale, from data


def deviation_by_diffusers(folder: Path, images: Tensor) -> float:
    """Standard deviation of the unscaled latents of pictures in -1..1, sampled."""
    theirs: Any = DiffusersAutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        return float(theirs.encode(images).latent_dist.sample(torch.Generator().manual_seed(7)).std())


DIGITS_32 = MnistConfig(path=digits(), size=32)


@pytest.fixture(scope="module")
def images() -> Tensor:
    source = open_source(DIGITS_32)
    return to_signed(torch.stack([source.read(i).image for i in range(len(source))]))


@pytest.mark.parametrize("count", [40, 25])
def test_training_stores_one_over_the_deviation_of_the_latents(
    tmp_path: Path, images: Tensor, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = VAERun(
        task="vae",
        output=tmp_path,
        data=DIGITS_32,
        vae=vae().config,
        loss=VAELoss(adversarial=0),
        scale_from=count,
        train=TrainSettings(steps=1, batch_size=1, learning_rate=1e-3),
    )
    task = VAETask(run, torch.device("cpu"))
    task.player.vae = vae()
    task.save(tmp_path / "before", task.player, {})
    with monkeypatch.context() as patch:  # pictures are opened for the first checkpoint alone
        patch.setattr(task.source, "read", lambda *_: pytest.fail("opened again"))
        task.save(tmp_path / "model", task.player, {})
    stored = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())["scaling_factor"]
    deviation = deviation_by_diffusers(tmp_path / "model" / "vae", images[:count])
    assert stored * deviation == pytest.approx(1, abs=0.02)  # each drew noise of its own
    codec = VAECodec(load_vae(tmp_path / "model"))
    assert codec.scale == stored
    clean = codec.latents(codec.encode(images[:count]), noise(count, 4, 8, 8))
    assert float(clean.std()) == pytest.approx(1, abs=0.02)


def test_the_model_of_the_package_has_latents_of_unit_deviation(images: Tensor) -> None:
    codec = VAECodec(load_vae(as_path(DEFAULT)).float())
    assert codec.scale * deviation_by_diffusers(as_path(DEFAULT) / "vae", images) == pytest.approx(1, abs=0.05)
    rebuilt = codec.decode(codec.mean(codec.encode(images)))
    assert (rebuilt - images).abs().mean() < 0.05  # of 2, the range
