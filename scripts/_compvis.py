"""Flags that the scripts with CompVis's names share; of txt2img.py and img2img.py also the seeds and the drawing."""

from __future__ import annotations

import argparse
from pathlib import Path

import ldm
from ldm.commands import draw_series
from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.telling import check_series
from ldm.workpieces import PictureFiles

DTYPES = {"full": "fp32", "autocast": None}


def plain_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that say which weights are read, and how."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--ckpt", help="folder, run, file or hub name; default: the model in ldm")
    add("--allow-pickle", action="store_true", help="also read a .ckpt, restricted")
    add("--precision", choices=list(DTYPES), default="autocast", help="full is fp32")
    return parser


def series_parser(
    doc: str | None, outdir: str, n_iter: int, n_samples: int, scale: float, samplers: dict[str, str]
) -> argparse.ArgumentParser:
    """A parser with the flags of both scripts, and their defaults in one of them; ``samplers``: flag -> name."""
    parser = plain_parser(doc)
    add = parser.add_argument
    add("--prompt", default="a handwritten seven", help="what to draw")
    add("--from-file", type=Path, help="draw the prompts in this file, one on each line, in place of --prompt")
    add("--outdir", type=Path, default=Path(outdir), help="folder to write to")
    add("--skip_grid", action="store_true", help="write no grid")
    add("--skip_save", action="store_true", help="write no single pictures")
    add("--ddim_steps", type=int, default=50, help="moves of the sampler, whichever it is")
    chosen = parser.add_mutually_exclusive_group()
    for flag, name in samplers.items():
        chosen.add_argument(flag, dest="sampler", action="store_const", const=name, help=f"sample with {name}")
    parser.set_defaults(sampler="ddim")
    add("--fixed_code", action="store_true", help="start each batch from the same noise")
    add("--ddim_eta", type=float, default=0.0, help="fresh noise of DDIM: 0 (none) to 1")
    add("--n_iter", type=int, default=n_iter, help="how often to draw it all")
    add("--n_samples", type=int, default=n_samples, help="pictures per prompt, drawn together; or the batch of a file")
    add("--n_rows", type=int, default=0, help="pictures in a row of the grid; default: --n_samples")
    add("--scale", type=float, default=scale, help="guidance: uncond + scale * (cond - uncond)")
    add("--seed", type=int, default=42, help="of the first picture")
    return parser


def draw_what_is_asked(
    asked: argparse.Namespace,
    files: PictureFiles = PictureFiles(),  # noqa: B008  frozen, so it can be shared
    **more: object,
) -> None:
    """Draw and write what the flags ask for; ``more`` are fields of ``Drawing``."""
    check_series(asked.seed, min(asked.n_iter, asked.n_samples))
    how = _how(asked, **more)
    batches = _batches(asked)
    prompts = [prompt for batch in batches for prompt in batch]
    seeds = [asked.seed + k for k in range(len(prompts))]
    if asked.fixed_code:
        seeds = [asked.seed + k for batch in batches for k in range(len(batch))]
    studio = ldm.load(asked.ckpt, dtype=DTYPES[asked.precision], allow_pickle=asked.allow_pickle)
    columns = asked.n_rows if asked.n_rows > 0 else asked.n_samples
    draw_series(studio, prompts, seeds, how, files, asked.outdir, columns, not asked.skip_save, not asked.skip_grid)


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


def _how(asked: argparse.Namespace, **more: object) -> Drawing:
    return Drawing.checked(
        {
            "sampler": asked.sampler,
            "steps": asked.ddim_steps,
            # 0 is also the default of this flag, and no other sampler has an eta to set
            "eta": asked.ddim_eta if asked.sampler == "ddim" or asked.ddim_eta else None,
            "guidance": asked.scale,
            "batch_size": asked.n_samples,
            **more,
        }
    )
