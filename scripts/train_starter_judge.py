"""Train the judge of composed pictures, and check it on real ones that it has not seen.

python scripts/train_starter_judge.py --data data/starter --out runs/starter/judge.safetensors
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ldm.cli import run
from ldm.evaluate.picture_judge_training import check_judge, cut_outs, train_picture_judge, what_to_know
from ldm.images import check_folder
from ldm.models.picture_judge import PictureJudgeConfig
from ldm.starter.prepared import Prepared


def main() -> None:
    options = _options()
    check_folder(options.out.parent)  # before an hour of training
    prepared = Prepared(options.data)
    known = what_to_know(prepared)
    print(f"{len(known.things)} things in {len(known.styles)} styles, {len(known.pictures):,} pictures")
    config = PictureJudgeConfig(things=known.things, styles=known.styles, side=options.side)
    judge = train_picture_judge(
        cut_outs(prepared, known, options.side),
        known,
        config,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    judge.save(options.out)
    checks = {
        name: check_judge(judge, prepared, known, kept_back, options.check, options.seed)
        for name, kept_back in (
            ("pictures that it knows, composed anew", False),
            ("pictures that were kept from it", True),
        )
    }
    for name, found in checks.items():
        print(f"{name}: {found.top1:.1%} of things, {found.top5:.1%} in the first five, {found.style:.1%} of styles")
    if options.json:
        told = {name: asdict(found) for name, found in checks.items()}
        told["trained"] = {"things": len(known.things), "styles": list(known.styles), "steps": options.steps}
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    print(f"wrote {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that ldm data prepare starter wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/starter/judge.safetensors"))
    parser.add_argument("--side", type=int, default=96, help="of the pictures that it looks at")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--check", type=int, default=2000, help="real pictures of each kind that it is checked on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found here")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
