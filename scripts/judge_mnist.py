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
from typing import Any

import torch
from torch import Tensor

import ldm
from ldm.cli import run
from ldm.conditioner import Condition
from ldm.data.captions import DIGIT_NAMES
from ldm.data.mnist import MnistConfig
from ldm.evaluate.distance import measure
from ldm.evaluate.drawn import Drawn, Request, draw_all
from ldm.evaluate.features import JudgeFeatures
from ldm.evaluate.judged import judge_classes
from ldm.evaluate.reference import RealPictures
from ldm.images import save_grid, to_signed
from ldm.training.parallel import Team

CPU, ALONE = torch.device("cpu"), Team(0, 1)
GRID = 200  # pictures of the sheet, ten in a row


def main() -> None:
    options = _options()
    judge = JudgeFeatures(options.judge, CPU)
    if options.mode == "distance":
        real = real_digits(options.data, "train", 10 * options.count, options.seed)
        drawn = draw(options, judge, [real.words(i).label for i in range(len(real))])
        found = measure_distance(judge, drawn.features[0], real, options.data)
    else:
        wanted = [i % 10 for i in range(10 * options.count)]
        drawn = draw(options, judge, wanted)
        found = count_recognised(judge.classify(drawn.features[0]), wanted)
    if options.grid:
        save_grid(to_signed(drawn.first), options.grid, columns=10)
    if options.json:
        asked = {name: value for name, value in vars(options).items() if name not in ("json", "grid")}
        options.json.write_text(json.dumps({"options": asked, "found": found}, default=str, indent=2) + "\n")


def draw(options: argparse.Namespace, judge: JudgeFeatures, digits: list[Any]) -> Drawn:
    """Pictures of these digits, described by the judge; picture i has the seed `--seed` + i."""
    asked = [Request(condition_for(options, digit), digit, None) for digit in digits]
    how = {"steps": options.steps, "sampler": options.sampler, "guidance": options.guidance}
    settings = {"seed": options.seed, "batch_size": options.batch_size, "title": "pictures", "shown": GRID}
    drawn = draw_all(ldm.load(options.model), asked, how, [judge], ALONE, **settings)
    assert drawn is not None
    return drawn


def condition_for(options: argparse.Namespace, digit: int) -> Condition:
    """What to ask the model for."""
    if "text" in (options.mode, options.conditions):
        return f"a handwritten {DIGIT_NAMES[digit]}"
    return None if options.mode == "distance" and options.conditions == "none" else digit


def count_recognised(found: Tensor, wanted: list[int]) -> dict[str, Any]:
    """Print and return the share of pictures, per digit and in all, that show what was asked for."""
    told = judge_classes(found, wanted, found, classes=10)
    print("digit  recognised")
    for digit, share in enumerate(told.by_class):
        print(f"{digit:>5}  {share:>10.1%}")
    print(f"  all  {told.accuracy:>10.2%}  of {len(wanted):,} pictures")
    return {"recognised": told.accuracy, "per_digit": dict(enumerate(told.by_class)), "pictures": len(wanted)}


def real_digits(folder: Path, split: str, count: int | None = None, seed: int = 0) -> RealPictures:
    """Digits of a split, some at random or all.

    A model is asked for the labels of some rather than for as many of each: the digits of MNIST are not equally
    frequent, and a set in which they are is 0.04 further away for it.
    """
    return RealPictures.at(MnistConfig.checked({"path": folder, "split": split}), (28, 28), count, seed)


def measure_distance(judge: JudgeFeatures, drawn: Tensor, real: RealPictures, folder: Path) -> dict[str, Any]:
    """Print and return the distance of the drawn pictures' features to the test digits', and its floor."""
    described = [digits.features([judge], CPU, ALONE) for digits in (real, real_digits(folder, "test"))]
    report = measure(drawn, *(found[0] for found in described if found), network=judge.name)
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
