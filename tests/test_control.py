"""Pictures that follow hints through ControlNets, against diffusers on the same folders."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel  # type: ignore[attr-defined]
from tiny_families import (
    NEGATIVE,
    PROMPT,
    Folders,
    assert_near,
    control_net,
    drawn_by_diffusers,
    drawn_by_us,
    their_latents,
)
from tiny_models import pipeline
from torch import Tensor

from ldm.codec import PixelCodec
from ldm.conditioner import NoConditioner
from ldm.diffusion.control import Control, ControlledDenoiser, controlled
from ldm.diffusion.process import Point
from ldm.diffusion.settings import ProcessConfig
from ldm.drawing import Inputs
from ldm.errors import UserError
from ldm.models.controlnet import ControlNet, ControlNetConfig
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.weights.components import load_module, save_module
from ldm.weights.model import Model

PIPELINES = {"sd1": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}
SIZE = (24, 40)
PROMPTS = [PROMPT, "a thick tall one slanted to the right and " * 4, None, "a (thick:1.4) [two]"]
SEEDS = [5, 900, 6, 2**64 - 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def hint(count: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Stripes in 0..1."""
    phases = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed)) * 6
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    return torch.sin((rows * 0.9 + columns * 0.4) + phases) / 2 + 0.5


def net(folders: Folders, family: str, seed: int) -> ControlNet:
    found = load_module(folders.control(family, seed))
    assert isinstance(found, ControlNet)
    return found


# ---------------------------------------------------------------------------------- whole pictures


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++_2m"])
@pytest.mark.parametrize("family", PIPELINES)
def test_one_controlnet(folders: Folders, family: str, sampler: str) -> None:
    theirs = folders.theirs(family, PIPELINES[family], controlnet=folders.their_control(family, 11))
    options = {"controlnet_conditioning_scale": 0.6, "negative_prompt": NEGATIVE}
    expected = drawn_by_diffusers(theirs, sampler, size=SIZE, image=hint(), **options)
    inputs = Inputs(controls=(Control(net(folders, family, 11), hint(), 0.6),))
    found = drawn_by_us(folders.ours(family), sampler, size=SIZE, inputs=inputs, negative=NEGATIVE)
    assert_near(found, expected)
    alone = drawn_by_us(folders.ours(family), sampler, size=SIZE, negative=NEGATIVE)
    assert (found - alone).abs().max() > 0.01


INTERVALS = [((0.0, 0.5), (0.5, 1.0)), ((0.25, 0.75), (0.0, 1.0)), ((0.0, 0.1), (0.3, 0.9))]


@pytest.mark.parametrize("intervals", INTERVALS, ids=str)
@pytest.mark.parametrize(("family", "sampler"), [("sd1", "ddim"), ("sd1", "dpm++_2m"), ("sdxl", "euler")])
def test_two_controlnets_each_in_its_interval(
    folders: Folders, family: str, sampler: str, intervals: tuple[tuple[float, float], ...]
) -> None:
    nets = [folders.their_control(family, seed) for seed in (11, 12)]
    theirs = folders.theirs(family, PIPELINES[family], controlnet=nets)
    starts, ends = ([pair[i] for pair in intervals] for i in (0, 1))
    options = {
        "controlnet_conditioning_scale": [0.7, 1.3],
        "control_guidance_start": starts,
        "control_guidance_end": ends,
    }
    hints = [hint(), hint(seed=1)]
    expected = drawn_by_diffusers(theirs, sampler, size=SIZE, image=hints, **options)
    controls = tuple(
        Control(net(folders, family, seed), picture, scale, start, end)
        for seed, picture, scale, (start, end) in zip((11, 12), hints, (0.7, 1.3), intervals, strict=True)
    )
    found = drawn_by_us(folders.ours(family), sampler, size=SIZE, inputs=Inputs(controls=controls))
    assert_near(found, expected)


def test_no_guidance(folders: Folders) -> None:
    theirs = folders.theirs("sd1", PIPELINES["sd1"], controlnet=folders.their_control("sd1", 11))
    expected = drawn_by_diffusers(theirs, "ddim", size=SIZE, image=hint(), guidance_scale=1.0)
    inputs = Inputs(controls=(Control(net(folders, "sd1", 11), hint()),))
    assert_near(drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=inputs, guidance=1.0), expected)


def test_one_hint_for_several_pictures(folders: Folders) -> None:
    theirs = folders.theirs("sd1", PIPELINES["sd1"], controlnet=folders.their_control("sd1", 11))
    prompts, seeds = [PROMPT, "four", "three"], [1, 2, 3]
    expected = drawn_by_diffusers(theirs, "ddim", prompts, seeds, size=SIZE, image=hint())
    inputs = Inputs(controls=(Control(net(folders, "sd1", 11), hint()),))
    assert_near(drawn_by_us(folders.ours("sd1"), "ddim", prompts, seeds, size=SIZE, inputs=inputs), expected)


