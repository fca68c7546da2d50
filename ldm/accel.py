"""How a model runs: device, dtype, memory format, attention kernel, compilation, recomputation.

All of it is applied to a model after its weights are loaded and from outside, so that no model knows of it and
no state dict changes its names.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from pathlib import Path

import torch
from torch import nn

from ldm.codec import VAECodec
from ldm.conditioner import LabelConditioner
from ldm.cpu_fastpath import apply_cpu_fastpath, cpu_fastpath_supported
from ldm.errors import UserError, choose
from ldm.models.attention import set_backend
from ldm.text_conditioner import TextConditioner
from ldm.weights.model import Model

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def pick_device(name: str | None = None) -> torch.device:
    """Return the device called ``name``, or, for None, the GPU if there is one and else the CPU.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    return torch.device(choose(name, present, "device"))


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Return the dtype called ``name``, or, for None, the fastest that ``device`` computes well in.

    That is bf16 on a GPU or CPU with instructions for it, fp16 on another GPU, fp32 on another CPU.

    Args:
        name: a key of ``DTYPES``.
        device: where the model will run.

    Raises:
        UserError: the name is unknown, or is fp16 for a CPU.
    """
    if name is None:
        return _fastest_dtype(device)
    dtype = DTYPES[choose(name, DTYPES, "dtype")]
    _refuse_half_on_cpu(dtype, device)
    return dtype


def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def _refuse_half_on_cpu(dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("dtype fp16 is for GPUs: on the CPU use bf16 (fast on recent ones) or fp32")


def prepare(
    module: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = True,
    attention: str = "sdpa",
    compile: bool = False,
    gradient_checkpointing: bool = False,
    inference: bool = True,
    pack: bool = True,
) -> nn.Module:
    """Make a loaded module ready to run; it is changed in place and returned.

    Args:
        module: with its weights.
        device: where to.
        dtype: of weights and inputs.
        channels_last: keep images and kernels with their channels together: faster wherever kernels want it so. Not
            for drawing on a CPU, whose oneDNN rearranges kernels by itself: there, weights stay where they are
            mapped from their file.
        attention: a key of ``ldm.models.attention.BACKENDS``.
        compile: compile the forward on its first call: minutes, for some percent after.
        gradient_checkpointing: in training, compute activations again rather than keep them.
        inference: no gradients, no dropout.
        pack: in inference in bfloat16 on a CPU, and not compiled, make the module that of ``ldm.cpu_fastpath``: its
            weights can no longer be changed or had.

    Raises:
        UserError: the dtype or the attention backend cannot run on the device, the module has nothing to
            recompute, or recomputing is asked for where there are no gradients.
    """
    _refuse_half_on_cpu(dtype, device)
    if gradient_checkpointing:
        _enable_checkpointing(module, inference)
    module.to(device, dtype)
    if channels_last and (device.type != "cpu" or not inference or compile):
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    set_backend(module, attention)
    module.train(not inference)
    if inference:
        module.requires_grad_(False)
    if compile:
        module.compile()  # in place: unlike torch.compile(module), it renames nothing
    elif pack and inference and device.type == "cpu" and dtype == torch.bfloat16 and cpu_fastpath_supported():
        return apply_cpu_fastpath(module)
    return module


def _enable_checkpointing(module: nn.Module, inference: bool) -> None:
    if inference:
        raise UserError("gradient_checkpointing saves memory in training only; inference=True has no gradients")
    if not hasattr(module, "gradient_checkpointing"):
        raise UserError(f"{type(module).__name__} has no blocks to recompute: gradient_checkpointing must be off")
    module.gradient_checkpointing = True  # pyright: ignore[reportArgumentType]


def prepare_model(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    compile: bool = False,
    pack: bool = True,
) -> Model:
    """Make all parts of a model ready to draw, as ``prepare`` does; only its network is compiled."""
    ready = functools.partial(prepare, device=device, dtype=dtype, attention=attention, pack=pack)
    model.net = ready(model.net, compile=compile)
    codec, conditioner = model.codec, model.conditioner
    if isinstance(codec, VAECodec):
        ready(codec.vae)
    if isinstance(conditioner, TextConditioner):
        for tower in conditioner.towers:
            ready(tower.encoder)
    elif isinstance(conditioner, LabelConditioner):
        ready(conditioner)
    tune_allocator()
    return model


def tune_allocator() -> None:
    """Let glibc's malloc keep the memory of freed tensors; on other systems do nothing.

    By default every large tensor is mapped afresh from the kernel, which clears it page by page; decoding a
    picture spends nearly a third of its time there. The process no longer gives freed memory back before it ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def peak_memory(device: torch.device) -> float | None:
    """The most memory in use, in MiB; None where the system does not tell.

    On a GPU what torch has allocated since its statistics began, else what the process has held since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if platform.system() == "Windows":
        return None
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage tells what the parent held when it started this process, where that was more
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found is not None:
            return int(found[1]) / 1024
    import resource  # which Windows lacks

    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
