"""The autoencoder against diffusers' AutoencoderKL on the same weights."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL  # type: ignore[attr-defined]
from safetensors.torch import save_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm.errors import UserError
from ldm.models.vae import (
    _DIFFUSERS_DEFAULTS,
    _FIXED,
    _HINTS,
    AutoencoderKL,
    VAEConfig,
    kl,
    rename_old_attention,
    sample_moments,
    split_moments,
)

torch.set_num_threads(1)  # these shapes are too small to share

SMALL = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 32}
SHAPES = {
    "two-levels": ({}, (16, 24)),
    "three-levels": ({"block_out_channels": (16, 32, 32), "layers_per_block": 2}, (32, 16)),
    "no-attention": ({"mid_block_add_attention": False}, (16, 16)),
    "grey-and-wide-latents": ({"in_channels": 1, "out_channels": 1, "latent_channels": 6}, (16, 16)),
    "odd-size": ({}, (17, 15)),
}
SD_1 = """{"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
"DownEncoderBlock2D", "DownEncoderBlock2D"], "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
"norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D",
"UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"""


def small(**changes) -> VAEConfig:
    return VAEConfig(**{**SMALL, **changes})


def twins(config: VAEConfig) -> tuple[AutoencoderKL, DiffusersAutoencoderKL]:
    """Our autoencoder and theirs, on the same random weights, norms included."""
    theirs = DiffusersAutoencoderKL.from_config(config.to_diffusers()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    ours = AutoencoderKL(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", SHAPES)
def test_both_halves_equal_diffusers(name):
    changes, size = SHAPES[name]
    config = small(**changes)
    ours, theirs = twins(config)
    images = torch.randn(2, config.in_channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        distribution = theirs.encode(images).latent_dist
        moments = ours.encode(images)
        mean, logvar = split_moments(moments)
        assert relative_difference(mean, distribution.mean) < 1e-5
        assert relative_difference(logvar, distribution.logvar) < 1e-5
        assert relative_difference(kl(moments), distribution.kl()) < 1e-5
        assert relative_difference(ours.decode(mean), theirs.decode(mean).sample) < 1e-5
    assert mean.shape == (2, config.latent_channels, *(side // config.factor for side in size))


@pytest.mark.parametrize("name", SHAPES)
def test_weights_go_back_to_diffusers(name):
    config = small(**SHAPES[name][0])
    theirs = DiffusersAutoencoderKL.from_config(config.to_diffusers())
    theirs.load_state_dict(AutoencoderKL(config).state_dict(), strict=True)
    assert VAEConfig.from_diffusers(json.loads(json.dumps(config.to_diffusers()))) == config
    assert VAEConfig.from_diffusers(theirs.config) == config


def test_full_size_weights_have_the_names_and_shapes_of_diffusers():
    config = json.loads(SD_1)
    with torch.device("meta"):
        theirs = DiffusersAutoencoderKL.from_config(config)
        ours = AutoencoderKL(VAEConfig.from_diffusers(config))
    assert ours.config == VAEConfig()  # our defaults are Stable Diffusion's
    assert ours.config.factor == 8
    assert shapes(ours) == shapes(theirs)
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_old_attention_names_are_read_as_diffusers_reads_them(tmp_path):
    state_dict = AutoencoderKL(small()).state_dict()
    olds = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, value in state_dict.items():
        for new_name, old_name in olds.items():
            key = key.replace(new_name, old_name)
        old[key] = value
    assert len(set(old) - set(state_dict)) == 2 * 4 * 2  # two halves, four layers, weight and bias
    (tmp_path / "config.json").write_text(json.dumps(small().to_diffusers()))
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    theirs = DiffusersAutoencoderKL.from_pretrained(tmp_path).state_dict()
    renamed = rename_old_attention(old)
    assert renamed.keys() == theirs.keys()
    assert all(torch.equal(renamed[key], theirs[key]) for key in theirs)
    assert rename_old_attention(state_dict) == dict(state_dict)  # names of today are left alone


def test_every_option_of_diffusers_is_read_or_refused():
    options = inspect.signature(DiffusersAutoencoderKL.__init__).parameters
    defaults = {name: option.default for name, option in options.items() if name != "self"}
    blocks = {"down_block_types", "up_block_types"}
    assert set(defaults) == {*_DIFFUSERS_DEFAULTS, *_FIXED, *_HINTS, *blocks}
    assert {key: defaults[key] for key in _FIXED} == _FIXED
    assert {key: defaults[key] for key in _DIFFUSERS_DEFAULTS} == _DIFFUSERS_DEFAULTS


@pytest.mark.parametrize(
    "change",
    [
        {"shift_factor": 0.1159},
        {"use_quant_conv": False},
        {"latents_mean": [0.0] * 4},
        {"a_key_from_the_future": 1},
        {"down_block_types": ["DownEncoderBlock2D"]},
        {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_honoured_is_named(change):
    (key,) = change
    with pytest.raises(UserError, match=key):
        VAEConfig.from_diffusers({**small().to_diffusers(), **change})


def test_groups_must_divide_widths():
    with pytest.raises(ValueError, match="norm_num_groups"):
        small(norm_num_groups=5)


def test_divergence_is_that_of_torch_distributions():
    moments = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    mean, logvar = moments.chunk(2, dim=1)
    each = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(kl(moments), each.sum(dim=(1, 2, 3)))


def test_samples_have_the_mean_and_deviation_of_the_moments():
    moments = torch.cat([torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2 * torch.log(torch.tensor(0.5)))], 1)
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    latents = sample_moments(moments, noise)
    assert latents.mean().item() == pytest.approx(3.0, abs=0.01)  # standard error 0.0025
    assert latents.std().item() == pytest.approx(0.5, abs=0.01)


def test_log_variance_is_clamped():
    moments = torch.tensor([[0.0, -100.0], [0.0, 100.0]])[:, :, None, None]
    assert split_moments(moments)[1].flatten().tolist() == [-30.0, 20.0]
    assert kl(moments).isfinite().all()


def test_checkpointing_recomputes_and_gives_the_same_gradients():
    model = AutoencoderKL(small()).train()
    images, noise = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
    calls = []
    model.encoder.down_blocks[0].resnets[0].register_forward_hook(lambda *_: calls.append(1))
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        reconstruction, moments = model(images, noise)
        (reconstruction.square().mean() + kl(moments).mean()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(calls) == 1 + 2  # plain, checkpointed, and again in its backward pass
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_last_layer_is_the_last():
    model = AutoencoderKL(small())
    reconstruction = model.decode(torch.randn(1, 4, 4, 4))
    (gradient,) = torch.autograd.grad(reconstruction.sum(), model.last_layer)
    # the output is linear in its last weights: Euler's theorem gives back everything but the bias
    linear = (gradient * model.last_layer).sum() + model.decoder.conv_out.bias.sum() * 8 * 8
    torch.testing.assert_close(linear, reconstruction.sum())


def test_channels_last_goes_all_the_way_through():
    model = AutoencoderKL(small()).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        moments = model.encode(images)
        assert moments.is_contiguous(memory_format=torch.channels_last)
        decoded = model.decode(split_moments(moments)[0])
        assert decoded.is_contiguous(memory_format=torch.channels_last)