def test_a_picture_to_begin_from_beside_a_hint(folders: Folders) -> None:
    kind = "StableDiffusionControlNetImg2ImgPipeline"
    theirs = folders.theirs("sd1", kind, controlnet=folders.their_control("sd1", 11))
    image = hint(seed=5) * 2 - 1
    options = {"image": their_latents(theirs, image), "control_image": hint(), "strength": 0.75, "size": SIZE}
    expected = drawn_by_diffusers(theirs, "ddim", controlnet_conditioning_scale=1.0, **options)
    inputs = Inputs(image, controls=(Control(net(folders, "sd1", 11), hint()),))
    assert_near(drawn_by_us(folders.ours("sd1"), "ddim", inputs=inputs, strength=0.75, size=None), expected)


@pytest.mark.parametrize("family", ["sd1", "sd1-inpaint"])
def test_inpainting_beside_a_hint(folders: Folders, family: str) -> None:
    kind = "StableDiffusionControlNetInpaintPipeline"
    theirs = folders.theirs(family, kind, controlnet=folders.their_control("sd1", 11))
    image, mask = hint(seed=5) * 2 - 1, torch.zeros(1, 1, *SIZE)
    mask[:, :, 8:, 12:32] = 1
    expected = theirs(
        [PROMPT],
        image=hint(seed=5),
        mask_image=mask,
        control_image=hint(),
        strength=1.0,
        num_inference_steps=8,
        guidance_scale=4.0,
        controlnet_conditioning_scale=0.8,
        control_guidance_end=0.5,
        latents=torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(0)),
        height=SIZE[0],
        width=SIZE[1],
        output_type="pt",
    ).images
    inputs = Inputs(image, mask, (Control(net(folders, "sd1", 11), hint(), 0.8, end=0.5),))
    found = drawn_by_us(folders.ours(family), "ddim", inputs=inputs, strength=1.0, size=None)
    assert_near(found, torch.where(mask == 0, hint(seed=5), expected))


# ---------------------------------------------------------------------------------- scale, interval


@pytest.mark.parametrize("silent", [{"scale": 0.0}, {"end": 0.1}])  # the first of 8 steps ends later
def test_what_is_never_heard_changes_nothing(folders: Folders, silent: dict[str, float]) -> None:
    ours = folders.ours("sd1")
    inputs = Inputs(controls=(Control(net(folders, "sd1", 11), hint(), **silent),))
    found = drawn_by_us(ours, "ddim", size=SIZE, inputs=inputs)
    assert_near(found, drawn_by_us(ours, "ddim", size=SIZE), atol=1e-6)


def test_the_interval_is_part_of_the_steps() -> None:
    steering, grid = control_net("sd1", 11), tuple(Point(t, 0.5, 0.5) for t in (900, 500, 200, 100, 0))
    assert Control(steering, hint()).times(grid) == (100, 900)
    assert Control(steering, hint(), start=0.25, end=0.75).times(grid) == (200, 500)
    assert Control(steering, hint(), start=0.3, end=0.75).times(grid) == (200, 200)
    least, greatest = Control(steering, hint(), start=0.3, end=0.6).times(grid)  # between two steps
    assert least > greatest


def test_a_net_outside_its_interval_is_not_asked(folders: Folders) -> None:
    steering = net(folders, "sd1", 11)
    calls: list[int] = []
    steering.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    reads: list[int] = []
    steering.controlnet_cond_embedding.register_forward_pre_hook(lambda module, inputs: reads.append(1))
    inputs = Inputs(controls=(Control(steering, hint(), start=0.5),))
    drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=inputs)
    assert calls == [2] * 4  # half of 8 steps, each for the prompt and for the empty one
    assert reads == [1]


def test_no_controls_leave_the_denoiser_as_it_is(folders: Folders) -> None:
    denoiser = folders.ours("sd1").denoiser
    grid = (Point(900, 0.1, 0.9), Point(0, 1, 0))
    assert controlled(denoiser, (), grid) is denoiser
    assert isinstance(controlled(denoiser, (Control(net(folders, "sd1", 11), hint()),), grid), ControlledDenoiser)


# --------------------------------------------------------------------------- what a picture depends on


