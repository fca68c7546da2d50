"""Write a run's newest checkpoint as a model folder without what only training needs.

python scripts/export_model.py runs/mnist_text/unet my_model --dtype fp16
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run
from ldm.errors import UserError


def export(source: str, folder: Path, dtype: str, max_shard_size: str | None) -> None:
    """Read the model at ``source`` and write it to ``folder``, which must not exist."""
    from ldm.accel import DTYPES
    from ldm.weights.model import load_model, resolve, save_model

    if folder.exists():
        raise UserError(f"{folder} exists already")
    save_model(load_model(resolve(source)), folder, DTYPES[dtype], max_shard_size)
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    print(f"{folder}: {megabytes:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run of `ldm train`, or a model folder")
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp16", help="of the weights")
    parser.add_argument("--max-shard-size", help="of a file of weights, such as 40MB; one file a part by default")
    arguments = parser.parse_args()
    run(export, arguments.source, arguments.folder, arguments.dtype, arguments.max_shard_size)


if __name__ == "__main__":
    main()
