"""Every command and every Python example in the README, run as written.

Trainings run a few steps on a few digits; the two set-up commands are what `.ci/run` does, and are not run
again here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["train.steps=2", "train.batch_size=4", "train.sample_every=2", "sample.count=2", "data.limit=32"]
SHORT_OF = {
    "configs/mnist_text/vae.yaml": [x for x in SHORT if not x.startswith("sample")] + ["loss.adversarial_start=1"]
}
SHORT_OF["configs/mnist_text/clip.yaml"] = [x for x in SHORT if not x.startswith("sample")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def shortened(command: str) -> str:
    """A training command with overrides that make it a matter of seconds."""
    if not command.startswith("ldm train"):
        return command
    config = command.split()[2]
    extra = SHORT_OF.get(config, SHORT)
    if "mnist_text/unet" in config:
        extra = [*extra, "sample.steps=2"]
    return f"{command} {' '.join(extra)}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def test_set_up_commands_are_those_that_ci_runs() -> None:
    first, second = [c for c in commands() if c.startswith("pip install")]
    assert first == 'pip install -c constraints.txt -e . && ldm generate "a handwritten seven" -o seven.png'
    assert second == "pip install -c constraints.txt -e '.[test]' && pytest"
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = second.split(" && ")
    assert install.replace("pip install", "pip install --quiet") in ci
    assert test in ci.splitlines()


def test_commands(place: Path) -> None:
    run = [shortened(c) for c in commands() if not c.startswith("pip install")]
    assert len(run) > 10
    for command in run:
        done = subprocess.run(command, shell=True, cwd=place, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        for name in re.findall(r"-o (\S+)", command):
            written = sorted(place.glob(name.replace(".png", "*.png")))
            assert written, f"{command} wrote no picture"
            for picture in written:
                assert Image.open(picture).size[0] >= 28


def test_python_examples(place: Path) -> None:
    for source in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=place, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{source}\n{done.stderr}"
        for name in re.findall(r'save\("(\S+)"\)', source):
            assert Image.open(place / name).size == (32, 32)
