"""Prompts to pictures, with the flags of the script of this name in CompVis's stable-diffusion.

python scripts/txt2img.py --prompt "a handwritten seven" --scale 3 --n_samples 4 --n_iter 2 --outdir outputs
python scripts/txt2img.py --from-file prompts.txt --ckpt MODEL_FOLDER --plms

It writes OUTDIR/samples/00000.png, ... and OUTDIR/grid-0000.png, numbered on from those that are there. Each flag
does what it does there, and has the default that it has there, but for these: --H and --W are the model's own size
when left out, --ckpt is a model folder or a run of `ldm train`, --prompt is something that the model in ldm knows, and
--precision autocast is the fastest of bf16, fp16 and fp32 that the device computes well in. Picture k has seed
SEED + k, in any batch; with --fixed_code each batch starts from SEED again.

Left out, because a model folder says all that they said: --config (its config.json files), --C and --f (its
autoencoder's channels and factor), --laion400m (a short form for another --config and --ckpt).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ldm
from ldm.cli import run
from ldm.commands import draw_series
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.telling import check_series

DTYPES = {"full": "fp32", "autocast": None}


def main() -> None:
    run(draw, _parser().parse_args())


def draw(asked: argparse.Namespace) -> None:
    """Draw and write what the flags ask for."""
    check_series(asked.seed, min(asked.n_iter, asked.n_samples))
    how = _how(asked)
    batches = _batches(asked)
    seeds = [asked.seed + k for k in range(sum(map(len, batches)))]
    if asked.fixed_code:
        seeds = [asked.seed + k for batch in batches for k in range(len(batch))]
    pipeline = ldm.load(asked.ckpt, dtype=DTYPES[asked.precision])
    prompts = [prompt for batch in batches for prompt in batch]
    columns = asked.n_rows if asked.n_rows > 0 else asked.n_samples
    draw_series(pipeline, prompts, seeds, how, asked.outdir, columns, not asked.skip_save, not asked.skip_grid)


def _batches(asked: argparse.Namespace) -> list[list[str]]:
    """Prompts by batch: one n_samples times, or the lines of a file n_samples at a time; all that n_iter times."""
    if asked.from_file is None:
        return [[asked.prompt] * asked.n_samples] * asked.n_iter
    try:
        lines = asked.from_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--from-file {asked.from_file} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"--from-file {asked.from_file} is empty: it should have a prompt on each line")
    return [lines[k : k + asked.n_samples] for k in range(0, len(lines), asked.n_samples)] * asked.n_iter


def _how(asked: argparse.Namespace) -> Drawing:
    sampler = "plms" if asked.plms else "dpm++_2m" if asked.dpm_solver else "ddim"
    return Drawing.checked(
        {
            "sampler": sampler,
            "steps": asked.ddim_steps,
            # 0 is also the default of this flag, and no other sampler has an eta to set
            "eta": asked.ddim_eta if sampler == "ddim" or asked.ddim_eta else None,
            "guidance": asked.scale,
            "height": asked.H,
            "width": asked.W,
            "batch_size": asked.n_samples,
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--prompt", default="a handwritten seven", help="what to draw")
    add("--from-file", type=Path, help="draw the prompts in this file, one on each line, in place of --prompt")
    add("--outdir", type=Path, default=Path("outputs/txt2img-samples"), help="folder to write to")
    add("--skip_grid", action="store_true", help="write no grid")
    add("--skip_save", action="store_true", help="write no single pictures")
    add("--ddim_steps", type=int, default=50, help="moves of the sampler, whichever it is")
    samplers = parser.add_mutually_exclusive_group()
    samplers.add_argument("--plms", action="store_true", help="sample with PLMS")
    samplers.add_argument("--dpm_solver", action="store_true", help="sample with DPM-Solver++")
    add("--fixed_code", action="store_true", help="start each batch from the same noise")
    add("--ddim_eta", type=float, default=0.0, help="fresh noise of DDIM: 0 (none) to 1")
    add("--n_iter", type=int, default=2, help="how often to draw it all")
    add("--H", type=int, help="height in pixels")
    add("--W", type=int, help="width in pixels")
    add("--n_samples", type=int, default=3, help="pictures per prompt, drawn together; the batch with --from-file")
    add("--n_rows", type=int, default=0, help="pictures in a row of the grid; default: --n_samples")
    add("--scale", type=float, default=7.5, help="guidance: uncond + scale * (cond - uncond)")
    add("--ckpt", help="model folder or run; default: the one in ldm")
    add("--seed", type=int, default=42, help="of the first picture")
    add("--precision", choices=list(DTYPES), default="autocast", help="full is fp32")
    return parser


if __name__ == "__main__":
    main()
