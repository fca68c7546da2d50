"""What diffusing in latents instead of pixels saves: `ldm compare`, for those who run scripts.

python scripts/compare_cost.py configs/compare/mnist.yaml
python scripts/compare_cost.py configs/compare/mnist.yaml data.path=FOLDER --dry-run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run
from ldm.measure_cli import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/compare/mnist.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as quality.count=2000")
    parser.add_argument("--dry-run", action="store_true", help="count operations and memory, and train nothing")
    options = parser.parse_intermixed_args()
    run(compare, options.config, options.overrides, options.dry_run)


if __name__ == "__main__":
    main()
