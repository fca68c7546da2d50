"""Device, dtype and what is applied after loading; the CPU fast path against float32."""

from __future__ import annotations

import copy
import importlib.util
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.accel import pick_device, pick_dtype, prepare
from ldm.cpu_fastpath import (
    FusedResnetBlock,
    FusedTransformerBlock,
    PackedConv2d,
    PackedLinear,
    apply_cpu_fastpath,
    cpu_fastpath_supported,
)
from ldm.errors import UserError
from ldm.models.layers import GEGLU, ResnetBlock, TransformerBlock
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

CPU = torch.device("cpu")
needs_fastpath = pytest.mark.skipif(not cpu_fastpath_supported(), reason="this CPU has no bfloat16 in oneDNN")

UNET = UNetConfig(
    block_out_channels=(32, 64),
    attention=(True, True),
    norm_num_groups=8,
    num_attention_heads=4,
    cross_attention_dim=24,
)
VAE = VAEConfig(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8)


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter off its initial value, biases and norms too, and round it to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.bfloat16())
    return module.eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal in float32, rounded to bfloat16: what is compared is the arithmetic, not the input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def root_mean_square(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def fast_twin(model: nn.Module) -> nn.Module:
    """The same weights on the fast path."""
    return apply_cpu_fastpath(copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.channels_last))


@torch.no_grad()
def assert_as_exact_as_bfloat16(model: nn.Module, *inputs: torch.Tensor, method: str = "forward") -> None:
    """Against float32, the fast path errs as little as plain bfloat16 on the same weights, and that is little."""
    exact = getattr(model, method)(*inputs)
    plain = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.channels_last)
    halves = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
    found = [getattr(form, method)(*halves) for form in (plain, fast_twin(model))]
    assert all(x.shape == exact.shape and x.dtype == torch.bfloat16 for x in found)
    of_plain, of_fast = (root_mean_square(x - exact) for x in found)
    assert 0 < of_plain < 0.05 * root_mean_square(exact)
    assert of_fast <= 1.2 * of_plain


T = torch.tensor([3, 900])
CASES = {
    "linear": (lambda: nn.Linear(48, 80), [noise(2, 9, 48)]),
    "linear-without-bias": (lambda: nn.Linear(48, 80, bias=False), [noise(7, 48)]),
    "convolution": (lambda: nn.Conv2d(24, 40, 3, padding=1), [noise(2, 24, 9, 7)]),
    "strided-convolution": (lambda: nn.Conv2d(24, 40, 3, stride=2, padding=(0, 1), dilation=2), [noise(2, 24, 9, 12)]),
    "pointwise-convolution": (lambda: nn.Conv2d(24, 40, 1, bias=False), [noise(2, 24, 8, 8)]),
    "grouped-convolution": (lambda: nn.Conv2d(24, 48, 3, groups=4), [noise(2, 24, 8, 8)]),
    "circular-convolution": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), [noise(2, 8, 8, 8)]),
    "geglu": (lambda: GEGLU(48, 96), [noise(2, 16, 48)]),
    "resnet": (lambda: ResnetBlock(32, 32, 8, 1e-5, 64), [noise(2, 32, 8, 8), noise(2, 64)]),
    "resnet-of-other-width": (lambda: ResnetBlock(32, 64, 8, 1e-5), [noise(2, 32, 8, 8)]),
    "transformer": (lambda: TransformerBlock(64, 4, 24), [noise(2, 64, 64), noise(2, 5, 24)]),
    "u-net": (lambda: UNet(UNET), [noise(2, 4, 16, 16), T, noise(2, 5, 24)]),
    "u-net-linear-projection": (
        lambda: UNet(UNET.model_copy(update={"use_linear_projection": True})),
        [noise(2, 4, 16, 16), T, noise(2, 5, 24)],
    ),
    "u-net-odd-size": (lambda: UNet(UNET), [noise(2, 4, 9, 7), T, noise(2, 5, 24)]),
}


@needs_fastpath
@pytest.mark.parametrize("name", CASES)
def test_fast_path_is_as_near_to_float32_as_plain_bfloat16(name):
    build, inputs = CASES[name]
    assert_as_exact_as_bfloat16(fill(build()), *inputs)


@needs_fastpath
@pytest.mark.parametrize(("method", "shape"), [("encode", (1, 3, 16, 16)), ("decode", (1, 4, 8, 8))])
def test_fast_autoencoder_is_as_near_to_float32_as_plain_bfloat16(method, shape):
    assert_as_exact_as_bfloat16(fill(AutoencoderKL(VAE)), noise(*shape), method=method)


