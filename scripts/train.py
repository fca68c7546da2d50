"""Train what a configuration describes, on one or several processes: `ldm train` for launchers that want a file.

python scripts/train.py configs/mnist.yaml train.steps=500
accelerate launch --num_processes 2 scripts/train.py configs/mnist.yaml
torchrun --standalone --nproc-per-node 2 scripts/train.py configs/mnist.yaml --resume

Without a GPU, `accelerate launch` starts several processes only with mpirun; torchrun needs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/mnist.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.steps=100")
    parser.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint")
    options = parser.parse_intermixed_args()
    run(train, options.config, options.overrides, options.resume)


if __name__ == "__main__":
    main()
