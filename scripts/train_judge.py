"""Train the judge of digits on MNIST and print its accuracy on the test digits.

python scripts/train_judge.py --data FOLDER_OF_IDX_FILES --out runs/judge.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.cli import run
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.models.judge import DigitJudge

ROTATION, SCALE, SHEAR, SHIFT = 0.2, 0.1, 0.15, 2 / 14  # radians, ratio, ratio, half-sides (2 pixels of 28)
LABEL_SMOOTHING = 0.05


def main() -> None:
    options = _options()
    train = MnistSource(MnistConfig(path=options.data, split="train"))
    test = MnistSource(MnistConfig(path=options.data, split="test"))
    judge = train_judge(train, options.epochs, options.batch_size, options.learning_rate, options.seed)
    found = judge.classify(to_signed(test.images))
    accuracy = (found == test.labels).float().mean().item()
    judge.save(options.out)
    print(f"{accuracy:.2%} of {len(test):,} test digits recognised; wrote {options.out}")


def train_judge(data: MnistSource, epochs: int, batch_size: int, learning_rate: float, seed: int) -> DigitJudge:
    """Train a judge; the same seed on the same machine gives the same judge."""
    torch.manual_seed(seed)  # layers are initialised from torch's own generator
    judge = DigitJudge().to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    steps = epochs * (len(data) // batch_size)
    if steps < 10:  # the learning rate rises in the first fifth of them and falls in the rest
        counted = f"{epochs} epochs of {len(data)} digits in batches of {batch_size}"
        raise UserError(f"{counted} are {steps} steps of training, expected 10 or more")
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    batches = _batches(data, epochs, batch_size, torch.Generator().manual_seed(seed))
    progress = tqdm(batches, total=steps, desc="judge", unit="step")
    for images, labels in progress:
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(images.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return judge.eval()


def _batches(data: MnistSource, epochs: int, batch_size: int, generator: torch.Generator):
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for chosen in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield _jitter(to_signed(data.images[chosen]), generator), data.labels[chosen]


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, slant and shift every picture (B, 1, H, W) a little; black comes in from outside."""
    angle, scale, shear, right, down = (torch.rand(5, len(images), generator=generator) * 2 - 1).unbind()
    angle, scale, shear = angle * ROTATION, 1 + scale * SCALE, shear * SHEAR
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos, shear - sin, right * SHIFT, sin, cos, down * SHIFT]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is 0, so black must be 0


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
