"""Several training runs, one after the other, in the processes of one launch: they take long to start.

python -m torch.distributed.run ... tests/several_runs.py CONFIG [CONFIG ...]

A run that is there already is resumed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ldm.config import load_config
from ldm.training.run import Resume, train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(*arguments: str) -> subprocess.Popen[str]:
    """Start torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def train_on_two_hosts(*configs: Path, port: int) -> None:
    """Train on two hosts, both this one, with one process each."""
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    hosts = [launch(*where, "--node-rank", str(host), __file__, *map(str, configs)) for host in (0, 1)]
    for host in hosts:
        said, _ = host.communicate(timeout=400)
        assert host.returncode == 0, said[-3000:]


if __name__ == "__main__":
    for config in sys.argv[1:]:
        train(load_config(Path(config)), resume=Resume.IF_ANY)
