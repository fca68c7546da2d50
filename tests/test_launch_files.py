"""What starts a run on other machines is what those programs read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[1] / "configs" / "launch"


@pytest.mark.parametrize(("name", "machines", "processes"), [("accelerate", 1, 8), ("accelerate_two_hosts", 2, 16)])
def test_accelerate_reads_its_own(name, machines, processes):
    found = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (found.num_machines, found.num_processes, found.distributed_type) == (machines, processes, "MULTI_GPU")
    assert not found.fsdp_config


def test_skypilot_has_a_job_that_is_recovered():
    job = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert {*job} <= {"name", "resources", "num_nodes", "envs", "workdir", "file_mounts", "setup", "run"}
    assert job["resources"]["use_spot"] is True
    assert job["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    assert "--resume-if-any" in job["run"]
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=job[part], text=True).returncode == 0
    unset = {"CONFIG", "BUCKET", "OVERRIDES"} - job["envs"].keys()
    assert not unset


def test_slurm_is_told_before_anything_runs():
    lines = (FOLDER / "slurm.sh").read_text().splitlines()
    code = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    options = {line.removeprefix("#SBATCH "): number for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert max(options.values()) < code[0]  # sbatch stops reading at the first command
    assert {"--requeue", "--signal=B:USR1@300", "--open-mode=append"} <= options.keys()
    assert subprocess.run(["bash", "-n", FOLDER / "slurm.sh"]).returncode == 0
    if checker := shutil.which("shellcheck"):
        assert subprocess.run([checker, FOLDER / "slurm.sh"]).returncode == 0
