"""What a picture costs: our parts beside diffusers' on the same weights, in turn in one process.

    python benchmarks/generation.py --parts unet vae-decode text --dtypes fp32 bf16 --repeats 5

The shapes are those of Stable Diffusion 1.5 with guidance, so a step of the U-Net sees two latents and two
prompts; the weights are random. The contestants are diffusers as it is by default (float32), diffusers at its best
without compilation in each other dtype (channels_last), and ours in each dtype as ``ldm generate`` prepares it. The
text encoder is transformers' CLIPTextModel on either side. The allocator setting that ours comes with holds for
the whole process, so it helps diffusers too; ``--malloc system`` leaves it out for both.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _timing import in_turn, machine, random_weights, report, summary, twin, working_memory
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as DiffusersVAE
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.accel import pick_device, pick_dtype, prepare, tune_allocator
from ldm.errors import UserError
from ldm.flops import count_flops
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

REFERENCE = "diffusers fp32"
Call = Callable[..., Tensor]


@dataclass
class Part:
    """Something to time: both models, how each is called, and the inputs in float32."""

    build_ours: Callable[[], nn.Module]
    call_ours: Call
    call_theirs: Call
    inputs: list[Tensor]
    reference: Callable[[], nn.Module]  # theirs, with weights
    ours: Callable[[nn.Module], nn.Module]  # ours, with the weights of theirs


def _random(kind: Any, config: UNetConfig | VAEConfig) -> nn.Module:
    """A model of diffusers, of the shape of ours."""
    return random_weights(lambda: kind.from_config(config.to_diffusers()))


def unet(tiny: bool, side: int) -> Part:
    """One step with guidance: two latents, two prompts."""
    small = {"block_out_channels": (32, 64), "attention": (True, False), "num_attention_heads": 2}
    config = UNetConfig(**({**small, "cross_attention_dim": 16} if tiny else {}))
    context = torch.randn(2, 77, config.cross_attention_dim or 0)
    return Part(
        build_ours=lambda: UNet(config),
        call_ours=lambda model, x, t, context: model(x, t, context),
        call_theirs=lambda model, x, t, context: model(x, t, context).sample,
        inputs=[torch.randn(2, 4, side, side), torch.tensor([500, 500]), context],
        reference=lambda: _random(UNet2DConditionModel, config),
        ours=lambda theirs: twin(lambda: UNet(config), theirs),
    )


def _vae(tiny: bool, call_ours: Call, call_theirs: Call, inputs: list[Tensor]) -> Part:
    config = VAEConfig(**({"block_out_channels": (32, 32, 32, 64), "layers_per_block": 1} if tiny else {}))
    return Part(
        build_ours=lambda: AutoencoderKL(config),
        call_ours=call_ours,
        call_theirs=call_theirs,
        inputs=inputs,
        reference=lambda: _random(DiffusersVAE, config),
        ours=lambda theirs: twin(lambda: AutoencoderKL(config), theirs),
    )


def vae_decode(tiny: bool, side: int) -> Part:
    """The latents of one picture to the picture."""
    latents = torch.randn(1, 4, side, side)
    return _vae(tiny, lambda model, z: model.decode(z), lambda model, z: model.decode(z).sample, [latents])


def vae_encode(tiny: bool, side: int) -> Part:
    """One picture to the moments of its latents."""
    images = torch.rand(1, 3, 8 * side, 8 * side) * 2 - 1
    return _vae(
        tiny, lambda model, x: model.encode(x), lambda model, x: model.encode(x).latent_dist.parameters, [images]
    )


def text(tiny: bool, side: int) -> Part:
    """The prompt and the empty one, whatever the size of the picture."""
    shape = (32, 64, 2, 2) if tiny else (768, 3072, 12, 12)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPTextConfig(**dict(zip(keys, shape, strict=True)))

    def build() -> nn.Module:
        return CLIPTextModel(config).eval()

    def call(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(tokens).last_hidden_state

    return Part(build, call, call, [torch.randint(0, 1000, (2, 77))], reference=build, ours=copy.deepcopy)


PARTS: dict[str, Callable[[bool, int], Part]] = {
    "unet": unet,
    "vae-decode": vae_decode,
    "vae-encode": vae_encode,
    "text": text,
}


def contestants(part: Part, device: torch.device, dtypes: dict[str, torch.dtype]) -> dict[str, Callable[[], Tensor]]:
    """What to time, by name; the first is the reference."""
    reference = part.reference()
    calls = {}

    def enter(name: str, model: nn.Module, call: Call, dtype: torch.dtype) -> None:
        inputs = [x.to(device, dtype if x.is_floating_point() else x.dtype) for x in part.inputs]
        calls[name] = lambda: call(model, *inputs)

    enter(REFERENCE, reference, part.call_theirs, torch.float32)
    for name, dtype in dtypes.items():
        ours = prepare(part.ours(reference), device=device, dtype=dtype)
        enter(f"ours {name}", ours, part.call_ours, dtype)
        if dtype != torch.float32:
            best: Any = copy.deepcopy(reference)
            best.to(device, dtype).to(memory_format=torch.channels_last)
            enter(f"diffusers {name} channels_last", best, part.call_theirs, dtype)
    reference.to(device)
    return calls


def rivals(names: list[str]) -> dict[str, str]:
    """By contestant, that of diffusers in its dtype."""
    theirs = {name.split()[1]: name for name in names if name.startswith("diffusers")}
    return {name: theirs[name.split()[1]] for name in names}


def compete(
    title: str, part: Part, device: torch.device, dtypes: dict[str, torch.dtype], repeats: int
) -> list[dict[str, Any]]:
    """Time one part; a row per contestant.

    Raises:
        RuntimeError: an output is far from the reference's, so that the times would mean nothing.
    """
    calls = contestants(part, device, dtypes)
    expected = calls[REFERENCE]().float()
    errors = {}
    for name, call in calls.items():  # also the warm-up
        errors[name] = ((call().float() - expected).norm() / expected.norm()).item()
        if not errors[name] < 0.1:
            raise RuntimeError(f"{title}: the output of {name} is {errors[name]:.2g} of its norm from float32's")
    flops = count_flops(part.build_ours, part.call_ours, part.inputs)
    found = summary(in_turn(calls, repeats, device), rivals(list(calls)), REFERENCE, flops)
    return [
        {"work": title, "who": name, **found[name], "error": errors[name], **working_memory(call, device)}
        for name, call in calls.items()
    ]


def arguments() -> tuple[argparse.Namespace, torch.device, dict[str, torch.dtype]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["unet", "vae-decode", "text"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], help="of fp32, bf16, fp16 (GPUs)")
    parser.add_argument("--device", help="cpu, cuda, ...; by default the GPU if there is one")
    parser.add_argument("--size", type=int, default=512, help="height and width of the picture")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=("sd15", "tiny"), default="sd15", help="tiny only shows that it runs")
    parser.add_argument("--malloc", choices=("tuned", "system"), default="tuned", help="for both")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.size < 64 or options.size % 64:
        parser.error(f"--size {options.size} is not a multiple of 64")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats} is below 1")
    try:
        device = pick_device(options.device)
        return options, device, {name: pick_dtype(name, device) for name in options.dtypes}
    except UserError as error:
        parser.error(str(error))


def main() -> None:
    options, device, dtypes = arguments()
    torch.manual_seed(0)
    if options.malloc == "tuned":
        tune_allocator()
    facts = {**machine(device), "model": options.model, "size": options.size, "malloc": options.malloc}
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for title in options.parts:
            part = PARTS[title](options.model == "tiny", options.size // 8)
            rows += compete(title, part, device, dtypes, options.repeats)
    report({**facts, "repeats": options.repeats}, rows, options.json)


if __name__ == "__main__":
    main()
