"""A picture, redrawn by prompts, with the flags of the script of this name in CompVis's stable-diffusion.

python scripts/img2img.py --init-img seven.png --prompt "a handwritten three" --strength 0.7 --outdir outputs
python scripts/img2img.py --init-img sketch.png --from-file prompts.txt --ckpt MODEL --n_samples 4

It writes OUTDIR/samples/00000.png, ... and OUTDIR/grid-0000.png, numbered on from those that are there. Each flag
does what it does there, and has the default that it has there, but for these: --plms and --fixed_code work (there the
first is refused and the second ignored), --ckpt is any model that `ldm generate` draws with (a .ckpt needs
--allow-pickle too), --prompt is something that the model in ldm knows, and --precision autocast is the fastest of
bf16, fp16 and fp32 that the device computes well in. The picture keeps its size, or the nearest that the model draws.
Picture k has seed SEED + k, in any batch; with --fixed_code each batch starts from SEED again. Prompts are read as by
`ldm generate`: of any length, and (word:1.2) weighs a word.

Left out, because the weights say all that they said: --config (the parts of the network), --C and --f (its
autoencoder's channels and factor).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _compvis import draw_what_is_asked, series_parser

from ldm.cli import run
from ldm.workpieces import PictureFiles

SAMPLERS = {"--plms": "plms"}


def main() -> None:
    parser = series_parser(__doc__, "outputs/img2img-samples", n_iter=1, n_samples=2, scale=5.0, samplers=SAMPLERS)
    parser.add_argument("--init-img", type=Path, required=True, help="the picture to begin from")
    parser.add_argument("--strength", type=float, default=0.75, help="part redrawn: 1 forgets the picture")
    run(draw, parser.parse_args())


def draw(asked: argparse.Namespace) -> None:
    """Draw and write what the flags ask for."""
    draw_what_is_asked(asked, PictureFiles(init=asked.init_img), strength=asked.strength)


if __name__ == "__main__":
    main()
