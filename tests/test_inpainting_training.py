"""Masks that inpainting networks learn from, and what they are given beside x_t: the same as when they draw."""

from __future__ import annotations

import pytest
import torch
from test_finetune import SIDE, a_batch, player_of, run_of
from tiny_families import Folders
from tiny_models import written
from tiny_runs import digits

from ldm.begun import Begun
from ldm.data.sources import open_source
from ldm.diffusion.grid import Grid
from ldm.drawing import Drawing, Inputs
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.training.caching import open_cache
from ldm.training.chance import normals, uniforms
from ldm.training.masks import beside, draw_masks
from ldm.training.start import Start, start_of
from ldm.training.tune_settings import MaskConfig
from ldm.weights.model import load_model

MNIST = {"source": "mnist", "path": str(digits()), "size": 32, "captions": True}
ONE_KIND = dict.fromkeys(("rectangles", "strokes", "whole", "border"), 0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def test_what_the_network_reads_is_what_it_reads_when_it_draws(folders):
    """The mask and the masked picture's latents, prepared by training and by the pipeline."""
    batch = a_batch()
    model = folders.ours("sd1-inpaint").model
    masks = draw_masks(batch.index, 5, (SIDE, SIDE), MaskConfig())
    pictures = to_signed(batch.images)
    start = torch.zeros(len(pictures), 4, 8, 8)
    process = model.process.build()
    grid: Grid = [process.point(t) for t in (900.0, 500.0, 0.0)]
    drawn = Begun(model, Inputs(pictures, masks), grid, start, Drawing.checked({"strength": 1.0})).beside
    assert drawn is not None
    torch.testing.assert_close(beside(model.codec, pictures, masks, (8, 8)), drawn, atol=1e-6, rtol=0)


def test_a_loss_depends_on_its_own_mask_alone(folders):
    """The same sample has the same loss in another batch; another seed gives it another mask."""
    player = player_of(folders.folder("sd1-inpaint")).eval()
    batch = a_batch()
    both = player.losses(batch)[0]
    parts = {key: value[1:2] if isinstance(value, torch.Tensor | list) else value for key, value in vars(batch).items()}
    torch.testing.assert_close(player.losses(type(batch)(**parts))[0], both[1:2], atol=1e-6, rtol=1e-5)
    other = player_of(folders.folder("sd1-inpaint"), seed=1).eval()
    assert not torch.allclose(other.losses(batch)[0], both, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("rectangles", 0.01, 0.9), ("strokes", 0.001, 0.9), ("border", 0.1, 0.9), ("whole", 1, 1)],
)
def test_each_kind_of_mask(kind, least, most):
    masks = draw_masks(torch.arange(300), 0, (48, 64), MaskConfig(**{**ONE_KIND, kind: 1.0}))
    assert masks.shape == (300, 1, 48, 64)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    assert share.min() >= least
    assert share.max() <= most
    if kind == "border":  # a whole rectangle is kept, with the middle in it
        kept = masks[:, 0] == 0
        assert torch.equal(kept, kept.any(1)[:, None, :] & kept.any(2)[:, :, None])
        assert kept[:, 23:25, 31:33].all()
    if kind == "strokes":  # no straight edge: a row of a stroke is not as wide as the next
        widths = masks[:, 0].sum(2)
        assert ((widths[:, 1:] != widths[:, :-1]) & (widths[:, 1:] > 0)).any(1).float().mean() > 0.9


def test_kinds_have_their_shares_and_pictures_their_own_masks():
    index = torch.arange(4000)
    config = MaskConfig(rectangles=1, strokes=1, whole=2, border=0)
    masks = draw_masks(index, 3, (16, 16), config)
    whole = (masks.mean((1, 2, 3)) == 1).float().mean()
    assert whole == pytest.approx(0.5, abs=0.03)
    assert torch.equal(draw_masks(index[70:72], 3, (16, 16), config), masks[70:72])
    assert len(masks[masks.mean((1, 2, 3)) < 1].flatten(1).unique(dim=0)) > 1500
    # the same mask at another size
    large = draw_masks(index[:50], 3, (64, 64), MaskConfig(whole=0))
    small = draw_masks(index[:50], 3, (16, 16), MaskConfig(whole=0))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.1


def test_masks_are_for_networks_that_read_them(tmp_path):
    run = run_of(model=str(written("text", tmp_path)), masks={}, data=MNIST)
    with pytest.raises(UserError, match="this one reads no mask beside the picture"):
        start_of(run, open_source(run.data))


def test_a_cache_has_no_pictures_to_mask(folders):
    """Also where nothing is said of masks: the usual ones are drawn."""
    run = run_of(model=str(folders.folder("sd1-inpaint")), cache={}, data={"source": "mnist"})
    start = Start(load_model(folders.folder("sd1-inpaint")), lambda: pytest.fail("nothing is encoded"))
    with pytest.raises(UserError, match="masks are cut out of pictures: leave out `cache`"):
        open_cache(run, open_source(run.data), start, torch.device("cpu"))


# ------------------------------------------------------------- numbers by sample


def test_numbers_are_uniform_and_independent():
    found = uniforms(torch.arange(40_000) + 2**33, 7, 1, 6)
    assert found.min() >= 0
    assert found.max() < 1
    torch.testing.assert_close(found.mean(0), torch.full((6,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(found.var(0), torch.full((6,), 1 / 12), atol=0.002, rtol=0)
    counts = torch.histc(found[:, 0], 64, 0, 1)
    assert ((counts - 625).square() / 625).sum() < 110  # chi-square with 63 degrees of freedom: 1 in 5000
    correlation = torch.corrcoef(torch.cat([found[1:].T, found[:-1].T]))
    assert (correlation - torch.eye(12)).abs().max() < 0.03
    assert not torch.equal(found, uniforms(torch.arange(40_000) + 2**33, 8, 1, 6))
    assert not torch.equal(found, uniforms(torch.arange(40_000), 7, 1, 6))


def test_normals():
    found = normals(torch.arange(40_000), 7, 1, 2)
    moments = torch.stack([found.mean(0), found.var(0), found.pow(3).mean(0), found.pow(4).mean(0)])
    torch.testing.assert_close(moments, torch.tensor([[0.0], [1.0], [0.0], [3.0]]).expand(4, 2), atol=0.1, rtol=0)
