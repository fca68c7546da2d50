"""What is done for a row of a comparison of families: training to the end, and drawing against the clock."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.compare.drawers import Drawer
from ldm.compare.ready import training_seconds
from ldm.compare.stages import Found
from ldm.compare.timed import SHORTEST
from ldm.errors import NotFinite
from ldm.images import to_bytes
from ldm.training.kinds import Run
from ldm.training.run import Resume, train


def train_once(run: Run) -> Found:
    """Train a run to its end.

    Returns:
        ``seconds`` that it trained, or ``diverged``: why it did not come to its end.

    Raises:
        UserError: it cannot be trained.
        Stopped: a signal asked for it.
    """
    try:
        train(run, resume=Resume.IF_ANY)
    except NotFinite as error:
        return {"diverged": str(error)}
    return {"seconds": training_seconds(run)}


def draw_timed(drawer: Drawer, count: int, batch_size: int, title: str) -> tuple[Tensor, float]:
    """Draw pictures of the seeds 0 .. ``count`` - 1.

    Args:
        drawer: draws.
        count: how many.
        batch_size: at once.
        title: of the bar.

    Returns:
        uint8 (count, C, H, W); and seconds of a picture, the median of whole batches.
    """
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    drawer.warm_up(len(batches[0]))
    found, seconds = [], []
    with tqdm(total=count, desc=title, unit=" pictures", disable=None) as bar:
        for batch in batches:
            began = time.perf_counter()
            pictures = drawer.draw(batch)
            seconds.append((time.perf_counter() - began) / len(batch))
            found.append(to_bytes(pictures))
            bar.update(len(batch))
    full = seconds[: count // batch_size] or seconds
    while sum(full) * len(batches[0]) < SHORTEST:  # a clock and a scheduler are coarse
        began = time.perf_counter()
        drawer.draw(batches[0])
        full.append((time.perf_counter() - began) / len(batches[0]))
    return torch.cat(found), median(full)
