"""Fetch, verify and render the pictures of the starter model: `ldm data prepare starter` as a script.

python scripts/prepare_starter.py --out data/starter                        # 256 x 256: 4 GB
python scripts/prepare_starter.py --out data/starter512 --side 512          # for training at 512 x 512: 16 GB
python scripts/prepare_starter.py --out data/starter --downloads TARBALLS   # without a network

It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import run
from ldm.starter_command import prepare_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/starter"), help="the folder to write")
    parser.add_argument("--downloads", type=Path, help="where the npm tarballs are, or come to be")
    parser.add_argument("--side", type=int, default=256, choices=(128, 256, 512), help="of the pictures, in pixels")
    parser.add_argument("--avatars", type=int, default=400, help="of each of their six styles")
    parser.add_argument("--workers", type=int, help="processes that render; default: one a processor")
    options = parser.parse_args()
    run(prepare_data, "starter", options.out, options.downloads, options.side, options.avatars, options.workers)


if __name__ == "__main__":
    main()
