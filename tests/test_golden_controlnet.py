"""The ControlNet against diffusers' ControlNetModel, and a controlled U-Net against theirs, on the same weights."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from diffusers import ControlNetModel  # type: ignore[attr-defined]
from test_golden_unet import SHAPES, added, as_diffusers, inputs, randomise, relative_difference, shapes, small, twins

from ldm.errors import UserError
from ldm.models.controlnet import ControlNet, ControlNetConfig

KINDS = (
    "stable-diffusion-1",
    "linear-projection-and-depth",
    "transformers-without-layers",
    "odd-size",
    "pooled-and-sizes",
    "inpainting-channels",
)


def config_for(name: str) -> ControlNetConfig:
    """A ControlNet for a U-Net of ``SHAPES``, with hints twice its size."""
    shape = small(**SHAPES[name][0]).model_dump()
    return ControlNetConfig(**shape, conditioning_channels=3, conditioning_embedding_out_channels=(8, 12))


def control_twins(config: ControlNetConfig) -> tuple[ControlNet, ControlNetModel]:
    theirs = ControlNetModel.from_config(config.to_diffusers()).eval()
    randomise(theirs)
    ours = ControlNet(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", KINDS)
def test_outputs_equal_those_of_diffusers_and_steer_the_unet_alike(name):
    config = config_for(name)
    ours, theirs = control_twins(config)
    net, their_net = twins(small(**SHAPES[name][0]))
    x, t, context = inputs(config, SHAPES[name][1])
    hint = torch.rand(2, 3, 2 * x.shape[2], 2 * x.shape[3], generator=torch.Generator().manual_seed(3))
    extra = added(config)
    their_extra = as_diffusers(extra, None)
    with torch.no_grad():
        found = ours(x, t, ours.read(hint), context, **extra)
        down, mid = theirs(x, t, context, hint, return_dict=False, **their_extra)
        for mine, other in zip(found, [*down, mid], strict=True):
            assert relative_difference(mine, other) < 1e-5
        expected = their_net(
            x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid, **their_extra
        ).sample
        steered = net(x, t, context, **extra, control=found)
    assert relative_difference(steered, expected) < 1e-5
    with torch.no_grad():
        assert relative_difference(net(x, t, context, **extra), expected) > 1e-3  # it does steer


@pytest.mark.parametrize("name", KINDS)
def test_weights_and_configurations_go_both_ways(name):
    config = config_for(name)
    theirs = ControlNetModel.from_config(config.to_diffusers())
    theirs.load_state_dict(ControlNet(config).state_dict(), strict=True)
    found = ControlNetConfig.from_diffusers(json.loads(json.dumps(dict(theirs.config))))
    assert found.model_copy(update={"out_channels": config.out_channels, "sample_size": config.sample_size}) == config


SD_1_5 = {"cross_attention_dim": 768}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}


@pytest.mark.parametrize("config", [SD_1_5, SDXL], ids=["1.5", "xl"])
def test_full_size_weights_have_the_names_and_shapes_of_diffusers(config):
    with torch.device("meta"):
        theirs = ControlNetModel.from_config(config)
        ours = ControlNet(ControlNetConfig.from_diffusers(config))
    assert shapes(ours) == shapes(theirs)
    assert ours.config.factor == 8


def test_every_option_of_diffusers_is_read_or_refused():
    options = inspect.signature(ControlNetModel.__init__).parameters
    defaults = {name: option.default for name, option in options.items() if name != "self"}
    assert ControlNetConfig.from_diffusers(defaults) == ControlNetConfig.from_diffusers({})
    for change in ({"global_pool_conditions": True}, {"controlnet_conditioning_channel_order": "bgr"}, {"new_key": 1}):
        (key,) = change
        with pytest.raises(UserError, match=key):
            ControlNetConfig.from_diffusers({**defaults, **change})
