"""Prompts to pictures, with the flags of the script of this name in CompVis's stable-diffusion.

python scripts/txt2img.py --prompt "a handwritten seven" --scale 3 --n_samples 4 --n_iter 2 --outdir outputs
python scripts/txt2img.py --from-file prompts.txt --ckpt MODEL --plms

It writes OUTDIR/samples/00000.png, ... and OUTDIR/grid-0000.png, numbered on from those that are there. Each flag
does what it does there, and has the default that it has there, but for these: --H and --W are the model's own size
when left out, --ckpt is any model that `ldm generate` draws with (a .ckpt needs --allow-pickle too), --prompt is
something that the model in ldm knows, and --precision autocast is the fastest of bf16, fp16 and fp32 that the device
computes well in. Picture k has seed SEED + k, in any batch; with --fixed_code each batch starts from SEED again.
Prompts are read as by `ldm generate`: of any length, and (word:1.2) weighs a word.

Left out, because the weights say all that they said: --config (the parts of the network), --C and --f (its
autoencoder's channels and factor), --laion400m (a short form for another --config and --ckpt).
"""

from __future__ import annotations

import argparse

from _compvis import draw_what_is_asked, series_parser

from ldm.cli import run

SAMPLERS = {"--plms": "plms", "--dpm_solver": "dpm++_2m"}


def main() -> None:
    parser = series_parser(__doc__, "outputs/txt2img-samples", n_iter=2, n_samples=3, scale=7.5, samplers=SAMPLERS)
    parser.add_argument("--H", type=int, help="height in pixels")
    parser.add_argument("--W", type=int, help="width in pixels")
    run(draw, parser.parse_args())


def draw(asked: argparse.Namespace) -> None:
    """Draw and write what the flags ask for."""
    draw_what_is_asked(asked, height=asked.H, width=asked.W)


if __name__ == "__main__":
    main()
