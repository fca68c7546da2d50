"""Train the judge of digits on MNIST and print its accuracy on the test digits.

python scripts/train_judge.py --data FOLDER_OF_IDX_FILES --out runs/judge.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.evaluate.judge_training import train_judge
from ldm.images import check_folder, to_signed


def main() -> None:
    options = _options()
    check_folder(options.out.parent)  # before minutes of training
    train = MnistSource(MnistConfig(path=options.data, split="train"))
    test = MnistSource(MnistConfig(path=options.data, split="test"))
    judge = train_judge(
        train.images,
        train.labels,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    found = judge.classify(to_signed(test.images))
    accuracy = (found == test.labels).float().mean().item()
    judge.save(options.out)
    print(f"{accuracy:.2%} of {len(test):,} test digits recognised; wrote {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files, gzip or not")
    parser.add_argument("--out", type=Path, default=Path("runs/judge.safetensors"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
