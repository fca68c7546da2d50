"""Training of a judge of small grey pictures, such as digits: a classifier that sees each a little turned and moved.

The pictures are jittered (turned, scaled, slanted, shifted) so that what it knows is the shape and not the place; the
learning rate rises and falls once (Smith and Topin 2017, arXiv:1708.07120), which takes few epochs; labels are smoothed
(Szegedy et al. 2016, arXiv:1512.00567), so that its features do not run away from the boundaries.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.images import to_signed
from ldm.models.judge import DigitJudge

ROTATION, SCALE, SHEAR, SHIFT = 0.2, 0.1, 0.15, 2 / 14  # radians, ratio, ratio, half-sides (2 pixels of 28)
LABEL_SMOOTHING = 0.05
_LEAST_STEPS = 10  # the learning rate rises in the first fifth of them and falls in the rest


def train_judge(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 12,
    batch_size: int = 200,
    learning_rate: float = 4e-3,
    seed: int = 0,
    title: str = "judge",
) -> DigitJudge:
    """Train a judge, on the CPU; the same seed on the same machine gives the same judge.

    Args:
        images: uint8 (N, 1, H, W), H and W of 28 or more; what lies outside the middle 28 x 28 does not count.
        labels: (N,) int64, 0..9.
        epochs: how often it sees every picture.
        batch_size: pictures of a step; what is left over at the end of an epoch is not seen in it.
        learning_rate: the highest.
        seed: of its weights and of the order and jitter of the pictures. Torch's own generator is left as it was.
        title: of the bar.

    Returns:
        The judge, ready to judge.

    Raises:
        UserError: there are fewer than ten steps, or a label is no class.
    """
    steps = _steps(len(images), epochs, batch_size)
    with torch.random.fork_rng(devices=[]):  # layers are initialised from torch's own generator
        torch.manual_seed(seed)
        judge = DigitJudge()
    _check_labels(labels, judge.config.classes)
    judge = judge.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    batches = _batches(images, labels, epochs, batch_size, torch.Generator().manual_seed(seed))
    progress = tqdm(batches, total=steps, desc=title, unit="step", disable=None)
    for seen, wanted in progress:
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(seen.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), wanted, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return judge.eval()


def _steps(count: int, epochs: int, batch_size: int) -> int:
    steps = epochs * (count // batch_size)
    if steps < _LEAST_STEPS:
        counted = f"{count:,} pictures, {epochs} times, in batches of {batch_size}"
        raise UserError(f"{counted} are {steps} steps of training, expected {_LEAST_STEPS} or more")
    return steps


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"labels are {low} to {high}, and a judge tells {classes} classes apart, 0 to {classes - 1}")


def _batches(
    images: Tensor, labels: Tensor, epochs: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Jittered pictures in -1..1 and their labels, every epoch in another order."""
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield _jitter(to_signed(images[chosen]), generator), labels[chosen]


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, slant and shift every picture (B, 1, H, W) a little; black comes in from outside."""
    angle, scale, shear, right, down = (torch.rand(5, len(images), generator=generator) * 2 - 1).unbind()
    angle, scale, shear = angle * ROTATION, 1 + scale * SCALE, shear * SHEAR
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos, shear - sin, right * SHIFT, sin, cos, down * SHIFT]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is 0, so black must be 0
