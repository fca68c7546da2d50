"""Attention: every backend computes the same thing, and what is not installed says so."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ldm.errors import UserError
from ldm.models.attention import BACKENDS, Attention, attend, check_backend, set_backend
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

torch.set_num_threads(1)  # these shapes are too small to share

EVERYWHERE = ("sdpa", "math")


def qkv(batch=2, heads=3, queries=5, keys=7, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys)
    return [torch.randn(batch, heads, size, width, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_it_is_the_weighted_mean_of_the_values(backend):
    q, k, v = qkv(dtype=torch.float64)
    out = attend(q, k, v, backend)
    expected = torch.zeros_like(q)
    for b in range(2):
        for head in range(3):
            for i in range(5):
                weights = torch.stack([(q[b, head, i] @ k[b, head, j] / 8**0.5).exp() for j in range(7)])
                weights = weights / weights.sum()
                expected[b, head, i] = sum(weights[j] * v[b, head, j] for j in range(7))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)  # the softmax of "math" is in float32


@given(
    queries=st.integers(1, 20), keys=st.integers(1, 20), heads=st.integers(1, 4), width=st.sampled_from([1, 8, 40, 512])
)
@settings(max_examples=20, deadline=None)
def test_backends_agree(queries, keys, heads, width):
    q, k, v = qkv(queries=queries, keys=keys, heads=heads, width=width)
    torch.testing.assert_close(attend(q, k, v, "math"), attend(q, k, v, "sdpa"), rtol=1e-4, atol=1e-5)


def test_backends_agree_on_gradients():
    gradients = []
    for backend in EVERYWHERE:
        q, k, v = (tensor.requires_grad_() for tensor in qkv())
        gradients.append(torch.autograd.grad(attend(q, k, v, backend).square().sum(), (q, k, v)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [1, 16, 77, 256])
def test_training_in_bfloat16_is_as_exact_as_bfloat16_allows(keys):
    """On a CPU it takes another way there, which rounds the products before the softmax, as it rounds all else."""

    def gradients(dtype, attention):
        inputs = [x.to(dtype).requires_grad_() for x in qkv(queries=64, keys=keys, width=40, dtype=torch.bfloat16)]
        out = attention(*inputs)
        out.backward(torch.cos(torch.arange(out.numel())).reshape(out.shape).to(dtype))
        return torch.cat([out.flatten(), *(x.grad.flatten() for x in inputs)]).double()

    exact = gradients(torch.float64, F.scaled_dot_product_attention)
    found = gradients(torch.bfloat16, attend)
    assert 0 < (found - exact).norm() < 2**-7 * exact.norm()  # two units in the last place


def test_math_stays_finite_where_half_precision_products_overflow():
    q = torch.full((1, 1, 4, 64), 60.0, dtype=torch.float16)  # q k^T = 230400 > 65504
    assert attend(q, q, q, "math").isfinite().all()


def test_a_flop_counter_sees_math():
    q, k, v = qkv()
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, "math")
    assert counter.get_total_flops() == 2 * 2 * (2 * 3 * 5 * 7 * 8)  # two products, each a multiply and an add


def test_unknown_backend_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown attention backend 'spda'; did you mean 'sdpa'"):
        attend(*qkv(), backend="spda")
    with pytest.raises(UserError, match=r"unknown attention backend 'flash' \(one of: sdpa, xformers, math\)"):
        check_backend("flash", "cpu")


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_what_runs_everywhere_is_accepted_everywhere(backend):
    check_backend(backend, "cpu")
    check_backend(backend, torch.device("cuda"))


def test_xformers_is_refused_on_the_cpu():
    with pytest.raises(UserError, match="xformers"):
        check_backend("xformers", "cpu")


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_missing_xformers_names_the_package_and_the_command():
    message = r"xformers cannot be imported .*pip install 'ldm\[xformers\]'"
    with pytest.raises(UserError, match=message):
        check_backend("xformers", "cuda")
    with pytest.raises(UserError, match=message):
        attend(*qkv(), backend="xformers")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_on_cuda(backend):
    if backend == "xformers":
        pytest.importorskip("xformers.ops")
    q, k, v = (tensor.cuda().half() for tensor in qkv(queries=64, keys=77, width=40))
    expected = attend(q.double(), k.double(), v.double(), "math")
    torch.testing.assert_close(attend(q, k, v, backend).double(), expected, rtol=1e-2, atol=2e-3)


def test_set_backend_reaches_every_attention_of_both_networks():
    unet = UNet(UNetConfig(block_out_channels=(32,), attention=(True,), cross_attention_dim=8, norm_num_groups=8))
    vae = AutoencoderKL(VAEConfig(block_out_channels=(16,), norm_num_groups=8))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 8)
    before = unet(x, t, context), vae.decode(x)
    for model, count in ((unet, 2 * (2 + 1 + 3)), (vae, 2)):
        set_backend(model, "math")
        names = [module.backend for module in model.modules() if isinstance(module, Attention)]
        assert names == ["math"] * count
    torch.testing.assert_close((unet(x, t, context), vae.decode(x)), before, rtol=1e-4, atol=1e-5)


def test_a_refused_backend_changes_nothing():
    model = Attention(8, heads=2)
    with pytest.raises(UserError):
        set_backend(model, "xformers")
    assert model.backend == "sdpa"


def test_positions_are_equivariant_and_context_order_is_not_seen():
    model = Attention(8, heads=2, context_channels=6)
    x, context = torch.randn(1, 5, 8), torch.randn(1, 4, 6)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(model(x[:, order], context), model(x, context)[:, order])
    torch.testing.assert_close(model(x, context.flip(1)), model(x, context))
