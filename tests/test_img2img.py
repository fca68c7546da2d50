"""Pictures that begin from a picture, and those of which a mask keeps a part: against diffusers, and properties."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny_families import (
    FACTOR,
    NEGATIVE,
    PROMPT,
    STEPS,
    Folders,
    assert_near,
    drawn_by_diffusers,
    drawn_by_us,
    their_latents,
)
from tiny_models import pipeline, unconditional_model
from torch import Tensor

from ldm.drawing import Inputs, shrunk
from ldm.errors import UserError

SIZE = (24, 40)
PROMPTS = [PROMPT, "a thick tall one slanted to the right and " * 4, None, "a (thick:1.4) [two]"]
SEEDS = [5, 900, 6, 2**64 - 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def picture(count: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Soft blobs of colour in -1..1."""
    coarse = torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)


def box(size: tuple[int, int] = SIZE) -> Tensor:
    """A mask (1, 1, H, W) of a box whose sides lie between latents."""
    mask = torch.zeros(1, 1, *size)
    mask[:, :, 2 * FACTOR : 4 * FACTOR, 3 * FACTOR :] = 1
    return mask


def cutting_box() -> Tensor:
    """A mask whose sides cut through latents."""
    return torch.roll(box(), (1, -2), (2, 3))


def ramp() -> Tensor:
    """A soft mask: 0 on the left, 1 on the right."""
    return (torch.linspace(-0.5, 1.5, SIZE[1]).clamp(0, 1)).expand(1, 1, *SIZE).contiguous()


# ------------------------------------------------------------------------------- image-to-image

IMG2IMG = {
    "sd1": "StableDiffusionImg2ImgPipeline",
    "sd2": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "lcm": "StableDiffusionImg2ImgPipeline",
}


WAYS = [("ddim", 0.4), ("ddim", 1.0), ("euler", 0.75), ("dpm++_2m", 0.4), ("lcm", 0.75)]


@pytest.mark.parametrize(("sampler", "strength"), WAYS)
@pytest.mark.parametrize("family", IMG2IMG)
def test_image_to_image(folders: Folders, family: str, sampler: str, strength: float) -> None:
    theirs = folders.theirs(family, IMG2IMG[family])
    latents = their_latents(theirs, picture())
    expected = drawn_by_diffusers(theirs, sampler, image=latents, strength=strength, size=SIZE)
    found = drawn_by_us(folders.ours(family), sampler, inputs=Inputs(picture()), strength=strength, size=None)
    assert found.shape == (1, 3, *SIZE)
    assert_near(found, expected)


def test_image_to_image_with_a_stochastic_sampler_and_a_negative_prompt(folders: Folders) -> None:
    theirs = folders.theirs("sdxl", IMG2IMG["sdxl"])
    options = {"strength": 0.5, "size": SIZE}
    expected = drawn_by_diffusers(
        theirs, "euler_a trailing", image=their_latents(theirs, picture()), negative_prompt=NEGATIVE, **options
    )
    found = drawn_by_us(
        folders.ours("sdxl"), "euler_a trailing", inputs=Inputs(picture()), negative=NEGATIVE, **options
    )
    assert_near(found, expected)


def test_the_picture_itself_is_read_as_diffusers_reads_it(folders: Folders) -> None:
    """Not its latents: their pipeline draws them, from a VAE that is sure of itself, before it draws the noise."""
    theirs, seed = folders.theirs("sd1", IMG2IMG["sd1"]), 3
    generator = torch.Generator().manual_seed(seed)
    latents = theirs.vae.encode(picture()).latent_dist.sample(generator) * theirs.vae.config.scaling_factor
    ours = folders.ours("sd1").model.codec
    torch.testing.assert_close(ours.mean(ours.encode(picture())), latents.detach(), rtol=0, atol=1e-5)


def test_the_default_strength(folders: Folders) -> None:
    ours = folders.ours("sd1")
    found = drawn_by_us(ours, "ddim", inputs=Inputs(picture()), size=None)
    assert torch.equal(found, drawn_by_us(ours, "ddim", inputs=Inputs(picture()), strength=0.75, size=None))
    assert (found - drawn_by_us(ours, "ddim", inputs=Inputs(picture()), strength=1.0, size=None)).abs().max() > 0.01


def test_less_strength_stays_nearer_to_the_picture(folders: Folders) -> None:
    ours = folders.ours("sd1")
    codec = ours.model.codec
    itself = codec.decode(codec.mean(codec.encode(picture()))) / 2 + 0.5
    away = [
        float((drawn_by_us(ours, "ddim", inputs=Inputs(picture()), strength=s, size=None) - itself).norm())
        for s in (1 / STEPS, 0.5, 1.0)
    ]
    assert away == sorted(away)


def test_one_picture_for_all_or_one_for_each(folders: Folders) -> None:
    ours = folders.ours("sd1")
    several = picture(2)
    options = {"strength": 0.5, "size": None}
    one = drawn_by_us(ours, "ddim", PROMPTS[:2], [1, 2], inputs=Inputs(several[:1]), **options)
    each = drawn_by_us(ours, "ddim", PROMPTS[:2], [1, 2], inputs=Inputs(several), **options)
    assert torch.equal(one[0], each[0])
    assert (one[1] - each[1]).abs().max() > 0.01