@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize("family", PIPELINES)
def test_a_picture_does_not_depend_on_its_batch_by_a_bit(folders: Folders, family: str, each: bool) -> None:
    ours, count = folders.ours(family), len(PROMPTS)
    hints = hint(count if each else 1), hint(seed=1)
    nets = [net(folders, family, seed) for seed in (11, 12)]

    def draw(rows: slice) -> Tensor:
        first = hints[0][rows] if each else hints[0]
        controls = (Control(nets[0], first, 0.8), Control(nets[1], hints[1], 1.2, 0.0, 0.6))
        return drawn_by_us(
            ours,
            "euler_a",
            PROMPTS[rows],
            SEEDS[rows],
            size=SIZE,
            inputs=Inputs(controls=controls),
            negative=NEGATIVE,
            steps=4,
        )

    together = draw(slice(0, count))
    for k in reversed(range(count)):
        assert torch.equal(together[k], draw(slice(k, k + 1))[0])


def test_batches_draw_what_pictures_alone_draw(folders: Folders) -> None:
    """Together, as on a GPU, where the last bits differ: each with its own hint."""
    ours = folders.ours("sdxl")
    controls = (Control(net(folders, "sdxl", 11), hint(4)), Control(net(folders, "sdxl", 12), hint(seed=1)))
    options = {"size": SIZE, "steps": 4, "negative": NEGATIVE, "inputs": Inputs(controls=controls)}
    alone = drawn_by_us(ours, "ddim", PROMPTS, SEEDS, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ours), "batches", lambda self, conditions, how: [[0, 2, 3], [1]])
        assert_near(drawn_by_us(ours, "ddim", PROMPTS, SEEDS, **options), alone, atol=1e-4)


# ----------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("family", PIPELINES)
def test_folders_go_both_ways(folders: Folders, family: str, tmp_path: Any) -> None:
    ControlNetModel.from_pretrained(folders.control(family, 11)).save_pretrained(tmp_path / "theirs")
    ours, back = net(folders, family, 11), load_module(tmp_path / "theirs")
    assert isinstance(back, ControlNet)
    found, expected = back.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    save_module(back, tmp_path / "again")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folders.control(family, 11) / name).read_bytes()


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (0.5, 0.5), (float("nan"), 1.0)])
def test_intervals_that_are_none(start: float, end: float) -> None:
    message = f"control start and end must be 0 <= start < end <= 1, got {start} and {end}"
    with pytest.raises(UserError, match=re.escape(message)):
        Control(control_net("sd1", 11), hint(), 1.0, start, end)


def test_hints_that_fit_no_net() -> None:
    with pytest.raises(UserError, match=re.escape("the ControlNet reads hints (N, 3, H, W), got (1, 1, 24, 40)")):
        Control(control_net("sd1", 11), hint()[:, :1])
    with pytest.raises(UserError, match=re.escape("the ControlNet reads hints (N, 3, H, W), got (3, 24, 40)")):
        Control(control_net("sd1", 11), hint()[0])


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (hint(size=(24, 32)), "hint 1 is 32x24, but 40x24 is drawn: they must be of one size"),
        (hint(2), "hint 1 holds 2 pictures, and 1 are drawn"),
    ],
)
def test_hints_that_fit_no_picture(folders: Folders, picture: Tensor, message: str) -> None:
    inputs = Inputs(controls=(Control(net(folders, "sd1", 11), picture),))
    with pytest.raises(UserError, match=re.escape(message)):
        drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=inputs)


def test_nets_of_another_model(folders: Folders) -> None:
    inputs = Inputs(controls=(Control(net(folders, "sdxl", 11), hint()),))
    with pytest.raises(
        UserError, match="ControlNet 1 does not fit this model: its width of the context is 40, and here 24"
    ):
        drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=inputs)
    shape = folders.ours("sd1").model.net.config.model_dump()  # its hints are of the size of the latents
    small = ControlNet(ControlNetConfig(**shape, conditioning_embedding_out_channels=(4,)))
    with pytest.raises(UserError, match="its factor from hint to latents is 1, and here 4"):
        drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=Inputs(controls=(Control(small, hint()),)))


def test_nets_in_another_dtype(folders: Folders) -> None:
    half = net(folders, "sd1", 11).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"its dtype is torch\.bfloat16, and here torch\.float32"):
        drawn_by_us(folders.ours("sd1"), "ddim", size=SIZE, inputs=Inputs(controls=(Control(half, hint()),)))


def test_a_toy_network_cannot_be_steered() -> None:
    toy = Model(ToyUNet(ToyUNetConfig()), ProcessConfig(), "epsilon", PixelCodec(1), NoConditioner(), (8, 8))
    inputs = Inputs(controls=(Control(control_net("sd1", 11), hint(size=(8, 8))),))
    with pytest.raises(UserError, match="a ControlNet steers a U-Net, and this model has none"):
        pipeline(toy).generate([None], [0], inputs=inputs)
