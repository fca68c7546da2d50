"""Training of the judge of composed pictures, on renders and distortions that the generator does not see.

What it sees are the things of a prepared folder, one at a time, on grounds of any colour (the generator knows sixteen),
turned, slanted, blurred, in other light and with noise on them. So it knows things by their shape and drawing, and a
little softness of a generated picture does not mislead it.

Some pictures, one of twenty chosen by a hash of their names, are kept from it. It is checked on two kinds of real ones:
pictures that it knows in compositions as they are generated (new places, sizes and grounds), which is what it is used
for, and those that were kept from it, where a label in a style is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ldm.data.order import mix
from ldm.errors import UserError
from ldm.images import to_signed
from ldm.models.picture_judge import PictureJudge, PictureJudgeConfig
from ldm.starter.colours import COLOURS, distance
from ldm.starter.composing import draw
from ldm.starter.draws import Draws
from ldm.starter.prepared import Prepared
from ldm.starter.scene import Item, Scene

LEAST_STYLES = 5  # things in fewer are left out: too little of them is known
_GROUPS = {"animals-nature", "food-drink", "travel-places", "activities", "objects", "smileys-emotion"}
_LOOK_ALIKE = {"time", "alphanum", "arrow", "emotion", "heart"}  # subgroups that differ in a hand or in a colour
_KEPT_BACK = 20
_TURN, _SLANT = 0.2, 0.1
LABEL_SMOOTHING = 0.05
_CONTRAST = 150.0  # of a thing and its ground, as ``distance`` tells it
_TOLD_EVERY = 20  # steps
_LEAST_STEPS = 20  # the rate rises in the first tenth of them


@dataclass(frozen=True)
class Known:
    """What a judge is to know of a prepared folder.

    Attributes:
        things: the names of subjects, in the order of its classes.
        styles: the names of styles, likewise.
        pictures: indices of the pictures that show them.
        thing_of, style_of: their classes, one for each picture.
        kept_back: whether the judge never sees it while it learns, one for each picture.
    """

    things: tuple[str, ...]
    styles: tuple[str, ...]
    pictures: tuple[int, ...]
    thing_of: tuple[int, ...]
    style_of: tuple[int, ...]
    kept_back: tuple[bool, ...]


def what_to_know(prepared: Prepared, least_styles: int = LEAST_STYLES) -> Known:
    """Things, and animals, food, faces, that come in several styles, and all of their pictures.

    Raises:
        UserError: the folder has fewer than two of them.
    """
    styles_of: dict[int, set[str]] = {}
    for picture in prepared.pictures:
        subject = prepared.subjects[picture.subject]
        if subject.kind == "emoji" and subject.group in _GROUPS and subject.subgroup not in _LOOK_ALIKE:
            styles_of.setdefault(picture.subject, set()).add(picture.style)
    known = {subject: k for k, subject in enumerate(s for s in styles_of if len(styles_of[s]) >= least_styles)}
    if len(known) < 2:
        raise UserError(f"{prepared.folder} has {len(known)} things in {least_styles} styles, expected two or more")
    chosen = [i for i, picture in enumerate(prepared.pictures) if picture.subject in known]
    styles = {name: k for k, name in enumerate(dict.fromkeys(prepared.pictures[i].style for i in chosen))}
    names = [prepared.subjects[subject].name for subject in known]
    return Known(
        tuple(names),
        tuple(styles),
        tuple(chosen),
        tuple(known[prepared.pictures[i].subject] for i in chosen),
        tuple(styles[prepared.pictures[i].style] for i in chosen),
        tuple(_is_kept_back(prepared.pictures[i].style, prepared.pictures[i].slug) for i in chosen),
    )


def _is_kept_back(style: str, slug: str) -> bool:
    digest = hashlib.blake2b(f"judge\0{style}\0{slug}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _KEPT_BACK == 0


def cut_outs(prepared: Prepared, known: Known, side: int) -> Tensor:
    """Every known picture alone: what is seen of it, as large as fits, in the middle of a square.

    Returns:
        uint8 (N, 4, side, side), colours multiplied by alpha.
    """
    found = torch.zeros(len(known.pictures), 4, side, side, dtype=torch.uint8)
    rows = zip(found, known.pictures, strict=True)
    for row, index in tqdm(rows, total=len(found), desc="pictures", unit="picture", disable=None):
        left, top, right, bottom = prepared.pictures[index].box
        pixels = np.array(prepared.pixels(prepared.pictures[index])[top:bottom, left:right])
        height, width = pixels.shape[:2]
        factor = side / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        small = F.interpolate(planes, size, mode="bilinear", antialias=True)[0]
        y, x = (side - size[0]) // 2, (side - size[1]) // 2
        row[:, y : y + size[0], x : x + size[1]] = small
    return found


def train_picture_judge(
    cuts: Tensor,
    known: Known,
    config: PictureJudgeConfig,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> PictureJudge:
    """Train a judge, on the CPU; the same seed on the same machine gives the same judge.

    Args:
        cuts: of all known pictures, as ``cut_outs`` gives them; those that are kept back are not learned from.
        known: what they show.
        config: of the judge.
        steps: of training; the rate rises in the first tenth and falls to nothing.
        batch_size: pictures of a step.
        learning_rate: the highest.
        seed: of weights, order and distortions. Torch's own generator is left as it was.

    Raises:
        UserError: there are fewer than twenty steps.
    """
    if steps < _LEAST_STEPS:
        raise UserError(f"a judge of pictures is trained in {_LEAST_STEPS} steps or more, got {steps}")
    with torch.random.fork_rng(devices=[]):  # layers are initialised from torch's own generator
        torch.manual_seed(seed)
        judge = PictureJudge(config).train()
    judge = judge.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    things, styles = torch.tensor(known.thing_of), torch.tensor(known.style_of)
    progress = tqdm(_orders(known, batch_size, steps, generator), total=steps, desc="judge", unit="step", disable=None)
    for rows in progress:
        images = distorted(cuts[rows], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = judge(images)
        thing, style = (
            F.cross_entropy(logits.float(), wanted[rows], label_smoothing=LABEL_SMOOTHING)
            for logits, wanted in zip(found, (things, styles), strict=True)
        )
        optimizer.zero_grad()
        (thing + 0.3 * style).backward()
        optimizer.step()
        schedule.step()
        if progress.n % _TOLD_EVERY == 0:
            progress.set_postfix(thing=f"{thing.item():.3f}", style=f"{style.item():.3f}", refresh=False)
    return judge.eval().requires_grad_(False)


def _orders(known: Known, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of the pictures of each step: all that are not kept back, in another order each time."""
    rows = torch.tensor([k for k, back in enumerate(known.kept_back) if not back])
    left = rows[:0]
    for _ in range(steps):
        while len(left) < batch_size:
            left = torch.cat([left, rows[torch.randperm(len(rows), generator=generator)]])
        yield left[:batch_size]
        left = left[batch_size:]


