"""What a picture costs: our U-Net and autoencoder beside diffusers' on the same weights, in turn in one process.

    python benchmarks/generation.py --parts unet,vae --dtype bf16 --repeats 5

The shapes are those of Stable Diffusion 1.5 at 512x512 with guidance; the weights are random. The contestants
are diffusers as it is by default (float32), diffusers as it is at its best without compilation (the dtype
asked for, channels_last), and ours as ``ldm generate`` prepares it. The allocator setting that ours comes with
holds for the whole process, so it helps diffusers too; ``--malloc system`` leaves it out for both. The text
encoder has no contest: it is transformers' CLIPTextModel on either side, and 0.1% of the work of a picture.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _timing import count_flops, in_turn, machine, random_weights, report, summary, twin
from diffusers import AutoencoderKL as DiffusersVAE
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.accel import pick_device, pick_dtype, prepare, tune_allocator
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig


@dataclass
class Work:
    """One thing to time: inputs in float32, and how each side is called with them."""

    inputs: list[Tensor]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]


@dataclass
class Part:
    """A pair of models, their weights, and what to time with them."""

    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    works: dict[str, Work]


def unet_part(full: bool) -> Part:
    """A step with guidance: two latents, two prompts."""
    tiny = {"block_out_channels": (32, 64), "attention": (True, False), "num_attention_heads": 2}
    config = UNetConfig() if full else UNetConfig(**tiny, cross_attention_dim=16)
    side = 64 if full else 8
    inputs = [torch.randn(2, 4, side, side), torch.tensor([500, 500]), torch.randn(2, 77, config.cross_attention_dim)]
    work = Work(
        inputs,
        ours=lambda model, x, t, context: model(x, t, context),
        theirs=lambda model, x, t, context: model(x, t, context).sample,
    )
    return Part(
        ours=lambda: UNet(config),
        theirs=lambda: UNet2DConditionModel.from_config(config.to_diffusers()),
        works={"unet step": work},
    )


def vae_part(full: bool) -> Part:
    """One picture, there and back."""
    config = VAEConfig() if full else VAEConfig(block_out_channels=(32, 64), layers_per_block=1)
    side = 64 if full else 8
    decode = Work(
        [torch.randn(1, 4, side, side)],
        ours=lambda model, z: model.decode(z),
        theirs=lambda model, z: model.decode(z).sample,
    )
    encode = Work(
        [torch.rand(1, 3, side * config.factor, side * config.factor) * 2 - 1],
        ours=lambda model, images: model.encode(images),
        theirs=lambda model, images: model.encode(images).latent_dist.parameters,
    )
    return Part(
        ours=lambda: AutoencoderKL(config),
        theirs=lambda: DiffusersVAE.from_config(config.to_diffusers()),
        works={"vae decode": decode, "vae encode": encode},
    )


PARTS: dict[str, Callable[[bool], Part]] = {"unet": unet_part, "vae": vae_part}


def contestants(part: Part, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The models that compete, by name; the first is the reference."""
    reference = random_weights(part.theirs)
    ours = twin(part.ours, reference)
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    models = {}
    if dtype != torch.float32:
        best = copy.deepcopy(reference).to(device, dtype).to(memory_format=torch.channels_last)
        models[f"diffusers {names[dtype]} channels_last"] = best
    models["ours"] = prepare(ours, device=device, dtype=dtype)
    return {"diffusers fp32": reference.to(device), **models}


def _call(work: Work, name: str, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    run = work.ours if name == "ours" else work.theirs
    kind = torch.float32 if name == "diffusers fp32" else dtype
    inputs = [x.to(device, kind if x.is_floating_point() else x.dtype) for x in work.inputs]
    return lambda: run(model, *inputs)


def compete(part: Part, device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Time every work of a part; a row per work and contestant.

    Raises:
        RuntimeError: an output is far from the reference's, so that the times would mean nothing.
    """
    models = contestants(part, device, dtype)
    rows = []
    for title, work in part.works.items():
        calls = {name: _call(work, name, model, device, dtype) for name, model in models.items()}
        outputs = {name: call().float() for name, call in calls.items()}  # also the warm-up
        expected = outputs["diffusers fp32"]
        flops = count_flops(part.ours, work.ours, work.inputs)
        for name, found in summary(in_turn(calls, repeats), "ours").items():
            error = ((outputs[name] - expected).norm() / expected.norm()).item()
            if not error < 0.1:
                raise RuntimeError(f"{title}: the output of {name} differs from float32 by {error:.2g} of its norm")
            speed = flops / found["median_s"] / 1e12
            rows.append(
                {"work": title, "who": name, **found, "tflop": flops / 1e12, "tflop_per_s": speed, "error": error}
            )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="unet,vae", help="of unet, vae, with a comma")
    parser.add_argument("--dtype", default="bf16", help="fp32, bf16 or fp16 (GPUs)")
    parser.add_argument("--device", help="cpu, cuda, ...; by default the GPU if there is one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny only shows that it runs")
    parser.add_argument("--malloc", choices=("tuned", "system"), default="tuned")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    torch.manual_seed(0)
    if options.malloc == "tuned":
        tune_allocator()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name in options.parts.split(","):
            rows += compete(PARTS[name](options.scale == "full"), device, dtype, options.repeats)
    facts = {**machine(device), "dtype": options.dtype, "scale": options.scale, "malloc": options.malloc}
    report(facts, rows, options.json)


if __name__ == "__main__":
    main()
