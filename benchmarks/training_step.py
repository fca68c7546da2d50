"""What a training step costs: ours beside a plain diffusers loop, in turn in one process.

    python benchmarks/training_step.py --repeats 20

A U-Net over latents of 4x32x32 with a context, 16 at a time, with bfloat16 autocast, gradient clipping and AdamW. Both
sides begin with the same weights and get the same latents, times and noise, so their losses must agree as long
as rounding has not driven them apart; the loss of the last step is in the table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _timing import count_flops, in_turn, machine, report, summary
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from ldm.accel import pick_device, prepare, tune_allocator
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.settings import ProcessConfig
from ldm.models.unet import UNet, UNetConfig

RATE, CLIP = 1e-4, 1.0
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # latents, times, noise, context
Step = Callable[[], float]


def configuration(full: bool) -> tuple[UNetConfig, int]:
    """The U-Net and the batch size: wide heads, and no attention where there are most positions."""
    common = {"cross_attention_dim": 128, "num_attention_heads": 2, "norm_num_groups": 16}
    if not full:
        tiny = UNetConfig(sample_size=8, block_out_channels=(16, 32), attention=(False, True), **common)
        return tiny, 2
    shape = {"block_out_channels": (64, 128, 160), "attention": (False, True, True)}
    return UNetConfig(sample_size=32, **shape, **common), 16


def batches(config: UNetConfig, size: int, device: torch.device) -> Callable[[], Batch]:
    """A source of batches; two sources give the same ones."""
    generator = torch.Generator().manual_seed(1)
    shape = (size, config.in_channels, config.sample_size, config.sample_size)

    def draw() -> Batch:
        x0, eps = (torch.randn(shape, generator=generator) for _ in range(2))
        t = torch.randint(0, 1000, (size,), generator=generator)
        context = torch.randn(size, 16, config.cross_attention_dim or 1, generator=generator)
        return x0.to(device), t.to(device), eps.to(device), context.to(device)

    return draw


def ours(net: nn.Module, optimizer: torch.optim.Optimizer, draw: Callable[[], Batch]) -> Step:
    """A step as ``ldm train`` does it."""
    denoiser = Denoiser(net, ProcessConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).build())

    def loss_of(batch: Batch) -> Tensor:
        x0, t, eps, context = batch
        return denoiser.loss(x0, t, eps, context).mean()

    return _step(net, optimizer, draw, loss_of)


def theirs(net: nn.Module, optimizer: torch.optim.Optimizer, draw: Callable[[], Batch]) -> Step:
    """A step as the training examples of diffusers do it."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)

    def loss_of(batch: Batch) -> Tensor:
        x0, t, eps, context = batch
        output = net(scheduler.add_noise(x0, eps, t), t, context).sample
        return F.mse_loss(output.float(), eps.float())

    return _step(net, optimizer, draw, loss_of)


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: Callable[[], Batch],
    loss_of: Callable[[Batch], Tensor],
) -> Step:
    parameters = list(net.parameters())

    def step() -> float:
        batch = draw()
        with torch.autocast(batch[0].device.type, torch.bfloat16):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def compete(full: bool, device: torch.device, repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train both; a row for each, and what was trained.

    Raises:
        RuntimeError: the first losses differ, so that the times would mean nothing.
    """
    config, size = configuration(full)
    reference: nn.Module = UNet2DConditionModel.from_config(config.to_diffusers()).train()
    net = UNet(config)
    net.load_state_dict(copy.deepcopy(reference.state_dict()))
    on_gpu = device.type == "cuda"
    prepare(net, device=device, dtype=torch.float32, channels_last=on_gpu, inference=False)
    reference.to(device)
    steps = {
        "diffusers": theirs(reference, torch.optim.AdamW(reference.parameters(), RATE), batches(config, size, device)),
        "ours": ours(net, torch.optim.AdamW(net.parameters(), RATE, fused=True), batches(config, size, device)),
    }
    first = {name: step() for name, step in steps.items()}  # also the warm-up
    if abs(first["ours"] - first["diffusers"]) > 0.01 * first["diffusers"]:
        raise RuntimeError(f"the two do not train the same: their first losses are {first}")
    inputs = batches(config, size, torch.device("cpu"))()
    flops = 3 * count_flops(lambda: UNet(config), lambda model, x, t, _, context: model(x, t, context), inputs)
    found = summary(in_turn(steps, repeats), "ours")
    rows = []
    for name, step in steps.items():
        speed = {"samples_per_s": size / found[name]["median_s"], "tflop_per_s": flops / found[name]["median_s"] / 1e12}
        rows.append({"who": name, **found[name], **speed, "first_loss": first[name], "last_loss": step()})
    parameters = f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}M"
    return rows, {"parameters": parameters, "batch": size, "tflop": round(flops / 1e12, 5)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, ...; by default the GPU if there is one")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny only shows that it runs")
    parser.add_argument("--malloc", choices=("tuned", "system"), default="tuned", help="for both")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = pick_device(options.device)
    torch.manual_seed(0)
    if options.malloc == "tuned":
        tune_allocator()
    rows, trained = compete(options.scale == "full", device, options.repeats)
    report({**machine(device), "scale": options.scale, "malloc": options.malloc, **trained}, rows, options.json)


if __name__ == "__main__":
    main()
