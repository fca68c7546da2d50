"""Flags that several commands have. Only typer is imported here, as in ``ldm.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="pictures drawn together")]
Sampler = Annotated[str | None, typer.Option("--sampler", help="ddim, euler_a, 'DPM++ 2M Karras', ...")]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="also <lora:FILE:WEIGHT> in a prompt")
]
Embeddings = Annotated[list[Path] | None, typer.Option("--embedding", help="a file of textual inversion")]
OtherVae = Annotated[Path | None, typer.Option("--vae", help="file or folder of another autoencoder")]
Variant = Annotated[str | None, typer.Option("--variant", help="which files of a folder, such as fp16")]
Revision = Annotated[str | None, typer.Option("--revision", help="commit, tag or branch of a name on the hub")]
Ema = Annotated[bool, typer.Option("--ema", help="of a single file with both, the averaged U-Net")]
PredictionName = Annotated[str | None, typer.Option("--prediction", help="epsilon or v, where a file does not tell")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="also read .ckpt, .pt and .bin, restricted")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="fp32, bf16 or fp16")]
Attention = Annotated[str, typer.Option("--attention", help="sdpa, xformers or math")]
Compile = Annotated[bool, typer.Option("--compile", help="compile the U-Net: pays after dozens of pictures")]