@needs_fastpath
@torch.no_grad()
def test_clip_text_encoder_keeps_its_output():
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = fill(CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=4, eos_token_id=49))).bfloat16()
    tokens = torch.tensor([[0, 7, 9, 49]])
    expected = text(tokens).last_hidden_state
    fast = prepare(text, device=CPU, dtype=torch.bfloat16)
    assert root_mean_square(fast(tokens).last_hidden_state - expected) < 0.02 * root_mean_square(expected)
    assert fast.device == CPU
    assert fast.dtype == torch.bfloat16


@needs_fastpath
@torch.no_grad()
def test_shapes_may_change_from_call_to_call():
    plain = fill(nn.Conv2d(24, 40, 3, padding=1))
    fast = fast_twin(plain)
    for shape in [(2, 24, 8, 8), (1, 24, 8, 8), (2, 24, 16, 4), (1, 24, 5, 5), (2, 24, 8, 8), (1, 24, 5, 5)]:
        x = noise(*shape)
        expected = plain(x)
        assert root_mean_square(fast(x.bfloat16()) - expected) < 0.005 * root_mean_square(expected)


@needs_fastpath
@torch.no_grad()
def test_inputs_may_have_any_strides():
    plain = fill(ResnetBlock(32, 32, 8, 1e-5))
    fast = fast_twin(plain)
    x = noise(2, 32, 12, 8)
    layouts = [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)]
    for layout in layouts:
        kept = layout.clone()
        assert root_mean_square(fast(layout.bfloat16()) - plain(x)) < 0.02 * root_mean_square(plain(x))
        assert torch.equal(layout, kept)
    linear = fill(nn.Linear(12, 16))
    across = x.bfloat16().transpose(2, 3)
    assert not across.is_contiguous()
    assert root_mean_square(fast_twin(linear)(across) - linear(across.float())) < 0.01


@needs_fastpath
@torch.no_grad()
def test_residuals_are_not_written_into_the_input():
    fast = apply_cpu_fastpath(fill(UNet(UNET)).bfloat16())
    x, context = noise(2, 4, 8, 8).bfloat16(), noise(2, 5, 24).bfloat16()
    kept = x.clone(), context.clone()
    first = fast(x, T, context)
    assert torch.equal(fast(x, T, context), first)
    assert torch.equal(x, kept[0])
    assert torch.equal(context, kept[1])


@needs_fastpath
def test_every_layer_of_the_models_is_replaced():
    for model in (UNet(UNET), AutoencoderKL(VAE)):
        fast = prepare(model, device=CPU, dtype=torch.bfloat16)
        assert not any(type(module) in (nn.Linear, nn.Conv2d, GEGLU, ResnetBlock) for module in fast.modules())
    kinds = {type(module) for module in prepare(UNet(UNET), device=CPU, dtype=torch.bfloat16).modules()}
    assert {PackedConv2d, PackedLinear, FusedResnetBlock, FusedTransformerBlock} <= kinds


