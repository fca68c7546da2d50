"""What a training step costs: ours beside a plain diffusers loop, in turn in one process.

    python benchmarks/training_step.py --dtypes fp32 bf16 --repeats 10

A U-Net over latents with a context, 16 at a time, in float32 or under bfloat16 autocast. Theirs is the loop of
diffusers' training examples (UNet2DConditionModel, DDPMScheduler, AdamW, gradients clipped to norm 1), ours the same
step from this package's parts as ``ldm train`` puts them together (its AdamW is fused). Encoding, moving average and
logging are left out of both. Both sides begin with the same weights and get the same latents, times and noise, so
their losses must agree as long as rounding has not driven them apart; the first and the last are in the table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _timing import in_turn, machine, report, summary, working_memory
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from ldm.accel import DTYPES, pick_device, prepare, tune_allocator
from ldm.diffusion.context import Context
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import UserError
from ldm.flops import count_flops
from ldm.models.unet import UNet, UNetConfig

RATE, CLIP = 1e-4, 1.0
BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # latents, times, noise, context
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Step = Callable[[], float]


def configuration(model: str, size: int) -> UNetConfig:
    """The U-Net for pictures of ``size`` pixels: wide heads, and no attention where there are most positions."""
    common: dict[str, Any] = {
        "cross_attention_dim": 128,
        "num_attention_heads": 2,
        "norm_num_groups": 16,
        "sample_size": size // 8,
    }
    if model == "tiny":
        return UNetConfig(block_out_channels=(16, 32), attention=(False, True), **common)
    return UNetConfig(block_out_channels=(64, 128, 160), attention=(False, True, True), **common)


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


def our_loss(net: nn.Module) -> Loss:
    """The loss as ``ldm train`` computes it."""
    denoiser = Denoiser(net, ProcessConfig(**BETAS).build())

    def loss(x0: Tensor, t: Tensor, eps: Tensor, context: Tensor) -> Tensor:
        return denoiser.loss(x0, t, eps, Context(context)).mean()

    return loss


def their_loss(net: nn.Module) -> Loss:
    """The loss as the training examples of diffusers compute it."""
    scheduler: Any = DDPMScheduler(**BETAS)

    def loss(x0: Tensor, t: Tensor, eps: Tensor, context: Tensor) -> Tensor:
        output = net(scheduler.add_noise(x0, eps, t), t, context).sample
        return F.mse_loss(output.float(), eps.float())

    return loss


def step_of(net: nn.Module, loss_of: Loss, draw: Callable[[], Batch], dtype: torch.dtype, fused: bool | None) -> Step:
    """A training step, which returns its loss."""
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, fused=fused)

    def step() -> float:
        batch = draw()
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def contestants(config: UNetConfig, batch_size: int, device: torch.device, dtypes: list[str]) -> dict[str, Step]:
    """The training steps to time, by name, all from the same weights."""
    first: Any = UNet2DConditionModel.from_config(config.to_diffusers())
    steps = {}
    for name in dtypes:
        draws = [batches(config, batch_size, device) for _ in range(2)]
        reference = copy.deepcopy(first).to(device).train()
        steps[f"diffusers {name}"] = step_of(reference, their_loss(reference), draws[0], DTYPES[name], None)
        net = UNet(config)
        net.load_state_dict(first.state_dict())
        # As in the configurations: channels_last pays on GPUs and not in training on a CPU.
        layout = device.type == "cuda"
        prepare(net, device=device, dtype=torch.float32, channels_last=layout, inference=False)
        steps[f"ours {name}"] = step_of(net, our_loss(net), draws[1], DTYPES[name], True)
    return steps


def compete(
    config: UNetConfig, batch_size: int, device: torch.device, dtypes: list[str], repeats: int
) -> list[dict[str, Any]]:
    """Time every contestant; a row for each.

    Raises:
        RuntimeError: the first losses differ, so that the times would mean nothing.
    """
    steps = contestants(config, batch_size, device, dtypes)
    reference = next(iter(steps))
    first = {name: step() for name, step in steps.items()}  # also the warm-up
    if max(first.values()) - min(first.values()) > 0.01 * first[reference]:
        raise RuntimeError(f"they do not train the same: their first losses are {first}")
    flops = flops_of_step(config, batch_size)
    rivals = {name: f"diffusers {name.split()[1]}" for name in steps}
    found = summary(in_turn(steps, repeats, device), rivals, reference, flops)
    rows = []
    for name, step in steps.items():
        memory = working_memory(step, device)
        rate = {"samples_per_s": batch_size / found[name]["median_s"]}
        rows.append({"who": name, **found[name], **rate, "first_loss": first[name], "last_loss": step(), **memory})
    return rows


def flops_of_step(config: UNetConfig, batch_size: int) -> int:
    """Three times the forward pass: the backward has two products for each of its products."""
    inputs = batches(config, batch_size, torch.device("cpu"))()
    return 3 * count_flops(lambda: UNet(config), lambda model, x, t, _, context: model(x, t, context), inputs)


def arguments() -> tuple[argparse.Namespace, torch.device]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, ...; by default the GPU if there is one")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--size", type=int, default=256, help="height and width of the picture; latents are 1/8")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--model", choices=("small", "tiny"), default="small", help="tiny only shows that it runs")
    parser.add_argument("--malloc", choices=("tuned", "system"), default="tuned", help="for both")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.size < 32 or options.size % 32:
        parser.error(f"--size {options.size} is not a multiple of 32")
    if min(options.repeats, options.batch_size) < 1:
        parser.error("--repeats and --batch-size are at least 1")
    try:
        return options, pick_device(options.device)
    except UserError as error:
        parser.error(str(error))


def main() -> None:
    options, device = arguments()
    torch.manual_seed(0)
    if options.malloc == "tuned":
        tune_allocator()
    config = configuration(options.model, options.size)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet(config).parameters())
    chosen = {"size": options.size, "batch": options.batch_size, "repeats": options.repeats, "malloc": options.malloc}
    shown = {"model": options.model, "parameters": f"{parameters / 1e6:.1f}M", **chosen}
    facts = {**machine(device), **shown}
    rows = compete(config, options.batch_size, device, options.dtypes, options.repeats)
    report(facts, rows, options.json)


if __name__ == "__main__":
    main()
