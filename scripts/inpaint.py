"""Pictures with holes, filled, with the flags of the script of this name in CompVis's stable-diffusion.

python scripts/inpaint.py --indir pairs --outdir filled --prompt "a wooden bench" --ckpt MODEL

For every pair NAME.png and NAME_mask.png in INDIR, the mask white where the picture is drawn anew, it writes
OUTDIR/NAME.png. --indir, --outdir and --steps are those of the original, which had one model, without words.
Stable Diffusion reads words, so there are also --prompt (for all pairs; by default the empty one), --scale, --seed and
--ckpt: any model that `ldm generate` draws with, one made for inpainting or not (a .ckpt needs --allow-pickle too).
--precision is that of scripts/txt2img.py.

A picture keeps its size, or the nearest that the model draws. A grey mask blends, where the original cut it at half.
Every picture begins from the same seed, so it does not depend on which others are in the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _compvis import DTYPES, plain_parser

import ldm
from ldm.cli import run
from ldm.commands import fill_pairs, find_pairs
from ldm.drawing import Drawing


def main() -> None:
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--indir", type=Path, required=True, help="folder of pairs NAME.png and NAME_mask.png")
    add("--outdir", type=Path, required=True, help="folder to write NAME.png to")
    add("--steps", type=int, default=50, help="moves of DDIM")
    add("--prompt", default="", help="what to draw into the holes")
    add("--scale", type=float, default=7.5, help="guidance: uncond + scale * (cond - uncond)")
    add("--seed", type=int, default=42, help="of every picture")
    run(draw, parser.parse_args())


def draw(asked: argparse.Namespace) -> None:
    """Draw and write what the flags ask for."""
    how = Drawing.checked({"sampler": "ddim", "steps": asked.steps, "guidance": asked.scale, "strength": 1.0})
    pairs = find_pairs(asked.indir, asked.outdir)
    studio = ldm.load(asked.ckpt, dtype=DTYPES[asked.precision], allow_pickle=asked.allow_pickle)
    fill_pairs(studio, pairs, asked.prompt, asked.seed, how, asked.outdir)


if __name__ == "__main__":
    main()