class LinearWithAdapter(nn.Linear):
    """Stands for a layer that somebody put there and that must not be passed over."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


@needs_fastpath
@torch.no_grad()
def test_layers_of_other_types_keep_their_forward():
    block = TransformerBlock(64, 4, 24)
    block.ff.net[0].proj = LinearWithAdapter(64, 512)
    block.ff.net[2] = LinearWithAdapter(256, 64)
    block.attn1.to_out[0] = LinearWithAdapter(64, 64)
    assert_as_exact_as_bfloat16(fill(block), noise(2, 16, 64), noise(2, 5, 24))


@needs_fastpath
def test_what_the_fast_path_cannot_do_is_an_error():
    fast = prepare(UNet(UNET), device=CPU, dtype=torch.bfloat16)
    x, context = noise(2, 4, 8, 8).bfloat16(), noise(2, 5, 24).bfloat16()
    with pytest.raises(UserError, match="without gradients"):
        fast(x.requires_grad_(), T, context)
    with pytest.raises(UserError, match=r"not torch\.float32"):
        fast(noise(2, 4, 8, 8), T, context)
    with pytest.raises(UserError, match="cannot be moved or cast"):
        fast.float()


@pytest.mark.parametrize(("dtype", "inference"), [(torch.float32, True), (torch.bfloat16, False)])
def test_elsewhere_the_model_keeps_its_state_dict(dtype, inference):
    model = UNet(UNET)
    keys = list(model.state_dict())
    ready = prepare(model, device=CPU, dtype=dtype, inference=inference)
    assert ready is model
    assert list(ready.state_dict()) == keys
    assert ready.training is not inference
    assert all(p.dtype == dtype and p.requires_grad is not inference for p in ready.parameters())


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_is_applied_to_kernels(channels_last):
    options = {"device": CPU, "dtype": torch.float32, "channels_last": channels_last, "inference": False}
    weight = prepare(UNet(UNET), **options).conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_weights_that_draw_on_a_cpu_stay_where_they_are():
    model = UNet(UNET)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    prepare(model, device=CPU, dtype=torch.float32)
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_attention_backend_is_applied_and_checked():
    model = prepare(UNet(UNET), device=CPU, dtype=torch.float32, attention="math")
    assert {module.backend for module in model.modules() if hasattr(module, "backend")} == {"math"}
    with pytest.raises(UserError, match="did you mean 'sdpa'"):
        prepare(UNet(UNET), device=CPU, dtype=torch.float32, attention="sdp")


def test_gradient_checkpointing_is_for_training_and_for_models_that_have_it():
    options = {"device": CPU, "dtype": torch.float32, "gradient_checkpointing": True}
    assert prepare(UNet(UNET), inference=False, **options).gradient_checkpointing
    with pytest.raises(UserError, match="training only"):
        prepare(UNet(UNET), **options)
    with pytest.raises(UserError, match="Linear has no blocks"):
        prepare(nn.Linear(2, 2), inference=False, **options)


def test_checkpointing_through_prepare_recomputes_and_keeps_the_gradients():
    calls, gradients = [], []
    start = fill(UNet(UNET))
    for gradient_checkpointing in (False, True):
        model = copy.deepcopy(start)
        prepare(model, device=CPU, dtype=torch.float32, gradient_checkpointing=gradient_checkpointing, inference=False)
        count: list[int] = []
        model.mid_block.resnets[0].register_forward_hook(lambda *_, count=count: count.append(1))
        model(noise(2, 4, 8, 8), T, noise(2, 5, 24)).square().mean().backward()
        calls.append(len(count))
        gradients.append([p.grad for p in model.parameters()])
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_is_in_effect_and_keeps_names_and_values():
    plain = fill(GEGLU(8, 16))
    compiled = prepare(copy.deepcopy(plain), device=CPU, dtype=torch.float32, compile=True, inference=False)
    graphs = counters["stats"]["unique_graphs"]
    found, expected = (model(noise(3, 8)) for model in (compiled, plain))
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert list(compiled.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    gradients = [[p.grad for p in model.parameters()] for model in (compiled, plain)]
    torch.testing.assert_close(*gradients)


@needs_fastpath
def test_a_compiled_model_is_not_that_of_the_fast_path():
    model = prepare(UNet(UNET), device=CPU, dtype=torch.bfloat16, compile=True)
    assert model._compiled_call_impl is not None
    assert type(model.conv_in) is nn.Conv2d


def test_xformers_where_it_cannot_run_names_what_to_do():
    missing = importlib.util.find_spec("xformers") is None
    with pytest.raises(UserError, match=r"pip install 'ldm\[xformers\]'" if missing else "needs a CUDA device"):
        prepare(UNet(UNET), device=CPU, dtype=torch.float32, attention="xformers")


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        pick_device("gpu")
    with pytest.raises(UserError, match=r"cuda:99.*one of: cpu"):
        pick_device("cuda:99")


def test_dtypes():
    assert pick_dtype("fp32", CPU) == pick_dtype("float32", CPU) == torch.float32
    assert pick_dtype("bf16", CPU) == pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_dtype("fp16", torch.device("cuda")) == torch.float16
    with pytest.raises(UserError, match="bf16"):
        pick_dtype("fp16", CPU)
    with pytest.raises(UserError, match="fp32"):
        prepare(nn.Linear(2, 2), device=CPU, dtype=torch.float16)
    with pytest.raises(UserError, match="unknown dtype 'fp8'"):
        pick_dtype("fp8", CPU)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
def test_the_dtype_of_choice_follows_the_cpu():
    with open("/proc/cpuinfo") as info:
        flags = next((line for line in info if line.startswith("flags")), "").split()
    fast = "amx_tile" in flags or "avx512_bf16" in flags
    assert pick_dtype(None, CPU) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_allocator_keeps_large_blocks_on_the_heap():
    """A block of 64 MB lies within the heap that /proc/self/maps names, and not in a mapping of its own."""
    code = """
import ctypes, re
from ldm.accel import tune_allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
def in_heap():
    address = libc.malloc(64 << 20)
    spans = re.findall(r"^(\\w+)-(\\w+) .*\\[heap\\]$", open("/proc/self/maps").read(), re.M)
    return any(int(a, 16) <= address < int(b, 16) for a, b in spans)
before = in_heap()
tune_allocator()
print(before, in_heap())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
