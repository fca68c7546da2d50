"""Draw things, and show beside each the picture of the training set that it comes nearest to.

python scripts/nearest_starter.py --data data/starter --judge runs/starter/judge.safetensors --model MODEL
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import ldm
from ldm.cli import run
from ldm.evaluate.picture_judge_training import cut_outs, what_to_know
from ldm.evaluate.starter_nearest import nearest, on_white, things_of
from ldm.evaluate.starter_prompts import Prompts
from ldm.images import check_folder, save_image, to_pil
from ldm.models.picture_judge import PictureJudge
from ldm.sheet import labelled_sheet, stacked
from ldm.starter.prepared import Prepared

SIDE, SHOWN, COLUMNS = 48, 96, 10  # of the squares that are compared, and as they are shown
AT_ONCE = 20  # pictures that are drawn together
QUANTILE = 0.01  # of training pictures come as near to another one as what is called a copy


def main() -> None:
    options = _options()
    check_folder(options.out.parent)
    prepared = Prepared(options.data)
    known = what_to_know(prepared, least_styles=1)
    learned = on_white(cut_outs(prepared, known, SIDE))
    asked = Prompts(prepared, PictureJudge.load(options.judge).config).single(options.count, options.seed)
    pipeline = ldm.load(options.model)
    images = []
    for start in tqdm(range(0, len(asked), AT_ONCE), desc="drawing", unit="batch", disable=None):
        prompts = [told.prompt for told in asked[start : start + AT_ONCE]]
        seeds = [options.seed + start + k for k in range(len(prompts))]
        images.append(pipeline.generate(prompts, seeds, prompt_syntax="plain"))
    things = things_of(torch.cat(images), SIDE)
    found = nearest(things, learned)
    among = nearest(learned, learned, apart=True).distances
    limit = float(among.quantile(QUANTILE))
    copies = int((found.distances < limit).sum())
    print(f"{copies} of {len(asked)} are nearer to a training picture than {1 - QUANTILE:.0%} of those to each other")
    print(
        f"distance: median {found.distances.median():.3f}; of training pictures {among.median():.3f}, limit {limit:.3f}"
    )
    labels = [f"{a.prompt}: {d:.2f}" for a, d in zip(asked, found.distances.tolist(), strict=True)]
    write_sheet(options.out, to_pil(things), to_pil(learned[found.rows]), labels)
    if options.json:
        told = {"pictures": len(asked), "copies": copies, "limit": limit, "distances": found.distances.tolist()}
        options.json.write_text(json.dumps(told, indent=2) + "\n")


def write_sheet(path: Path, drawn: list[Image.Image], learned: list[Image.Image], labels: list[str]) -> None:
    """What was drawn, and below each the nearest that was learned."""
    blocks = []
    for start in range(0, len(drawn), COLUMNS):
        part = slice(start, start + COLUMNS)
        cells = [picture.resize((SHOWN, SHOWN)) for picture in (*drawn[part], *learned[part])]
        blocks.append(labelled_sheet(cells, len(labels[part]), labels[part], ["drawn", "nearest"]))
    save_image(stacked(blocks), path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder or run; default: the model that comes with ldm")
    parser.add_argument("--judge", type=Path, required=True, help="whose things are asked for")
    parser.add_argument("--data", type=Path, required=True, help="the folder that ldm data prepare starter wrote")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next has the next")
    parser.add_argument("--out", type=Path, default=Path("nearest.png"))
    parser.add_argument("--json", type=Path, help="write what was found here")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
