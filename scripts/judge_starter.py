"""Let the judge of composed pictures look at what a model draws.

single     one thing, of which nothing else is said: is it the one that was asked for?
korean     the same things by their Korean names
style      a thing in a style that it was never trained in
ground     a thing on a colour that it was never trained on
ink        an icon in a colour that it was never trained in
relation   two things that never stood so in training

python scripts/judge_starter.py --data data/starter --judge runs/starter/judge.safetensors --model runs/starter/unet
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import ldm
from ldm.cli import run
from ldm.evaluate.starter_marks import Mark, mark
from ldm.evaluate.starter_prompts import KINDS, Asked, Prompts
from ldm.images import check_folder, save_image, to_pil
from ldm.models.picture_judge import PictureJudge
from ldm.sheet import labelled_sheet, stacked
from ldm.starter.prepared import Prepared

SHOWN, COLUMNS, SIDE = 40, 8, 128  # pictures of a sheet, in a row, and their height in pixels


def main() -> None:
    options = _options()
    if options.sheets:
        check_folder(options.sheets)
    judge = PictureJudge.load(options.judge)
    prompts = Prompts(Prepared(options.data), judge.config)
    pipeline = ldm.load(options.model)
    found: dict[str, Mark] = {}
    for kind in options.kinds:
        asked = KINDS[kind](prompts, options.count, options.seed)
        images = draw(pipeline, asked, options)
        found[kind] = mark(kind, asked, images, judge)
        print(_told(kind, found[kind]), flush=True)
        if options.sheets:
            write_sheet(options.sheets / f"{kind}.png", images, asked, found[kind].passed)
    if options.json:
        rows = {kind: {"pictures": m.pictures, "right": m.right, **m.shares} for kind, m in found.items()}
        asked_of = {name: value for name, value in vars(options).items() if name not in ("json", "sheets")}
        options.json.write_text(json.dumps({"options": asked_of, "found": rows}, default=str, indent=2) + "\n")


def draw(pipeline: ldm.Studio, asked: Sequence[Asked], options: argparse.Namespace) -> Tensor:
    """Pictures (N, 3, H, W) in -1..1; picture i has the seed `--seed` + i."""
    how = {name: getattr(options, name) for name in ("steps", "sampler", "guidance", "batch_size")}
    parts = torch.arange(len(asked)).split(options.batch_size)
    return torch.cat(
        [
            pipeline.generate(
                [asked[i].prompt for i in part.tolist()],
                [options.seed + i for i in part.tolist()],
                prompt_syntax="plain",
                **how,
            )
            for part in tqdm(parts, desc="drawing", unit="batch", disable=None)
        ]
    )


def write_sheet(path: Path, images: Tensor, asked: Sequence[Asked], passed: Sequence[bool]) -> None:
    """The first pictures, each under its prompt with a plus where all is right."""
    rows = []
    for start in range(0, min(SHOWN, len(images)), COLUMNS):
        shown = slice(start, min(start + COLUMNS, SHOWN))
        labels = [f"{'+' if ok else '-'} {a.prompt}" for a, ok in zip(asked[shown], passed[shown], strict=True)]
        small = [image.resize((SIDE, SIDE)) for image in to_pil(images[shown])]
        rows.append(labelled_sheet(small, len(small), labels, []))
    save_image(stacked(rows), path)


def _told(kind: str, found: Mark) -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.shares.items())
    return f"{kind:>8}  {found.right:>6.1%} of {found.pictures:,}  ({shares})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or run; default: the model that comes with ldm")
    parser.add_argument("--judge", type=Path, required=True, help="the file that scripts/train_starter_judge.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="the folder that ldm data prepare starter wrote")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=500, help="pictures of each kind, at most")
    parser.add_argument("--sampler", help="default: the model's own")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; the next has the next")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--json", type=Path, help="write what was asked and found here")
    parser.add_argument("--sheets", type=Path, help="write sheets of the first pictures into this folder")
    options = parser.parse_args()
    if options.count < 1 or options.batch_size < 1:
        parser.error("--count and --batch-size are 1 or more")
    return options


if __name__ == "__main__":
    run(main)