def test_pixels_too(folders: Folders) -> None:
    pipe = pipeline(unconditional_model())
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    found = pipe.generate([None], [0], inputs=Inputs(image, torch.zeros(1, 1, 8, 8)), steps=4, sampler="ddim")
    assert torch.equal(found, image)
    assert pipe.generate([None], [0], inputs=Inputs(image), steps=4, strength=0.25, sampler="ddim").isfinite().all()


# ------------------------------------------------------------------- networks that read a mask

INPAINT = {"sd1-inpaint": "StableDiffusionInpaintPipeline", "sdxl-inpaint": "StableDiffusionXLInpaintPipeline"}


@pytest.mark.parametrize("mask", [box(), cutting_box()], ids=["between latents", "through latents"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++_2m"])
@pytest.mark.parametrize("family", INPAINT)
def test_inpainting_networks(folders: Folders, family: str, sampler: str, strength: float, mask: Tensor) -> None:
    theirs = folders.theirs(family, INPAINT[family])
    masked = their_latents(theirs, picture() * (mask < 0.5))
    expected = drawn_by_diffusers(
        theirs,
        sampler,
        image=their_latents(theirs, picture()),
        mask_image=mask,
        masked_image_latents=masked,
        strength=strength,
        size=SIZE,
    )
    ours = folders.ours(family)
    found = drawn_by_us(ours, sampler, inputs=Inputs(picture(), mask), strength=strength, size=None)
    pasted = torch.where(mask == 0, picture() / 2 + 0.5, expected)  # they leave the whole as it was decoded
    assert_near(found, pasted)


def test_inpainting_networks_redraw_all_by_default(folders: Folders) -> None:
    ours = folders.ours("sd1-inpaint")
    found = drawn_by_us(ours, "ddim", inputs=Inputs(picture(), box()), size=None)
    assert torch.equal(found, drawn_by_us(ours, "ddim", inputs=Inputs(picture(), box()), strength=1.0, size=None))


# ------------------------------------------------------------------------- ordinary networks

BLENDING = {"sd1": "StableDiffusionInpaintPipeline", "sdxl": "StableDiffusionXLInpaintPipeline"}


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++_2m"])
@pytest.mark.parametrize("family", BLENDING)
def test_inpainting_with_an_ordinary_network(folders: Folders, family: str, sampler: str, strength: float) -> None:
    theirs, mask = folders.theirs(family, BLENDING[family]), box()
    latents = their_latents(theirs, picture())
    options = {"mask_image": mask, "masked_image_latents": latents, "strength": strength, "size": SIZE}
    expected = drawn_by_diffusers(theirs, sampler, image=latents, **options)
    found = drawn_by_us(folders.ours(family), sampler, inputs=Inputs(picture(), mask), strength=strength, size=None)
    # from noise alone their Euler starts from a variance a little below 1: see ``start_noise``
    atol = 1 / 255 if sampler == "euler" and strength == 1 else 1e-3
    assert_near(found, torch.where(mask == 0, picture() / 2 + 0.5, expected), atol)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm++_2m", "dpm++_2m_sde", "heun", "plms", "lcm"])
@pytest.mark.parametrize("mask", [box(), ramp()], ids=["hard", "soft"])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(folders: Folders, sampler: str, mask: Tensor) -> None:
    image = picture()
    found = folders.ours("sd1").generate([PROMPT], [0], inputs=Inputs(image, mask), sampler=sampler, steps=4)
    kept = (mask == 0).expand_as(image)
    assert torch.equal(found[kept], image[kept])
    assert (found - image)[~kept].abs().max() > 0.05
    assert found.isfinite().all()
    assert found.abs().max() <= 1


@pytest.mark.parametrize("family", ["sd1", "sd1-inpaint"])
def test_a_mask_of_nothing_is_the_picture(folders: Folders, family: str) -> None:
    image = picture()
    inputs = Inputs(image, torch.zeros(1, 1, *SIZE))
    assert torch.equal(folders.ours(family).generate([PROMPT], [0], inputs=inputs, sampler="ddim", steps=3), image)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_a_mask_of_everything_is_no_mask(folders: Folders, sampler: str) -> None:
    ours, everything = folders.ours("sd1"), torch.ones(1, 1, *SIZE)
    part = drawn_by_us(ours, sampler, inputs=Inputs(picture(), everything), strength=0.5, size=None)
    assert_near(part, drawn_by_us(ours, sampler, inputs=Inputs(picture()), strength=0.5, size=None), atol=1e-5)
    # all of it, from noise alone: nothing of the picture is left
    whole = drawn_by_us(ours, sampler, inputs=Inputs(picture(), everything), strength=1.0, size=None)
    assert_near(whole, drawn_by_us(ours, sampler, size=SIZE), atol=1e-5)


def test_a_soft_mask_lies_between(folders: Folders) -> None:
    ours, half = folders.ours("sd1"), torch.full((1, 1, *SIZE), 0.5)
    options = {"strength": 0.5, "size": None}
    found = drawn_by_us(ours, "ddim", inputs=Inputs(picture(), half), **options)
    anew = drawn_by_us(ours, "ddim", inputs=Inputs(picture()), **options)
    itself = picture() / 2 + 0.5
    assert 0 < (found - itself).norm() < (anew - itself).norm()


def test_masks_shrink_to_the_mean_over_each_latent() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, :4, 2:4] = 1
    assert shrunk(mask, 4).tolist() == [[[[0.5, 0.0], [0.0, 0.0]]]]
    assert shrunk(mask, 1) is mask


# --------------------------------------------------------------- what a picture depends on


ORDINARY, INPAINTING = ["sd1", "sdxl", "lcm"], ["sd1-inpaint", "sdxl-inpaint"]
BATCHES = [(family, False) for family in ORDINARY] + [(family, True) for family in (*ORDINARY, *INPAINTING)]


@pytest.mark.parametrize(("family", "masked"), BATCHES)
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
def test_a_picture_does_not_depend_on_its_batch_by_a_bit(
    folders: Folders, family: str, masked: bool, each: bool
) -> None:
    ours, count = folders.ours(family), len(PROMPTS)
    images = picture(count if each else 1)
    masks = torch.cat([ramp(), box(), box(), 1 - box()])[: count if each else 1] if masked else None
    options = {"size": None, "steps": 4, "strength": 0.75} | ({} if family == "lcm" else {"negative": NEGATIVE})
    together = drawn_by_us(ours, "euler_a", PROMPTS, SEEDS, inputs=Inputs(images, masks), **options)
    for k in reversed(range(count)):
        row = slice(k, k + 1) if each else slice(0, 1)
        inputs = Inputs(images[row], None if masks is None else masks[row])
        alone = drawn_by_us(ours, "euler_a", PROMPTS[k : k + 1], SEEDS[k : k + 1], inputs=inputs, **options)
        assert torch.equal(together[k], alone[0])


@pytest.mark.parametrize("family", ["sd1", "sdxl-inpaint"])
def test_batches_draw_what_pictures_alone_draw(folders: Folders, family: str) -> None:
    """Together, as on a GPU, where the last bits differ: each with its own picture and mask."""
    ours = folders.ours(family)
    inputs = Inputs(picture(4), torch.cat([ramp(), box(), box(), 1 - box()]))
    options = {"size": None, "steps": 4, "strength": 0.75, "negative": NEGATIVE, "inputs": inputs}
    alone = drawn_by_us(ours, "euler_a", PROMPTS, SEEDS, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ours), "batches", lambda self, conditions, how: [[0, 2, 3], [1]])
        assert_near(drawn_by_us(ours, "euler_a", PROMPTS, SEEDS, **options), alone, atol=1e-4)


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("family", "inputs", "options", "message"),
    [
        ("sd1", Inputs(picture()), {"strength": 0.1}, "strength 0.1 of 8 steps is less than one step: raise either"),
        ("sd1", Inputs(picture()), {"height": 32}, "init is 40x24, but 40x32 is drawn: they must be of one size"),
        ("sd1", Inputs(picture(3)), {}, "init holds 3 pictures, and 1 are drawn: give 1"),
        ("sd1", Inputs(picture(), torch.ones(2, 1, *SIZE)), {}, "mask holds 2 pictures, and 1 are drawn"),
        ("sd1", Inputs(picture(size=(24, 42))), {}, "width 42 is not a multiple of 4"),
        ("sd1-inpaint", Inputs(picture()), {}, "this model inpaints: give it a picture (init) and a mask"),
        ("sd1", Inputs(picture()[:, :1]), {}, "init should be (N, 3, H, W), as this model draws; got (1, 1, 24, 40)"),
        ("sd1", Inputs(picture()[0]), {}, "init should be (N, 3, H, W), as this model draws; got (3, 24, 40)"),
    ],
)
def test_pictures_that_do_not_fit(
    folders: Folders, family: str, inputs: Inputs, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        folders.ours(family).generate([PROMPT], [0], inputs=inputs, steps=STEPS, sampler="ddim", **options)


def test_masks_that_fit_no_picture() -> None:
    with pytest.raises(UserError, match=re.escape("a mask says which part of a picture to keep: give the picture")):
        Inputs(mask=box())
    with pytest.raises(UserError, match="the mask is 40x24 and the picture 32x24: they must be of one size"):
        Inputs(picture(size=(24, 32)), box())
    with pytest.raises(UserError, match=re.escape("the mask should be (N, 1, H, W), got (1, 3, 24, 40)")):
        Inputs(picture(), picture())
    with pytest.raises(UserError, match=r"values of the mask should be 0 to 1, got -0\.5 to 1\.5"):
        Inputs(picture(), ramp() * 2 - 0.5)
