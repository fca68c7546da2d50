"""Pictures per second of fine-tuning: `ldm train` beside diffusers' train_text_to_image.py, each as its users run it.

    python benchmarks/finetune.py --script diffusers/examples/text_to_image/train_text_to_image.py --size small

The script is not in diffusers' wheel; it is in its repository, under examples/text_to_image. It is run unchanged, in a
process of its own, and timed by its own progress bar. Ours is the command `ldm train` with a cache of latents and
texts, in a process of its own, and timed by its log. Both start from the same folder of random weights and read the
same JPEGs, captions and batch size; both train all of the U-Net with AdamW at one rate, clip gradients, and keep no
moving average. They run in turn, `--repeats` times; the first steps of each run are left out.

    diffusers fp32                  the script with its defaults: float32, pictures and captions encoded at every step
    diffusers bf16                  with --mixed_precision bf16
    diffusers bf16, free encoders   the same, if encoding cost nothing: what it encodes first is used again and again
    ours bf16                       mixed_precision bf16, from a cache, which is made before the clock starts
    ours fp32                       the same in float32

Where torchvision cannot be imported, a stand-in has the transforms that the script uses (`_their_script.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _full_size import TEXT_VARIANCE, random_tensors
from _timing import machine, report
from PIL import Image

from ldm.accel import pick_device
from ldm.codec import VAECodec
from ldm.diffusion.settings import ProcessConfig
from ldm.flops import count_flops
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.text_conditioner import TextConditioner, Tower
from ldm.training.journal import read_log
from ldm.weights.components import build_empty, fill_module
from ldm.weights.families import text_config
from ldm.weights.model import Model, save_model
from ldm.weights.papers import usual_tokenizer

CONTESTANTS = ["diffusers fp32", "diffusers bf16", "diffusers bf16, free encoders", "ours bf16", "ours fp32"]
RATE = 1e-5
PICTURES = 32
PROCESS = ProcessConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, set_alpha_to_one=False
)


class Size(NamedTuple):
    """A model and its pictures: ``side`` in pixels, ``text`` what differs from CLIP ViT-L."""

    side: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]


# Encoding a picture is to `small` what it is to `sd15`: 0.4 of the work of training on it.
SIZES = {
    "tiny": Size(
        64,
        {"block_out_channels": (16, 32), "attention": (False, True), "num_attention_heads": 2, "norm_num_groups": 8},
        {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4},
        {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2},
    ),
    "small": Size(
        256,
        {"block_out_channels": (96, 192, 384), "attention": (False, True, True), "num_attention_heads": 4},
        {"block_out_channels": (32, 64, 128, 128)},
        {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 6},
    ),
    "sd15": Size(
        512,
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "attention": (True, True, True, False),
            "num_attention_heads": 8,
        },
        {"block_out_channels": (128, 256, 512, 512)},
        {},
    ),
}


def configs(size: Size) -> tuple[UNetConfig, VAEConfig, dict[str, Any]]:
    """Of the U-Net, the autoencoder and the text encoder."""
    text = {**text_config(768), **size.text}
    unet = UNetConfig(sample_size=size.side // 8, cross_attention_dim=text["hidden_size"], **size.unet)
    return unet, VAEConfig(sample_size=size.side, scaling_factor=0.18215, **size.vae), text


def write_model(size: Size, folder: Path) -> None:
    """A folder that both open, of random weights."""
    unet, vae, text = configs(size)
    told = ({"_class_name": "UNet2DConditionModel", **unet.to_diffusers()}, vae.to_diffusers(), text)
    parts = []
    for seed, config in enumerate(told):
        parts.append(build_empty(config, folder))
        fill_module(parts[-1], random_tensors(parts[-1], TEXT_VARIANCE, seed, {}), folder)
    net, autoencoder, encoder = parts
    conditioner = TextConditioner(Tower(encoder, usual_tokenizer(text)))
    shape = (size.side, size.side)
    save_model(Model(net, PROCESS, "epsilon", VAECodec(autoencoder), conditioner, shape), folder)


def write_pictures(side: int, folder: Path) -> None:
    """JPEGs with captions, in the layout that both read, a quarter larger than what is trained on."""
    folder.mkdir()
    generator, lines = torch.Generator().manual_seed(0), []
    for k in range(PICTURES):
        coarse = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((side * 5 // 4,) * 2, Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")
        lines.append(json.dumps({"file_name": f"{k}.jpg", "text": f"a picture of soft blobs of colour, number {k}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


class Bench(NamedTuple):
    """What is run: folders of the model and the pictures, and how."""

    place: Path
    script: Path
    side: int
    batch: int
    steps: int
    warm_up: int


class Timed(NamedTuple):
    """Seconds of the steps of one run, and the losses they gave."""

    seconds: list[float]
    losses: list[float]


def environment() -> dict[str, str]:
    """Nothing is fetched, and every step moves the progress bar."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_MININTERVAL": "0", "HF_HOME": os.environ.get("HF_HOME", "")}


