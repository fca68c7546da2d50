"""The U-Net against diffusers' UNet2DConditionModel on the same weights."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel  # type: ignore[attr-defined]
from torch import nn

from ldm.errors import UserError
from ldm.models.layers import ResnetBlock, SpatialTransformer, timestep_embedding
from ldm.models.unet import UNet, UNetConfig
from ldm.models.unet_config import _DIFFUSERS_DEFAULTS, _FIXED, _HINTS, _SAME_NAME

torch.set_num_threads(1)  # these shapes are too small to share

SMALL = {
    "block_out_channels": (32, 64),
    "attention": (True, True),
    "norm_num_groups": 8,
    "num_attention_heads": 4,
    "cross_attention_dim": 24,
}
SHAPES = {
    "stable-diffusion-1": ({"block_out_channels": (32, 64, 64), "attention": (True, True, False)}, (16, 16)),
    "linear-projection-and-depth": (
        {"use_linear_projection": True, "transformer_layers_per_block": (1, 3), "layers_per_block": 1},
        (8, 8),
    ),
    "transformers-without-layers": ({"transformer_layers_per_block": (0, 1), "attention": (True, True)}, (8, 8)),
    "heads-per-level": ({"num_attention_heads": (2, 8)}, (8, 12)),
    "fine-level-without-attention": ({"attention": (False, True)}, (8, 8)),
    "middle-without-attention": ({"mid_attention": False}, (8, 8)),
    "no-attention-at-all": ({"attention": (False, False), "mid_attention": False}, (8, 8)),
    "odd-size": ({}, (9, 9)),
    "odd-at-the-second-level": ({"block_out_channels": (16, 32, 32), "attention": (True,) * 3}, (20, 12)),
    "one-level": ({"block_out_channels": (32,), "attention": (True,)}, (5, 7)),
    "sines-first": ({"flip_sin_to_cos": False, "freq_shift": 1}, (8, 8)),
    "inpainting-channels": ({"in_channels": 9, "out_channels": 8}, (8, 8)),
    "guidance-embedded": ({"time_cond_proj_dim": 20}, (8, 8)),
    "pooled-and-sizes": (
        {
            "block_out_channels": (32, 64, 64),
            "attention": (False, True, True),
            "transformer_layers_per_block": (1, 2, 3),
            "num_attention_heads": (1, 2, 4),
            "use_linear_projection": True,
            "pooled_dim": 12,
            "size_embed_dim": 16,
        },
        (12, 8),
    ),
}
SD_2_1 = """{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
"attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
"cross_attention_dim": 1024, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
"CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "dual_cross_attention": false,
"flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
"norm_eps": 1e-05, "norm_num_groups": 32, "num_class_embeds": null, "only_cross_attention": false,
"out_channels": 4, "sample_size": 96, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
"CrossAttnUpBlock2D"], "use_linear_projection": true, "upcast_attention": true}"""


def small(**changes) -> UNetConfig:
    return UNetConfig(**{**SMALL, **changes})


def randomise(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that norms left out or swapped show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def twins(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    """Our U-Net and theirs, on the same random weights."""
    theirs = UNet2DConditionModel.from_config(config.to_diffusers()).eval()
    randomise(theirs)
    ours = UNet(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(config: UNetConfig, size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.in_channels, *size, generator=generator)
    return x, torch.tensor([7, 940]), torch.randn(2, 5, config.cross_attention_dim or 1, generator=generator)


def added(config: UNetConfig) -> dict[str, torch.Tensor]:
    """What a U-Net of this shape reads beside the context."""
    generator = torch.Generator().manual_seed(2)
    found = {}
    if config.pooled_dim:
        found["pooled"] = torch.randn(2, config.pooled_dim, generator=generator)
        found["sizes"] = torch.tensor([[1024.0, 768, 0, 0, 1024, 768], [640, 512, 8, 40, 512, 512]])
    if config.time_cond_proj_dim:
        found["guidance"] = torch.tensor([6.5, 0.5])
    return found


def as_diffusers(found: dict[str, torch.Tensor], width: int | None) -> dict:
    """The same, as its pipelines hand them over."""
    theirs = {}
    if "pooled" in found:
        theirs["added_cond_kwargs"] = {"text_embeds": found["pooled"], "time_ids": found["sizes"]}
    if "guidance" in found:
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs["timestep_cond"] = embed(None, found["guidance"], embedding_dim=width)
    return theirs


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", SHAPES)
def test_output_equals_diffusers(name):
    changes, size = SHAPES[name]
    config = small(**changes)
    ours, theirs = twins(config)
    x, t, context = inputs(config, size)
    with torch.no_grad():
        extra = added(config)
        expected = theirs(x, t, context, **as_diffusers(extra, config.time_cond_proj_dim)).sample
        got = ours(x, t, context if config.reads_context else None, **extra)
    assert relative_difference(got, expected) < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_weights_go_back_to_diffusers(name):
    config = small(**SHAPES[name][0])
    theirs = UNet2DConditionModel.from_config(config.to_diffusers())
    theirs.load_state_dict(UNet(config).state_dict(), strict=True)
    assert UNetConfig.from_diffusers(json.loads(json.dumps(config.to_diffusers()))) == config
    assert UNetConfig.from_diffusers(theirs.config) == config


def test_without_context_it_is_diffusers_with_silent_cross_attention():
    theirs = UNet2DConditionModel.from_config(small().to_diffusers()).eval()
    randomise(theirs)
    for name, parameter in theirs.named_parameters():
        if ".attn2.to_out." in name:
            nn.init.zeros_(parameter)  # its residual then adds nothing
    config = small(cross_attention_dim=None)
    ours = UNet(config).eval()
    kept = {key: value for key, value in theirs.state_dict().items() if ".attn2." not in key and ".norm2." not in key}
    kept |= {key: value for key, value in theirs.state_dict().items() if ".resnets." in key}  # these norm2 stay
    ours.load_state_dict(kept, strict=True)
    x, t, _ = inputs(config)
    with torch.no_grad():
        expected = theirs(x, t, torch.randn(2, 5, 24)).sample
        assert relative_difference(ours(x, t), expected) < 1e-5
    assert UNetConfig.from_diffusers(config.to_diffusers()) == config


SDXL = """{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
"addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
"attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
"class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
"cross_attention_dim": 2048, "cross_attention_norm": null, "down_block_types": ["DownBlock2D",
"CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1, "dual_cross_attention": false,
"encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
"layers_per_block": 2, "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1, "mid_block_type":
"UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32, "num_attention_heads": null,
"num_class_embeds": null, "only_cross_attention": false, "out_channels": 4, "projection_class_embeddings_input_dim":
2816, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false, "resnet_time_scale_shift": "default",
"sample_size": 128, "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
"time_embedding_type": "positional", "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10],
"up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
"use_linear_projection": true}"""
SD_1_5 = {"cross_attention_dim": 768, "sample_size": 64}


@pytest.mark.parametrize(
    "config",
    [
        SD_1_5,
        {**SD_1_5, "in_channels": 9},
        {**SD_1_5, "time_cond_proj_dim": 256},
        json.loads(SD_2_1),
        json.loads(SDXL),
    ],
    ids=["1.5", "inpaint", "lcm", "2.1", "xl"],
)
def test_full_size_weights_have_the_names_and_shapes_of_diffusers(config):
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(config)
        ours = UNet(UNetConfig.from_diffusers(config))
    assert shapes(ours) == shapes(theirs)
    theirs_again = UNetConfig.from_diffusers(theirs.config)
    assert theirs_again == ours.config


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_defaults_are_stable_diffusion_1():
    assert UNetConfig.from_diffusers(SD_1_5) == UNetConfig()
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(UNetConfig()).parameters()) == 859_520_964  # the paper's 860M


def test_attention_head_dim_of_diffusers_is_a_count():
    assert UNetConfig.from_diffusers(json.loads(SD_2_1)).num_attention_heads == (5, 10, 20, 20)
    assert small().to_diffusers()["attention_head_dim"] == 4


def test_every_option_of_diffusers_is_read_or_refused():
    options = inspect.signature(UNet2DConditionModel.__init__).parameters
    defaults = {name: option.default for name, option in options.items() if name != "self"}
    assert set(defaults) == {*_SAME_NAME, *_DIFFUSERS_DEFAULTS, *_FIXED, *_HINTS}
    assert {key: defaults[key] for key in _FIXED} == _FIXED
    assert {key: defaults[key] for key in _DIFFUSERS_DEFAULTS} == _DIFFUSERS_DEFAULTS
    ours = UNetConfig()
    assert {key: defaults[key] for key in _SAME_NAME} == {key: getattr(ours, key) for key in _SAME_NAME}


@pytest.mark.parametrize(
    "change",
    [
        {"addition_embed_type": "text"},
        {"class_embed_type": "timestep"},
        {"resnet_time_scale_shift": "scale_shift"},
        {"only_cross_attention": [True, True]},
        {"a_key_from_the_future": 1},
        {"mid_block_type": None},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
        {"layers_per_block": [1, 2]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_honoured_is_named(change):
    (key,) = change
    with pytest.raises(UserError, match=key):
        UNetConfig.from_diffusers({**small().to_diffusers(), **change})


def test_remarks_and_equal_lists_are_read():
    config = {**small().to_diffusers(), "_name_or_path": "x", "layers_per_block": [2, 2], "sample_size": [8, 8]}
    assert UNetConfig.from_diffusers(config) == small(sample_size=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (True,)}, "attention"),
        ({"num_attention_heads": (1, 2, 3)}, "num_attention_heads"),
        ({"num_attention_heads": 3}, r"block_out_channels\[0\] = 32"),
        ({"norm_num_groups": 5}, "norm_num_groups"),
        ({"block_out_channels": (5, 10), "norm_num_groups": 5, "num_attention_heads": 5}, "even"),
        ({"block_out_chanels": (32, 64)}, "block_out_chanels"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_heads_are_not_checked_where_nothing_attends():
    assert small(attention=(False, True), num_attention_heads=(3, 4)).heads(0) == 3


def test_context_must_be_there_exactly_when_it_is_read():
    x, t, context = inputs(small())
    with pytest.raises(UserError, match=r"\(B, L, 24\)"):
        UNet(small())(x, t)
    with pytest.raises(UserError, match="cross_attention_dim"):
        UNet(small(cross_attention_dim=None))(x, t, context)


def test_integer_and_floating_timesteps_are_the_same():
    ours, _ = twins(small())
    x, t, context = inputs(small())
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, context), ours(x, t.double(), context), rtol=0, atol=0)
        assert not torch.allclose(ours(x, t, context), ours(x, t + 0.5, context))


def test_timestep_embedding_is_float32_and_tells_neighbours_apart():
    waves = timestep_embedding(torch.tensor([998, 999], dtype=torch.float16), 320)
    assert waves.dtype == torch.float32
    assert (waves[0] - waves[1]).abs().max() > 0.5
    torch.testing.assert_close(waves.square().sum(1), torch.full((2,), 160.0))  # cos^2 + sin^2, 160 times


def test_half_precision_weights_run():
    ours = UNet(small()).to(torch.bfloat16)
    x, t, context = inputs(small())
    assert ours(x.bfloat16(), t, context.bfloat16()).dtype == torch.bfloat16


def gradients(model: UNet, config: UNetConfig) -> list[torch.Tensor]:
    model.zero_grad()
    model(*inputs(config)).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_checkpointing_recomputes_and_gives_the_same_gradients():
    config = small()
    model = UNet(config).train()
    calls = []
    model.down_blocks[0].resnets[0].register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model, config)
    assert len(calls) == 1
    model.gradient_checkpointing = True
    got = gradients(model, config)
    assert len(calls) == 3
    assert len(got) == len(expected) == len(list(model.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_is_for_training_only():
    model = UNet(small()).eval()
    model.gradient_checkpointing = True
    calls = []
    model.mid_block.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, small())
    assert len(calls) == 1


def test_channels_last_goes_all_the_way_through():
    model = UNet(small()).to(memory_format=torch.channels_last)
    seen = []

    def check(module, _, output):
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, (ResnetBlock, SpatialTransformer, nn.Conv2d)):
            module.register_forward_hook(check)
    x, t, context = inputs(small())
    with torch.no_grad():
        model(x.to(memory_format=torch.channels_last), t, context)
    assert len(seen) > 50
    assert all(seen)


@pytest.mark.parametrize("cross_attention_dim", [24, None])
def test_it_is_one_graph_to_the_compiler(cross_attention_dim):
    config = small(layers_per_block=1, cross_attention_dim=cross_attention_dim)
    model = UNet(config).eval()
    x, t, context = inputs(config)
    context = context if config.reads_context else None
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t, context), model(x, t, context))


def test_added_inputs_must_be_there_exactly_when_they_are_read():
    xl = UNet(small(pooled_dim=12)).eval()
    x, t, context = inputs(xl.config)
    extra = added(xl.config)
    for name in extra:
        with pytest.raises(UserError, match=f"needs the input {name}"):
            xl(x, t, context, **{key: value for key, value in extra.items() if key != name})
    with pytest.raises(UserError, match="does not read the input guidance"):
        xl(x, t, context, **extra, guidance=torch.ones(2))


def test_the_width_of_a_pooled_prompt_must_be_left_over():
    config = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    with pytest.raises(UserError, match="projection_class_embeddings_input_dim = 1536"):
        UNetConfig.from_diffusers({**config, "projection_class_embeddings_input_dim": 1536})