def distorted(cuts: Tensor, generator: torch.Generator) -> Tensor:
    """Cut-outs on grounds, turned, slanted, moved, in other light, blurred and with noise.

    Args:
        cuts: uint8 (B, 4, S, S), colours multiplied by alpha.
        generator: draws it all.

    Returns:
        (B, 3, S, S) in -1..1.
    """
    count = len(cuts)
    moved = F.grid_sample(cuts.float() / 255, _grid(cuts, generator), align_corners=False)
    colours, alpha = moved[:, :3], moved[:, 3:]
    images = colours + (1 - alpha) * _grounds(count, generator)
    gain, lift = torch.rand(2, count, 3, 1, 1, generator=generator)
    light = torch.rand(count, 1, 1, 1, generator=generator)
    images = images * (0.85 + 0.1 * gain + 0.2 * light) + 0.1 * (lift - 0.5)
    blur = torch.rand(count, 1, 1, 1, generator=generator).square()
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft = F.avg_pool2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + blur * (soft - images)
    amount = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    images = images + amount * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1) * 2 - 1


def _grid(cuts: Tensor, generator: torch.Generator) -> Tensor:
    """Where each pixel of a distorted picture comes from; a thing fills half of the side to nearly all of it."""
    turn, slant, stretch, right, down, size = (torch.rand(6, len(cuts), generator=generator) * 2 - 1).unbind()
    turn, slant = turn * _TURN, slant * _SLANT
    factor = 1 / (0.75 + 0.2 * size)  # of what is looked at, in sizes of the thing
    wide, high = factor * (1 + 0.08 * stretch), factor * (1 - 0.08 * stretch)
    rows = [
        *(wide * turn.cos(), slant - wide * turn.sin(), 0.12 * right),
        *(high * turn.sin(), high * turn.cos(), 0.12 * down),
    ]
    return F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(cuts.shape), align_corners=False)


def _grounds(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3, 1, 1) in 0..1: white for a third, the others of any colour."""
    grounds = torch.rand(count, 3, generator=generator)
    grounds[torch.rand(count, generator=generator) < 1 / 3] = 1.0
    return grounds[:, :, None, None]


# ------------------------------------------------------------------------------------------ is it right?


@dataclass(frozen=True)
class Check:
    """How often a judge is right about real pictures.

    Attributes:
        pictures: how many.
        top1, top5: shares whose thing it names first, and among its first five.
        style: share whose style it names.
    """

    pictures: int
    top1: float
    top5: float
    style: float


def check_judge(judge: PictureJudge, prepared: Prepared, known: Known, kept_back: bool, count: int, seed: int) -> Check:
    """Show a judge real pictures, composed as training pictures of the generator are, and count.

    Args:
        judge: it.
        prepared: the folder.
        known: its things.
        kept_back: pictures that it never saw, or else those that it knows, in compositions that it never saw.
        count: pictures; none comes twice in the same composition.
        seed: of the compositions.
    """
    rows = [k for k, back in enumerate(known.kept_back) if back == kept_back]
    if not rows:
        raise UserError(f"{prepared.folder} has too few pictures to keep some back from the judge")
    draws = Draws(mix(seed, 31, int(kept_back)))
    chosen = [draws.one(rows) for _ in range(count)]
    images = torch.stack([_composed(prepared, known.pictures[k], draws) for k in chosen])
    things, styles = judge.look(to_signed(images))
    thing = torch.tensor([known.thing_of[k] for k in chosen])
    style = torch.tensor([known.style_of[k] for k in chosen])
    first = things.topk(min(5, things.shape[1]), dim=1).indices == thing[:, None]
    right = styles.argmax(1) == style
    return Check(count, *(float(x.float().mean()) for x in (first[:, 0], first.any(1), right)))


def _composed(prepared: Prepared, index: int, draws: Draws) -> Tensor:
    """One thing on a ground that it stands out from, uint8 (3, side, side)."""
    picture = prepared.pictures[index]
    far = [name for name, colour in COLOURS.items() if distance(colour.rgb, picture.mean) > _CONTRAST]
    ground = "white" if not far or draws.chance(0.5) else draws.one(far)
    item = Item(index, (draws.between(0.47, 0.53), draws.between(0.47, 0.53)), draws.between(0.66, 0.88))
    return draw(prepared, Scene("single", (item,), ground), prepared.side)