def theirs(bench: Bench, mixed: str | None, free: bool) -> Timed:
    """A run of the script."""
    with tempfile.TemporaryDirectory(dir=bench.place) as output:
        command = [sys.executable, str(Path(__file__).with_name("_their_script.py"))]
        command += ["--free-encoders"] if free else []
        flags: dict[str, Any] = {
            "pretrained_model_name_or_path": bench.place / "model",
            "train_data_dir": bench.place / "pictures",
            "cache_dir": Path(output) / "cache",
            "output_dir": Path(output) / "run",
            "resolution": bench.side,
            "train_batch_size": bench.batch,
            "max_train_steps": bench.warm_up + bench.steps,
            "learning_rate": RATE,
            "seed": 0,
            **({"mixed_precision": mixed} if mixed else {}),
        }
        command += [str(bench.script), "--center_crop", *(f"--{name}={value}" for name, value in flags.items())]
        return _watched(command, bench)


def _watched(command: list[str], bench: Bench) -> Timed:
    """Run a command, and note when its bar `Steps: ... k/N [...]` first shows each k."""
    env = {key: value for key, value in environment().items() if value}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
    assert process.stderr is not None
    pattern, said, moments, losses = re.compile(rb"Steps: .*?(\d+)/\d+ \["), b"", {}, {}
    while part := os.read(process.stderr.fileno(), 65536):
        now, said = time.perf_counter(), said[-20_000:] + part
        for line in said.replace(b"\n", b"\r").split(b"\r"):
            if found := pattern.search(line):
                step = int(found[1])
                moments.setdefault(step, now)
                if loss := re.search(rb"step_loss=([\d.]+)", line):
                    losses.setdefault(step, float(loss[1]))
    if process.wait() or len(moments) < bench.warm_up + bench.steps:
        raise RuntimeError(f"{bench.script} failed:\n{said.decode(errors='replace')}")
    times = [moments[k] for k in range(bench.warm_up, bench.warm_up + bench.steps + 1)]
    return Timed([b - a for a, b in itertools.pairwise(times)], list(losses.values()))


