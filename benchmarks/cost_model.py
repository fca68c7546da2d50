"""What `ldm cost` predicts beside what is measured: seconds of a step and peak memory.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py --rounds 3

Two configurations calibrate the machine (`ldm.cost.machine`): a U-Net on pixels that is none of the others, in bfloat16
and in float32. Five others, different in kind, are then predicted from their configurations alone and measured:

    pixel U-Net      configs/mnist_label.yaml as it is
    latent and text  configs/mnist_text/unet.yaml, with VAE and text encoder at every step and no cache
    VAE              configs/mnist_text/vae.yaml without its adversary
    LoRA             configs/finetune/mnist_lora.yaml on MNIST without a cache, 32 pictures at a time
    checkpointing    configs/mnist_label.yaml in float32, recomputing activations, 2 x 96 pictures

Nine more, the rows "made up", are of the same kinds and others (an adversary, CLIP, a LoRA of convolutions) at
sizes of their own. Whatever of the model is chosen by what runs were seen to take is chosen on these and on the
calibrating ones: the five stay the test. `--rows test` leaves them out.

Every run is a process of its own, in turn, `--rounds` times over. Seconds are those of the process on its one thread
(CPU time), the least of all steps, for calibration too: on a machine that others use, the clock on the wall tells of
them. Memory is the most that was resident beyond what the process held once everything was imported and warm, and the
data were read; predicted is what is on paper, holes included, whose two figures (`ldm.cost.heap`) are fitted to the
calibrating rows and those made up. The row "VAE and adversary" is predicted as the steps with both. Both are of
`Trainer.take_step`, as `ldm train` takes it; waiting for data is not in it. `guessed` is the share of the predicted
seconds that is of operators which calibration did not meet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _timing import machine as facts_of
from _timing import report
from torch.utils.checkpoint import checkpoint

from ldm.config import load_config
from ldm.cost.counting import Kind, Work
from ldm.cost.estimate import works_of_step
from ldm.cost.machine import Machine, Measured, calibrate
from ldm.cost.measuring import passes_of, peak_beyond
from ldm.cost.memory import gradients_stay, memory_of
from ldm.cost.of_run import steps_of
from ldm.cost.step import count_step
from ldm.training.kinds import Run
from ldm.weights.opening import Loading, open_model

ROOT = Path(__file__).parent.parent
MODEL = "ldm/assets/mnist_text"
_UNLIKE = (
    "data.size=32",
    "unet={in_channels: 1, out_channels: 1, sample_size: 32, block_out_channels: [32, 64, 128], layers_per_block: 1, "
    "attention: [false, true, true], num_attention_heads: 2, cross_attention_dim: 96, norm_num_groups: 16}",
    "train.batch_size=40",
)
CALIBRATING = {
    "calibration bf16": ("configs/mnist_label.yaml", _UNLIKE),
    "calibration fp32": ("configs/mnist_label.yaml", (*_UNLIKE, "train.mixed_precision='no'")),
}
PREDICTED = {
    "pixel U-Net": ("configs/mnist_label.yaml", ()),
    "latent and text": (
        "configs/mnist_text/unet.yaml",
        ("cache=null", f"codec.path={MODEL}", f"condition.path={MODEL}"),
    ),
    "VAE": ("configs/mnist_text/vae.yaml", ("loss.adversarial=0",)),
    "LoRA": (
        "configs/finetune/mnist_lora.yaml",
        ("data={source: mnist, size: 32, captions: true}", "cache=null", "validation=null", "train.batch_size=32"),
    ),
    "checkpointing": (
        "configs/mnist_label.yaml",
        (
            "train.mixed_precision='no'",
            "train.gradient_checkpointing=true",
            "train.batch_size=96",
            "train.gradient_accumulation=2",
        ),
    ),
}
_SHAPE = (
    "unet={{in_channels: 1, out_channels: 1, sample_size: {side}, block_out_channels: {widths}, "
    "layers_per_block: {layers}, attention: {attention}, num_attention_heads: 2, cross_attention_dim: 96, "
    "norm_num_groups: 8}}"
)
_TEXT = ("cache=null", f"codec.path={MODEL}", f"condition.path={MODEL}")
_TUNE = ("data={source: mnist, size: 32, captions: true}", "cache=null", "validation=null")
_WIDE = _SHAPE.format(side=28, widths="[32, 64]", layers=2, attention="[false, true]")
_LARGE = _SHAPE.format(side=64, widths="[16, 32, 64]", layers=1, attention="[false, false, true]")
_FULL = "train.mixed_precision='no'"
MADE_UP = {
    "wide, fp32": ("configs/mnist_label.yaml", (_WIDE, "train.batch_size=24", _FULL)),
    "64 pixels": ("configs/mnist_label.yaml", ("data.size=64", _LARGE, "train.batch_size=16")),
    "latent and text, fp32": (
        "configs/mnist_text/unet.yaml",
        (*_TEXT, "train.batch_size=24", _FULL, "unet.block_out_channels=[96, 160]", "unet.layers_per_block=1"),
    ),
    "VAE and adversary": (
        "configs/mnist_text/vae.yaml",
        ("loss.adversarial_start=0", "train.batch_size=32", "vae.block_out_channels=[24, 48]"),
    ),
    "VAE, fp32": (
        "configs/mnist_text/vae.yaml",
        (
            "loss.adversarial=0",
            "train.batch_size=20",
            _FULL,
            "vae.layers_per_block=2",
            "data.size=64",
            "vae.sample_size=64",
        ),
    ),
    "LoRA of convolutions, bf16": (
        "configs/finetune/mnist_lora.yaml",
        (*_TUNE, "train.batch_size=64", "tune.targets=conv", "train.mixed_precision=bf16"),
    ),
    "LoRA, accumulated": (
        "configs/finetune/mnist_lora.yaml",
        (*_TUNE, "train.batch_size=16", "train.gradient_accumulation=2", "tune.rank=4"),
    ),
    "checkpointing, bf16": (
        "configs/mnist_label.yaml",
        (*_UNLIKE, "train.batch_size=80", "train.gradient_checkpointing=true"),
    ),
    "CLIP": ("configs/mnist_text/clip.yaml", ("train.batch_size=48",)),
}
ALL = {**CALIBRATING, **MADE_UP, **PREDICTED}
_STEPS = 4


def run_of(name: str, output: str) -> Run:
    """The settings of a row."""
    file, overrides = ALL[name]
    return load_config(ROOT / file, [*overrides, f"output={output}", "train.workers=0"])


def measure(name: str, output: str) -> dict[str, Any]:
    """In a process of its own: seconds and memory of steps, and for calibration the passes operator by operator."""
    from ldm.training.loader import batches
    from ldm.training.meter import Meter
    from ldm.training.run import build_task, processes, provenance
    from ldm.training.run_source import source_of
    from ldm.training.trainer import Trainer, seed_weights

    run = run_of(name, output)
    warm_up()
    _data = source_of(run)  # held from here on: what pictures take is no part of a model of networks
    with processes(run) as (accelerator, team), peak_beyond() as peak:
        seed_weights(run.seed)
        task = build_task(run, accelerator.device)
        trainer, meter = Trainer(run, task, accelerator, team, provenance(run)), Meter()
        source = batches(task.samples, 0, run.train, team, accelerator.device)
        seconds = []
        for _ in range(_STEPS):
            micro = [next(source) for _ in range(run.train.gradient_accumulation)]
            began = time.process_time()
            trainer.take_step(micro, meter)
            seconds.append(time.process_time() - began)
            trainer.step += 1
        found: dict[str, Any] = {"seconds": seconds[1:], "memory": peak()}
        if name in CALIBRATING:
            passes = passes_of(task, run.train.batch_size, time.process_time)
            found["passes"] = {
                "rounds": [[[*kind, w.flops, w.moved, w.seconds] for kind, w in calls] for calls in passes.rounds],
                "seconds": passes.seconds,
            }
        return found


def warm_up() -> None:
    """Have everything imported, and every library ready, that any of the runs needs."""
    import peft  # noqa: F401

    open_model(str(ROOT / MODEL), Loading())  # and forgotten
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 4))
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            checkpoint(net, torch.randn(2, 3, 8, 8), use_reentrant=False).float().sum().backward()
        optimizer.step()


def measured(name: str) -> dict[str, Any]:
    """A row, measured in another process."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--only", name, "--json", str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())


