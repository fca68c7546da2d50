"""Let the judge of digits look at what a model draws.

text       "a handwritten seven" and so on: is the digit that was asked for the one recognised?
label      the same with class labels
distance   how far the pictures are from the test digits, beside the floor that real training digits reach

python scripts/judge_mnist.py --model runs/mnist --judge runs/judge.safetensors --mode label --grid grid.png
python scripts/judge_mnist.py --model runs/mnist --judge runs/judge.safetensors --mode distance --data FOLDER
python scripts/judge_mnist.py --judge runs/judge.safetensors --mode distance --data FOLDER --conditions text --steps 50
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import ldm
from ldm.cli import run
from ldm.data.captions import DIGIT_NAMES
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.evaluate.distance import measure
from ldm.images import save_grid, to_bytes, to_signed
from ldm.models.judge import DigitJudge

GRID_ROWS = 20


def main() -> None:
    options = _options()
    judge = DigitJudge.load(options.judge)
    if options.mode == "distance":
        real = real_digits(options.data, 10 * options.count, options.seed)
        images = generate(options, conditions_for(options, [int(label) for label in real.labels]))
        found = measure_distance(judge, images, real.images, options.data)
    else:
        wanted = torch.arange(10 * options.count) % 10
        images = generate(options, conditions_for(options, wanted.tolist()))
        found = count_recognised(judge.classify(to_signed(images)), wanted)
    if options.grid:
        save_grid(to_signed(images[: 10 * GRID_ROWS]), options.grid, columns=10)
    if options.json:
        asked = {name: value for name, value in vars(options).items() if name not in ("json", "grid")}
        options.json.write_text(json.dumps({"options": asked, "found": found}, default=str, indent=2) + "\n")


def conditions_for(options: argparse.Namespace, digits: list[int]) -> list[str | int | None]:
    """What to ask the model for, one entry per picture."""
    if "text" in (options.mode, options.conditions):
        return [f"a handwritten {DIGIT_NAMES[digit]}" for digit in digits]
    if options.mode == "distance" and options.conditions == "none":
        return [None] * len(digits)
    return [*digits]


def generate(options: argparse.Namespace, conditions: list[str | int | None]) -> Tensor:
    """Pictures (N, 1, H, W) uint8, as they would be saved; picture i has the seed `--seed` + i."""
    pipe = ldm.load(options.model)
    settings = {"steps": options.steps, "sampler": options.sampler, "guidance": options.guidance}
    images = []
    for start in tqdm(range(0, len(conditions), options.batch_size), desc="pictures", unit="batch"):
        batch = conditions[start : start + options.batch_size]
        first = options.seed + start
        images.append(pipe.generate(batch, range(first, first + len(batch)), batch_size=len(batch), **settings))
    return to_bytes(torch.cat(images))


def count_recognised(found: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Print and return the share of pictures, per digit and in all, that show what was asked for."""
    right = found == wanted
    shares = {digit: right[wanted == digit].float().mean().item() for digit in range(10)}
    print("digit  recognised")
    for digit, share in shares.items():
        print(f"{digit:>5}  {share:>10.1%}")
    total = right.float().mean().item()
    print(f"  all  {total:>10.2%}  of {len(wanted):,} pictures")
    return {"recognised": total, "per_digit": shares, "pictures": len(wanted)}


class Digits(NamedTuple):
    """Pictures (N, 1, 28, 28) uint8 and their labels."""

    images: Tensor
    labels: list[int]


def real_digits(folder: Path, count: int, seed: int) -> Digits:
    """Training digits at random: the floor's pictures, and the labels that a model is asked for.

    Their labels rather than as many of each: the digits of MNIST are not equally frequent, and a set in which they are
    is 0.04 further away for it.
    """
    train = MnistSource(MnistConfig(path=folder, split="train"))
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return Digits(train.images[chosen], [int(train.labels[i]) for i in chosen])


def measure_distance(judge: DigitJudge, images: Tensor, real: Tensor, folder: Path) -> dict[str, Any]:
    """Print and return the distance of the pictures to the test digits, and its floor."""
    test = MnistSource(MnistConfig(path=folder, split="test"))
    sets = (images, real, test.images)
    report = measure(*(judge.describe(to_signed(pictures)) for pictures in sets), network=judge.name)
    print(report)
    return {**asdict(report), "ratio": report.ratio}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or run; default: the model that comes with ldm")
    parser.add_argument("--judge", type=Path, required=True, help="the file that scripts/train_judge.py wrote")
    parser.add_argument("--mode", choices=("text", "label", "distance"), required=True)
    parser.add_argument(
        "--conditions",
        choices=("none", "label", "text"),
        default="none",
        help="distance only; label and text: digits as frequent as in the training set",
    )
    parser.add_argument("--data", type=Path, help="folder with the IDX files of MNIST; distance only")
    parser.add_argument("--count", type=int, default=100, help="pictures per digit, so ten times as many in all")
    parser.add_argument("--sampler", help="default: the model's own")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; the next has the next")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write what was asked and found here")
    parser.add_argument("--grid", type=Path, help="write a contact sheet of the first pictures here")
    options = parser.parse_args()
    if (options.mode == "distance") != (options.data is not None):
        parser.error("--data is needed for --mode distance, and only there")
    if options.mode != "distance" and options.conditions != "none":
        parser.error("--conditions is for --mode distance only")
    if options.count < 1 or options.batch_size < 1:
        parser.error("--count and --batch-size are 1 or more")
    return options


if __name__ == "__main__":
    run(main)
