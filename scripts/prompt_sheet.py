"""Draw several pictures of each prompt on one labelled sheet; without prompts, the sheet of the README.

python scripts/prompt_sheet.py --out docs/prompts.png
python scripts/prompt_sheet.py "a handwritten seven" "the digit 7" --count 4 --seed 3 --out sevens.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run

PROMPTS = [
    "a handwritten seven",
    "a handwritten seven, thick strokes",
    "a handwritten seven, thin strokes",
    "the digit 4",
    "four, slanted right",
    "a drawing of the number eight",
    "zero, thick strokes, slanted right",
    "",
]
INCHES = 0.55  # a picture's side


def draw(model: str | None, prompts: list[str], count: int, seed: int, out: Path) -> None:
    """Row k shows prompt k, drawn with the seeds ``seed`` to ``seed + count - 1``."""
    from matplotlib import pyplot

    import ldm
    from ldm.images import check_writable, to_pil

    check_writable(out)
    pipe = ldm.load(model)
    asked = [prompt for prompt in prompts for _ in range(count)]
    pictures = pipe.generate(asked, [seed + k for _ in prompts for k in range(count)])
    figure, axes = pyplot.subplots(
        len(prompts), count, squeeze=False, figsize=(3.2 + INCHES * count, INCHES * len(prompts)), dpi=120
    )
    figure.subplots_adjust(
        left=3.1 / (3.2 + INCHES * count), right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.06
    )
    for panel, picture in zip(axes.flat, to_pil(pictures), strict=True):
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)  # colour pictures ignore the last three
        panel.set_axis_off()
    for row, prompt in zip(axes, prompts, strict=True):
        row[0].text(-0.12, 0.5, f'"{prompt}"', transform=row[0].transAxes, ha="right", va="center", fontsize=10)
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", help="default: those of the README")
    parser.add_argument("--model", help="a model folder or run; default: the model that comes with ldm")
    parser.add_argument("--count", type=int, default=12, help="pictures per prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture in each row")
    parser.add_argument("--out", type=Path, default=Path("prompts.png"))
    asked = parser.parse_args()
    if asked.count < 1:
        parser.error("--count is 1 or more")
    run(draw, asked.model, asked.prompts or PROMPTS, asked.count, asked.seed, asked.out)


if __name__ == "__main__":
    main()
