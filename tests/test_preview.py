"""Previews: exact where a decoder is linear, better than guessing where it is not, and ready for any codec."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import vae

from ldm.codec import PixelCodec, VAECodec
from ldm.errors import UserError
from ldm.images import to_pil
from ldm.preview import LatentPreview, fit_preview, preview_of, probe_pictures
from ldm.weights.embedded import DEFAULT, as_path
from ldm.weights.model import load_model


@given(st.integers(1, 16), st.sampled_from([1, 3]), st.sampled_from([1, 2, 8]), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_linear_decoder_is_found_exactly(channels: int, colours: int, factor: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(colours, channels, generator=generator)
    offset = torch.randn(colours, generator=generator)
    latents = torch.randn(2, channels, 5, 7, generator=generator)
    small = torch.einsum("kc,bchw->bkhw", matrix, latents) + offset[:, None, None]
    # details finer than a latent, which sum to nothing, must not matter
    detail = torch.randn(2, colours, 5 * factor, 7 * factor, generator=generator)
    pictures = F.interpolate(small - F.avg_pool2d(detail, factor), scale_factor=factor) + detail
    found = fit_preview(latents, pictures)
    assert found.factor == factor
    torch.testing.assert_close(found.matrix, matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.offset, offset, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.colours(latents), small, rtol=1e-4, atol=1e-4)


def test_no_other_matrix_is_better() -> None:
    codec = VAECodec(vae(3))
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = codec.decode(latents)
    small = F.avg_pool2d(pictures, 4)
    best = fit_preview(latents, pictures)

    def error(preview: LatentPreview) -> float:
        return (preview.colours(latents) - small).square().mean().item()

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        moved = best.matrix + 1e-3 * torch.randn(best.matrix.shape, generator=generator)
        assert error(LatentPreview(moved, best.offset, 4)) > error(best)
    guess = small.mean((0, 2, 3), keepdim=True)  # each colour's mean
    assert error(best) < (small - guess).square().mean().item()


def test_it_shows_the_digits_of_the_embedded_model() -> None:
    """A real autoencoder, and a preview fitted to no digit: nine tenths of the correlation with what it decodes."""
    codec = load_model(as_path(DEFAULT)).codec
    strokes = -torch.ones(6, 1, 32, 32)
    for k, picture in enumerate(strokes):
        picture[:, 6 + k : 26, 8 + 2 * k : 12 + 2 * k] = 1  # an upright
        picture[:, 6 + k : 9 + k, 6:24] = 1  # and a bar
    latents = codec.mean(codec.encode(strokes))
    decoded = F.avg_pool2d(codec.decode(latents), codec.factor)
    shown = preview_of(codec, 1, 32, 32).colours(latents)
    assert torch.corrcoef(torch.stack([shown.flatten(), decoded.flatten()]))[0, 1] > 0.9
    assert (shown - decoded).square().mean() < 0.5 * decoded.var()


def test_where_latents_are_pixels_the_preview_is_the_estimate() -> None:
    preview = preview_of(PixelCodec(3), 3, 16, 16)
    x0 = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(preview.colours(x0), x0, rtol=0, atol=1e-6)
    for mine, plain in zip(preview.pictures(x0), to_pil(x0), strict=True):
        assert mine.tobytes() == plain.tobytes()


@pytest.mark.parametrize(("colours", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_have_the_size_of_what_is_drawn(colours: int, mode: str) -> None:
    preview = LatentPreview(torch.ones(colours, 4) / 4, torch.zeros(colours), 8)
    latents = torch.randn(2, 4, 3, 5)
    pictures = preview.pictures(latents.to(torch.bfloat16))
    assert [(picture.size, picture.mode) for picture in pictures] == [((40, 24), mode)] * 2
    small = preview.pictures(latents, enlarge=False)
    assert [picture.size for picture in small] == [(5, 3)] * 2


def test_probes_have_all_colours_and_depend_on_nothing_else() -> None:
    probes = probe_pictures(3, 4, 32, 48)
    assert probes.shape == (4, 3, 32, 48)
    assert probes.min() == -1
    assert probes.max() == 1
    assert (probes.abs() < 0.5).float().mean() > 0.1
    torch.randn(3)
    assert torch.equal(probes, probe_pictures(3, 4, 32, 48))


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(UserError, match="a preview of 4 latent channels needs more than 4 positions, got 4"):
        fit_preview(torch.randn(1, 4, 2, 2), torch.randn(1, 3, 16, 16))
    with pytest.raises(UserError, match="values that are not finite"):
        fit_preview(torch.randn(1, 4, 4, 4), torch.full((1, 3, 32, 32), torch.nan))
