"""Whether a training step waits for its data: `ldm train` on JPEGs of 512x512, decoded in 0, 1 or 2 other processes.

    python benchmarks/data_wait.py --workers 0 1 2

No cache: each step decodes its pictures, encodes them with the VAE and their captions with the text encoder, and trains
the U-Net in bf16. The model is that of ``finetune.py``, with random weights. ``data_wait`` is the median share of a
step in which it waited for data, as the run's own log tells it, and ``largest`` that of the worst step. ``supplied`` is
how many pictures a second the same loader gives when nobody trains: what a faster device could take.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _timing import machine, report
from finetune import SIZES, environment, write_model
from PIL import Image

from ldm.accel import pick_device
from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.framing import FrameConfig
from ldm.data.samples import TrainingSamples
from ldm.training.journal import read_log
from ldm.training.loader import batches
from ldm.training.parallel import Team
from ldm.training.train_settings import TrainSettings

PICTURES = 64
SIDE = 512
SUPPLIED = 40  # batches that are timed when nobody trains


def write_pictures(folder: Path) -> int:
    """JPEGs with captions, of about as many bytes as photographs have; returns the mean of their lengths."""
    folder.mkdir()
    draws, lines, total = np.random.default_rng(0), [], 0
    for k in range(PICTURES):
        coarse = draws.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        (folder / f"{k}.jpg").write_bytes(file.getvalue())
        total += len(file.getvalue())
        lines.append(json.dumps({"file_name": f"{k}.jpg", "text": f"soft blobs of colour, number {k}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return total // PICTURES


def write_config(place: Path, batch: int) -> None:
    train = {
        "steps": 1,
        "batch_size": batch,
        "mixed_precision": "bf16",
        "log_every": 1,
        "sample_every": 10**9,
        "checkpoint_every": 10**9,
    }
    config = {
        "task": "diffusion",
        "model": str(place / "model"),
        "output": "given on the command line",
        "data": {"source": "folder", "path": str(place / "pictures")},
        "frame": {"resolution": SIDE, "buckets": False},
        "sample": {"count": 1, "steps": 1, "guidance": 1.0, "sampler": "ddim"},
        "train": train,
    }
    (place / "run.yaml").write_text(json.dumps(config))  # JSON is YAML


def trained(place: Path, workers: int, steps: int, warm_up: int) -> list[dict[str, Any]]:
    """A run of `ldm train`: what its log says of each step after the first ones."""
    with tempfile.TemporaryDirectory(dir=place) as output:
        run = Path(output) / "run"
        command = [sys.executable, "-m", "ldm", "train", str(place / "run.yaml"), f"output={run}"]
        command += [f"train.steps={warm_up + steps}", f"train.workers={workers}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        if done.returncode:
            raise RuntimeError(f"ldm train failed:\n{done.stderr}")
        records = [record for record in read_log(run / "log.jsonl") if "data_wait" in record]
    return records[warm_up:]


def supplied(place: Path, workers: int, batch: int) -> float:
    """Pictures per second of the loader alone."""
    source = FolderSource(FolderConfig(path=place / "pictures"))
    samples = TrainingSamples(source, 0, frame=FrameConfig(resolution=SIDE, buckets=False), condition="text")
    settings = TrainSettings(steps=10**6, batch_size=batch, workers=workers)
    series = batches(samples, 0, settings, Team(0, 1), pick_device())
    for _ in range(2 * settings.prefetch * max(1, workers)):  # what was prepared before the clock starts
        next(series)
    began = time.perf_counter()
    for _ in range(SUPPLIED):
        next(series)
    seconds = time.perf_counter() - began
    series.close()
    return SUPPLIED * batch / seconds


def row(workers: int, runs: Sequence[list[dict[str, Any]]], batch: int, rates: Sequence[float]) -> dict[str, Any]:
    steps = [record for run in runs for record in run]
    return {
        "workers": workers,
        "step_s": statistics.median(batch / record["images_per_second"] for record in steps),
        "data_wait": statistics.median(record["data_wait"] for record in steps),
        "largest": max(record["data_wait"] for record in steps),
        "supplied": statistics.median(rates),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="of the model; tiny only shows that it runs")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of each run that count")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if min(options.batch_size, options.steps, options.warm_up, options.repeats) < 1 or min(options.workers) < 0:
        parser.error("--workers is at least 0; --batch-size, --steps, --warm-up and --repeats at least 1")
    return options


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_model(SIZES[options.size]._replace(side=SIDE), place / "model")
        length = write_pictures(place / "pictures")
        write_config(place, options.batch_size)
        runs: dict[int, list[list[dict[str, Any]]]] = {workers: [] for workers in options.workers}
        rates: dict[int, list[float]] = {workers: [] for workers in options.workers}
        for _ in range(options.repeats):
            for workers in runs:
                runs[workers].append(trained(place, workers, options.steps, options.warm_up))
                rates[workers].append(supplied(place, workers, options.batch_size))
    facts = {"size": options.size, "batch": options.batch_size, "jpeg_kib": length // 1024, "repeats": options.repeats}
    rows = [row(workers, runs[workers], options.batch_size, rates[workers]) for workers in runs]
    report({**machine(pick_device()), **facts}, rows, options.json)


if __name__ == "__main__":
    main()
