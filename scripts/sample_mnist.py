"""Draw a sheet of digits with a pixel model of MNIST: a row for each label.

python scripts/sample_mnist.py --out digits.png
python scripts/sample_mnist.py --labels 3 1 4 1 5 --count 8 --guidance 3 --sampler ddim --steps 50 --seed 7
python scripts/sample_mnist.py --model runs/mnist --count 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run
from ldm.commands import draw_sheet

WITH_LABELS = "ldm:mnist_label"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WITH_LABELS, help="model folder or run; default: the one in ldm")
    parser.add_argument("--labels", type=int, nargs="+", help="a row of each; default: all that the model has")
    parser.add_argument("--count", type=int, default=10, help="pictures per label, or in all for a model without")
    parser.add_argument("--guidance", type=float, help="1 is no guidance; default: the model's own")
    parser.add_argument("--sampler", help="as in `ldm generate`; default: the model's own")
    parser.add_argument("--steps", type=int, help="moves of the sampler; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next has the next")
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    asked = parser.parse_args()
    options = {"guidance": asked.guidance, "sampler": asked.sampler, "steps": asked.steps}
    run(draw_sheet, asked.model, asked.labels, asked.count, asked.seed, asked.out, options)


if __name__ == "__main__":
    main()