def machine_from(found: dict[str, list[dict[str, Any]]]) -> Machine:
    """The machine that the calibrating rows describe."""
    steps = []
    for name in CALIBRATING:
        passes = min((turn["passes"] for turn in found[name]), key=lambda passes: passes["seconds"])
        steps.append(Measured([_calls(rows) for rows in passes["rounds"]], passes["seconds"]))
    return calibrate(steps)


def _calls(rows: list[Any]) -> list[tuple[Kind, Work]]:
    return [(Kind(*row[:2]), Work(row[2], row[3], 1, row[4])) for row in rows]


def counted(name: str) -> tuple[Any, int, int]:
    """On paper: the work of a step, the bytes held, and operations."""
    run = run_of(name, "nowhere")
    _, step = steps_of(run)[-1]
    micro = count_step(step, kept=gradients_stay(run.train, 1))
    return works_of_step(micro, run.train), memory_of(micro, run.train, 1).total, micro.flops


def rows_of(machine: Machine, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Predicted beside measured."""
    rows = []
    for name, turns in found.items():
        works, held, _ = counted(name)
        seconds = [value for turn in turns for value in turn["seconds"]]
        guess, least = machine.seconds(works), min(seconds)
        space, peak = held / 2**20, statistics.median(turn["memory"] for turn in turns) / 2**20
        rows.append(
            {
                "configuration": name,
                "row": "calibration" if name in CALIBRATING else "test" if name in PREDICTED else "made up",
                "predicted s": guess,
                "measured s": least,
                "median s": statistics.median(seconds),
                "error of s": f"{guess / least - 1:+.1%}",
                "guessed": f"{machine.unmet(works):.0%}",
                "predicted MiB": space,
                "measured MiB": peak,
                "error of MiB": f"{space / peak - 1:+.1%}",
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each configuration")
    parser.add_argument("--rows", choices=["all", "test"], default="all", help="test leaves out those made up")
    parser.add_argument("--only", choices=[*ALL], help="measure this one here, and write what was found")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            options.json.write_text(json.dumps(measure(options.only, f"{folder}/run")))
        return
    names = ALL if options.rows == "all" else {**CALIBRATING, **PREDICTED}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in found:
            found[name].append(measured(name))
    machine = machine_from(found)
    facts: dict[str, Any] = {**facts_of(torch.device("cpu")), "rounds": options.rounds}
    report(facts, rows_of(machine, found), options.json)


if __name__ == "__main__":
    main()
