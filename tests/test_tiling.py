"""Decoding and encoding in bands must give what doing it whole gives: no seams, at any size and for any autoencoder."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL as TheirAutoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import fill
from torch import Tensor

from ldm.accel import cpu_fastpath_supported, prepare
from ldm.errors import UserError
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.tiling import tiled_decode, tiled_encode

WIDTHS = [(16,), (8, 16), (8, 8, 16), (8, 16, 16, 16), (16, 8)]


def autoencoder(widths: tuple[int, ...] = (8, 16, 16), attends: bool = True, layers: int = 2) -> AutoencoderKL:
    torch.manual_seed(0)
    config = VAEConfig(
        in_channels=2,
        out_channels=5,
        latent_channels=3,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=4,
        mid_block_add_attention=attends,
    )
    return fill(AutoencoderKL(config), 1).requires_grad_(False)


def drawn(*shape: int) -> Tensor:
    """Latents that differ from place to place in level and contrast, where tiles of their own would show."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ramp = torch.linspace(0, 3, shape[-2])[:, None] + torch.linspace(0, 2, shape[-1])
    return noise * (0.2 + ramp) + ramp


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@given(
    st.sampled_from(WIDTHS),
    st.booleans(),
    st.integers(1, 2),
    st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 3000),
)
@settings(max_examples=30, deadline=None)
def test_bands_are_the_whole(
    widths: tuple[int, ...], attends: bool, layers: int, shape: tuple[int, int, int], pixels: int
) -> None:
    vae = autoencoder(widths, attends, layers)
    batch, height, width = shape
    latents = drawn(batch, 3, height, width)
    assert error(tiled_decode(vae, latents, pixels), vae.decode(latents)) < 1e-5
    # sides that are no multiples of the factor are rounded down by both
    images = drawn(batch, 2, height * vae.config.factor + height % vae.config.factor, width * vae.config.factor + 1)
    assert error(tiled_encode(vae, images, pixels), vae.encode(images)) < 1e-5


def test_no_seams_where_blended_tiles_have_them() -> None:
    """The error against the whole, ours and that of diffusers' tiles, on the same weights and a 96x96 picture."""
    torch.manual_seed(0)
    config = VAEConfig(block_out_channels=(16, 16, 32, 32), norm_num_groups=8, sample_size=32)
    ours = fill(AutoencoderKL(config), 1).requires_grad_(False)
    theirs = TheirAutoencoder.from_config(config.to_diffusers()).eval()
    theirs.load_state_dict(ours.state_dict())
    latents = drawn(1, 4, 12, 12)
    whole = ours.decode(latents)
    theirs.enable_tiling()
    theirs.tile_latent_min_size, theirs.tile_sample_min_size = 4, 32
    with torch.no_grad():
        blended = theirs.decode(latents).sample
    assert error(blended, whole) > 0.05
    assert error(tiled_decode(ours, latents, 32 * 32), whole) < 1e-5


def test_a_picture_does_not_depend_on_its_batch() -> None:
    vae, latents = autoencoder(), drawn(3, 3, 9, 7)
    together = tiled_decode(vae, latents, 200)
    assert torch.equal(together[1:2], tiled_decode(vae, latents[1:2], 200))


def test_the_memory_of_activations_falls() -> None:
    """The most bytes of tensors alive at once, by torch's own account of its allocations."""
    vae = autoencoder((32, 64, 64), attends=False)
    latents = drawn(1, 3, 32, 32)

    def peak(decode: object) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            decode(vae, latents)  # pyright: ignore[reportCallIssue]
        alive = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                most = max(most, alive)
        return most

    whole, banded = peak(AutoencoderKL.decode), peak(lambda vae, latents: tiled_decode(vae, latents, 4 * 128))
    assert whole > 3 * banded
    # the residual stream of the finest level, the one it comes from at half the resolution, and some bands
    plane = 4 * 128 * 128
    assert banded < plane * (32 + 64 / 4 + 20)


@pytest.mark.parametrize(
    "fast",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(not cpu_fastpath_supported(), reason="needs a CPU with bfloat16 instructions"),
        ),
    ],
)
def test_in_half_precision_the_difference_is_rounding(fast: bool) -> None:
    vae = autoencoder()
    latents, images = drawn(1, 3, 12, 10), drawn(1, 2, 50, 40)
    exact = vae.decode(latents), vae.encode(images)
    vae = prepare(vae, device=torch.device("cpu"), dtype=torch.bfloat16) if fast else vae.to(torch.bfloat16)
    latents, images = latents.bfloat16(), images.bfloat16()
    pairs = (
        (tiled_decode(vae, latents, 300), vae.decode(latents), exact[0]),
        (tiled_encode(vae, images, 300), vae.encode(images), exact[1]),
    )
    for banded, whole, truth in pairs:
        assert banded.dtype == torch.bfloat16
        assert error(banded.float(), truth) < 1.5 * error(whole.float(), truth) + 2e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("keep", [None, torch.device("cpu")])
def test_on_a_gpu_maps_may_be_kept_on_the_host(keep: torch.device | None) -> None:
    vae, latents = autoencoder(), drawn(2, 3, 12, 10)
    expected = vae.decode(latents)
    found = tiled_decode(vae.cuda(), latents.cuda(), 300, keep)
    assert found.is_cuda
    assert error(found.cpu(), expected) < 1e-3


@pytest.mark.parametrize("pixels", [0, -5])
def test_bands_without_pixels(pixels: int) -> None:
    with pytest.raises(UserError, match=f"band_pixels must be above 0, got {pixels}"):
        tiled_decode(autoencoder(), drawn(1, 3, 4, 4), pixels)