def ours(bench: Bench, mixed: str) -> Timed:
    """A run of `ldm train`, whose log tells the rate of every step."""
    with tempfile.TemporaryDirectory(dir=bench.place) as output:
        run = Path(output) / "run"
        command = [sys.executable, "-m", "ldm", "train", str(bench.place / "ours.yaml"), f"output={run}"]
        command += [f"train.steps={bench.warm_up + bench.steps}", f"train.mixed_precision={mixed}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        if done.returncode:
            raise RuntimeError(f"ldm train failed:\n{done.stderr}")
        records = read_log(run / "log.jsonl")
    steps = [record for record in records if "images_per_second" in record][bench.warm_up :]
    return Timed([bench.batch / r["images_per_second"] for r in steps], [r["loss"] for r in steps])


def write_config(bench: Bench) -> None:
    """The configuration of our run; what the script does by default, and a cache."""
    train = {
        "steps": 1,
        "batch_size": bench.batch,
        "learning_rate": RATE,
        "lr_warmup_steps": 0,
        "ema_decay": 0.0,
        "log_every": 1,
        "sample_every": 10**9,
        "checkpoint_every": 10**9,
    }
    config = {
        "task": "diffusion",
        "model": str(bench.place / "model"),
        "output": "given on the command line",
        "data": {"source": "folder", "path": str(bench.place / "pictures")},
        "frame": {"resolution": bench.side, "buckets": False},
        "cache": {"path": str(bench.place / "cache")},
        "sample": {"count": 1, "steps": 1, "guidance": 1.0, "sampler": "ddim"},
        "train": train,
    }
    (bench.place / "ours.yaml").write_text(json.dumps(config))  # JSON is YAML


def compete(bench: Bench, names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Run every contestant in turn; a row for each."""
    runs = {
        "diffusers fp32": lambda: theirs(bench, None, False),
        "diffusers bf16": lambda: theirs(bench, "bf16", False),
        "diffusers bf16, free encoders": lambda: theirs(bench, "bf16", True),
        "ours bf16": lambda: ours(bench, "bf16"),
        "ours fp32": lambda: ours(bench, "no"),
    }
    found: dict[str, list[Timed]] = {name: [] for name in names}
    for name in names:
        if name.startswith("ours"):
            runs[name]()  # makes the cache
    for _ in range(repeats):
        for name in names:
            found[name].append(runs[name]())
    return rows_of(found, bench.batch)


def rows_of(found: Mapping[str, list[Timed]], batch: int) -> list[dict[str, Any]]:
    """Times over all runs, and how many times the rate of each contestant is that of the first of ours."""
    seconds = {name: [s for timed in runs for s in timed.seconds] for name, runs in found.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    reference = next(name for name in medians if name.startswith("ours"))
    return [
        {
            "who": name,
            "median_s": medians[name],
            "min_s": min(times),
            "max_s": max(times),
            "images_per_s": batch / medians[name],
            "ours_is_times": medians[name] / medians[reference],
            "mean_loss": statistics.mean(loss for timed in found[name] for loss in timed.losses),
        }
        for name, times in seconds.items()
    ]


def work(size: Size) -> dict[str, str]:
    """Operations for each picture: of training on it, and of encoding it."""
    unet, vae, _ = configs(size)
    side = size.side
    inputs = (
        torch.zeros(1, 4, side // 8, side // 8),
        torch.zeros(1),
        torch.zeros(1, 77, unet.cross_attention_dim or 1),
    )
    train = 3 * count_flops(lambda: UNet(unet), lambda net, x, t, context: net(x, t, context), inputs)
    picture = (torch.zeros(1, 3, side, side),)
    encode = count_flops(lambda: AutoencoderKL(vae), lambda net, x: net.encode(x), picture)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet(unet).parameters())
    told = {"parameters": f"{parameters / 1e6:.1f}M", "training": f"{train / 1e9:.0f} GFLOP/picture"}
    return {**told, "encoding": f"{encode / 1e9:.0f} GFLOP/picture"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, required=True, help="diffusers' train_text_to_image.py")
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="sd15 takes 16 GiB; tiny only shows that it runs"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each run")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--who", nargs="+", help="some contestants only", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if min(options.batch_size, options.steps, options.warm_up, options.repeats) < 1:
        parser.error("--batch-size, --steps, --warm-up and --repeats are at least 1")
    if not options.script.is_file():
        parser.error(f"--script {options.script}: no such file")
    if not any(name.startswith("ours") for name in options.who):
        parser.error("--who names none of ours")
    return options


def main() -> None:
    options = arguments()
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as place:
        script = options.script.resolve()
        bench = Bench(Path(place), script, size.side, options.batch_size, options.steps, options.warm_up)
        write_model(size, bench.place / "model")
        write_pictures(size.side, bench.place / "pictures")
        write_config(bench)
        rows = compete(bench, options.who, options.repeats)
    chosen = {"size": options.size, "batch": options.batch_size, "steps": options.steps, "repeats": options.repeats}
    report({**machine(pick_device()), **chosen, **work(size)}, rows, options.json)


if __name__ == "__main__":
    main()
