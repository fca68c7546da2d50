"""The command line: what it draws, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image
from tiny_models import written
from tiny_runs import command, config_file

import ldm
from ldm import cli
from ldm.diffusion.samplers import SAMPLERS
from ldm.drawing import ALIASES
from ldm.requests import loading_of, parse_control

LONG = "a thick tall one slanted to the right and " * 45  # 405 words
DIGITS = Path(ldm.__file__).parent / "assets" / "mnist_label"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models ``text``, ``label`` and ``unconditional``."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("text", "label", "unconditional"):
        written(kind, folder / kind)
    return folder


@pytest.fixture
def place(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; the models are at ``../models``."""
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "models").symlink_to(models)
    monkeypatch.chdir(folder)
    return folder


def call(*arguments: str) -> int:
    """Run ``ldm`` in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.run(cli.app, list(arguments))
    return int(ended.value.code or 0)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------ drawing


def test_the_line_printed_has_all_that_is_needed_to_draw_it_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("generate", "two", "-m", "../models/text", "-o", "a.png") == 0
    seed = capsys.readouterr().out.split("seed ")[1].split(",")[0]
    assert call("generate", "two", "-m", "../models/text", "-o", "b.png", "--seed", seed) == 0
    assert call("generate", "two", "-m", "../models/text", "-o", "c.png", "--seed", str(int(seed) + 1)) == 0
    a, b, c = (Image.open(f"{name}.png").tobytes() for name in "abc")
    assert a == b != c
    assert files(place) == ["a.png", "b.png", "c.png"]


def test_several_pictures_are_numbered_and_each_has_its_seed(place: Path) -> None:
    common = ["-m", "../models/text", "--sampler", "ddpm", "--steps", "4"]
    assert call("generate", "two", "a thick one", "--count", "2", "--seed", "5", "-o", "x.jpg", *common) == 0
    assert files(place) == ["x_0001.jpg", "x_0002.jpg", "x_0003.jpg", "x_0004.jpg"]
    assert call("generate", "two", "-p", "a thick one", "-c", "2", "-s", "5", "-o", "y.png", *common) == 0
    pipe = ldm.load("../models/text")
    for k, prompt in enumerate(["two", "two", "a thick one", "a thick one"]):
        (alone,) = pipe(prompt, seed=5 + k, sampler="ddpm", steps=4)
        drawn = np.asarray(Image.open(f"y_{k + 1:04d}.png")).astype(int)
        assert np.abs(drawn - np.asarray(alone)).max() <= 1  # another batch may round another way


@pytest.mark.parametrize("kind", ["text", "label", "unconditional"])
@pytest.mark.parametrize("prompt", [[], [""]])
def test_an_empty_prompt_draws_anything(place: Path, kind: str, prompt: list[str]) -> None:
    few = ["--steps", "3", "--seed", "0"]
    assert call("generate", *prompt, "-m", f"../models/{kind}", "-o", "a.png", *few) == 0
    (expected,) = ldm.load(f"../models/{kind}")(None, steps=3)
    assert Image.open("a.png").tobytes() == expected.tobytes()


def test_a_prompt_of_400_words(place: Path) -> None:
    assert call("generate", LONG, "-m", "../models/text", "-o", "a.png") == 0
    assert Image.open("a.png").size == (32, 32)


def test_every_flag_reaches_the_picture(place: Path) -> None:
    asked = {
        "sampler": ("--sampler", "ddim"),
        "steps": ("--steps", "7"),
        "eta": ("--eta", "0.5"),
        "spacing": ("--scheduler", "trailing"),
        "guidance": ("--cfg-scale", "4.5"),
        "guidance_rescale": ("--guidance-rescale", "0.6"),
        "guidance_interval": ("--guidance-interval", "0.1", "0.8"),
        "negative": ("-n", "three"),
        "height": ("-H", "24"),
        "width": ("-W", "40"),
    }
    flags = [word for words in asked.values() for word in words]
    options = {"sampler": "ddim", "steps": 7, "eta": 0.5, "spacing": "trailing", "guidance": 4.5}
    options |= {"guidance_rescale": 0.6, "guidance_interval": (0.1, 0.8), "negative": "three"}
    options |= {"height": 24, "width": 40}
    assert call("generate", "two", "-m", "../models/text", "-o", "a.png", "-s", "3", *flags) == 0
    pipe = ldm.load("../models/text")
    assert Image.open("a.png").tobytes() == pipe("two", seed=3, **options)[0].tobytes()
    for name in asked.keys() - {"height", "width"}:  # and without any one of them it is another picture
        without = {
            key: value for key, value in options.items() if key not in (name, "eta" if name == "sampler" else "")
        }
        without |= {"sampler": "heun"} if name == "sampler" else {}
        seeds, wanted = [3], ["two"]
        full, less = pipe.generate(wanted, seeds, **options), pipe.generate(wanted, seeds, **without)
        assert (full - less).abs().max() > 1e-4, name


def test_every_name_of_a_setting_is_a_flag() -> None:
    context: Any = typer.main.get_command(cli.app)
    flags = {name: option.name for option in context.commands["generate"].params for name in option.opts}
    normalize = context.context_settings["token_normalize_func"]
    renamed = {"spacing": "scheduler"}
    for name, field in ALIASES.items():
        if len(name) > 1:  # -W and -H are for those
            assert flags[f"--{normalize(name)}"] == renamed.get(field, field)
    assert all(f"--{name}" in flags for name in cli.FLAG_ALIASES.values())
    assert not any(f"--{name}" in flags for name in cli.FLAG_ALIASES)


def test_flags_have_the_names_of_other_programs(place: Path) -> None:
    ours = "--steps 3 --cfg-scale 2 --scheduler trailing --variation-seed 4 --variation-strength 0.3 -m ../models/text"
    theirs = "--num_inference_steps 3 --cfg 2 --schedule-type Trailing --subseed 4 --subseed-strength 0.3 "
    theirs += "--num-images-per-prompt 1 --ckpt ../models/text"
    for flags, name in ((ours, "a.png"), (theirs, "b.png")):
        assert call("generate", "two", *flags.split(), "-s", "1", "-o", name) == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    assert call("generate", "--help") == 0


def test_seed_minus_one_is_random(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = []
    for _ in range(2):
        assert call("generate", "two", "-m", "../models/text", "--steps", "1", "--seed", "-1", "-o", "a.png") == 0
        seeds.append(int(capsys.readouterr().out.split("seed ")[1].split(",")[0]))
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("canny=edges.png", {}),
        ("canny=edges.png:-1", {"scale": -1.0}),
        ("canny=edges.png:1e-1:0-0.5", {"scale": 0.1, "start": 0.0, "end": 0.5}),
        ("canny=edges.png:+.5E0", {"scale": 0.5}),
    ],
)
def test_numbers_of_a_control(text: str, numbers: dict[str, float]) -> None:
    assert parse_control(text) == {"net": Path("canny"), "hint": Path("edges.png"), **numbers}


def test_the_ending_of_a_lora_may_be_left_out(place: Path) -> None:
    flags: dict[str, Any] = dict.fromkeys(inspect.signature(cli.generate).parameters)
    for file in ("style.safetensors", "other", "other.safetensors"):
        Path(file).touch()
    asked = ["style:0.8", "other", "missing:2", "style.safetensors"]
    found = [(Path("style.safetensors"), 0.8), (Path("other"), 1.0), (Path("missing"), 2.0)]
    assert loading_of({**flags, "loras": asked})["loras"] == (*found, (Path("style.safetensors"), 1.0))


def test_a_name_in_an_error_of_the_system_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(36, "File name too long", "a\x1b[31m")

    with pytest.raises(SystemExit) as ended:
        cli.run(fail)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "File name too long" in shown
    assert "\x1b" not in shown


def test_guidance_below_zero_is_away_from_the_prompt(place: Path) -> None:
    assert call("generate", "3", "-m", "../models/label", "-o", "a.png", "--cfg-scale", "-2", "-s", "0") == 0
    (expected,) = ldm.load("../models/label")(3, guidance=-2)
    assert Image.open("a.png").tobytes() == expected.tobytes()


def test_info_counts_what_a_model_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", "../models/text") == 0
    shown = capsys.readouterr().out
    model = ldm.load("../models/text", dtype="fp32").model  # other dtypes may merge parameters
    unet = sum(p.numel() for p in model.net.parameters())
    for fact in (f"{unet:,d} parameters", "CLIPTextModel", "AutoencoderKL", "32x32", "sampler ddim", "steps 3"):
        assert fact in shown
    assert call("info") == 0
    assert "mnist_text" in capsys.readouterr().out


# ------------------------------------------------------------------------------- user mistakes

MISTAKES = {
    "a sampler misspelt": ("two -m M/text --sampler dimm", "unknown sampler 'dimm'; did you mean 'ddim'?"),
    "a sampler unknown": ("two -m M/text --sampler zzz", ", ".join(SAMPLERS)),
    "width": ("two -m M/text --width 33", "width 33 is not a multiple of 4, as this model needs; 32 is the nearest"),
    "height": ("two -m M/text --height 2", "height 2 is not a multiple of 4, as this model needs; 4 is the nearest"),
    "width 0": ("two -m M/text --width 0", "width: should be greater than or equal to 1, got 0"),
    "steps 0": ("two -m M/text --steps 0", "steps: should be greater than or equal to 1, got 0"),
    "steps beyond the process": ("two -m M/text --steps 5000", "steps must be between 1 and 1000"),
    "steps no number": ("two -m M/text --steps many", "--steps"),
    "seed": ("two -m M/text --seed -2", "seed should be 0 or more, got -2"),
    "seed too large": ("two -m M/text --seed 18446744073709551616", "seed 18446744073709551616 is not between"),
    "count": ("two -m M/text --count 0", "count should be 1 or more, got 0"),
    "count below 0": ("two -m M/text --count -3", "count should be 1 or more, got -3"),
    "batch size": ("two -m M/text --batch-size 0", "batch_size: should be greater than or equal to 1, got 0"),
    "guidance nan": ("two -m M/text --cfg-scale nan", "guidance: should be a finite number, got nan"),
    "rescale": ("two -m M/text --guidance-rescale 2", "guidance_rescale: should be less than or equal to 1, got 2.0"),
    "interval": ("two -m M/text --guidance-interval 0.9 0.1", "guidance interval must be two numbers"),
    "eta of another sampler": ("two -m M/text --sampler euler --eta 0.5", "eta is for the sampler ddim"),
    "eta of the default sampler": ("3 -m M/label --eta 0.5", "eta is for the sampler ddim"),
    "eta too large": ("two -m M/text --eta 1.5", "eta: should be less than or equal to 1, got 1.5"),
    "spacing": ("two -m M/text --scheduler trailin", "unknown spacing 'trailin'; did you mean 'trailing'?"),
    "device": ("two -m M/text --device cuda:77", "unknown device 'cuda:77'"),
    "dtype": ("two -m M/text --dtype fp8", "unknown dtype 'fp8'"),
    "attention": ("two -m M/text --attention sdpq", "unknown attention backend 'sdpq'; did you mean 'sdpa'?"),
    "ending": ("two -m M/text -o a.bmp", "unknown picture format '.bmp'"),
    "no ending": ("two -m M/text -o a", "unknown picture format ''"),
    "missing folder": ("two -m M/text -o missing/a.png", "there is no folder missing"),
    "file as a folder": ("two -m M/text -o ../models/text/model_index.json/a.png", "model_index.json is a file"),
    "model": ("two -m M/txet", "no such folder or file (near: text); a model is a .safetensors file, a folder"),
    "model is a file": ("two -m M/text/model_index.json", "is neither a safetensors file nor a pickle"),
    "model is another folder": ("two -m M", "found neither model_index.json nor checkpoints"),
    "label too large": ("10 -m M/label", "a label from 0 to 9, or nothing; got '10'"),
    "label below 0": ("-m M/label -- -1", "a label from 0 to 9, or nothing; got '-1'"),
    "label in words": ("seven -m M/label", "a label from 0 to 9, or nothing; got 'seven'"),
    "prompt unwanted": ("seven -m M/unconditional", "the model is unconditional and cannot be asked for 'seven'"),
    "guidance unwanted": ("-m M/unconditional --cfg-scale 3", "guidance 3.0 needs a conditional model"),
    "negative without guidance": ("two -m M/text -n three --cfg-scale 1", "negative 'three' would do nothing"),
    "two axes of columns": (
        "two -m M/text --x steps=2,3 --x cfg_scale=4,5",
        "--x is given 2 times ('steps=2,3' and 'cfg_scale=4,5'): give it once",
    ),
    "hires steps 0": ("two -m M/text --hires-steps 0", "leave it out for the same number"),
    "tag": ("two<hypernet:x:1> -m M/text", "the tag '<hypernet:x:1>' is not supported"),
    "unknown flag": ("two -m M/text --stesp 3", "No such option: --stesp"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_message(place: Path, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    line, message = MISTAKES[mistake]
    assert call("generate", *line.replace("M", "../models", 1).split()) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.lower().count("error: ") == 1
    assert shown.out == ""
    assert files(place) == []


def test_mistakes_are_found_before_the_model_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--steps", "0"], ["-o", "a.gif"], ["--seed", "-4"], ["-o", "missing/a.png"]):
        assert call("generate", "two", "-m", "../models/nothing", *flags) == 2
        assert "nothing" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_only_fails_when_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("generate", "two", "-m", "../models/text", "-o", "/proc/a.png") == 2
    shown = capsys.readouterr()
    assert "error: " in shown.err
    assert "/proc" in shown.err
    assert shown.out == ""


DAMAGES = {
    "a part missing": ("unet/diffusion_pytorch_model.safetensors", None),
    "a part cut short": ("unet/diffusion_pytorch_model.safetensors", 5000),
    "a part empty": ("vae/diffusion_pytorch_model.safetensors", 0),
    "settings missing": ("unet/config.json", None),
    "settings cut short": ("vae/config.json", 40),
    "the schedule missing": ("scheduler/scheduler_config.json", None),
    "the index cut short": ("model_index.json", 50),
    "the text encoder missing": ("text_encoder/model.safetensors", None),
    "the text encoder cut short": ("text_encoder/model.safetensors", 5000),
    "the tokenizer cut short": ("tokenizer/tokenizer.json", 300),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_models(place: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    name, keep = DAMAGES[damage]
    file = written("text", place.parent / "damaged") / name
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:keep])
    assert call("generate", "two", "-m", "../damaged") == 2
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 1
    assert str(Path("../damaged") / name.split("/")[0]) in shown.err
    assert "Traceback" not in shown.err
    assert files(place) == []


def test_info_of_a_damaged_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = written("label", place.parent / "damaged") / "model_index.json"
    listed = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**listed, "vae": ["diffusers", "AutoencoderKL"]}), encoding="utf-8")
    assert call("info", "../damaged") == 2
    assert "vae is missing, though ../damaged/model_index.json lists it" in capsys.readouterr().err
    assert call("info", "../nowhere") == 2
    assert "no such folder" in capsys.readouterr().err


def test_training_mistakes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a.yaml").write_text("task: difusion\n", encoding="utf-8")
    for arguments, message in (
        (["missing.yaml"], "missing.yaml"),
        (["a.yaml"], "diffusion"),
        (["a.yaml", "train.steps"], "train.steps"),
    ):
        assert call("train", *arguments) == 2
        assert message in capsys.readouterr().err
    assert files(place) == ["a.yaml"]


# --------------------------------------------------------------------------------- processes


def test_a_mistake_in_a_process_of_its_own(place: Path) -> None:
    command = [sys.executable, "-m", "ldm", "generate", "3", "-m", "../models/label", "--sampler", "dimm"]
    done = subprocess.run(command, cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"error: {MISTAKES['a sampler misspelt'][1]} (one of: {', '.join(SAMPLERS)})"]
    assert files(place) == []


def test_an_interrupt_leaves_no_file(place: Path) -> None:
    # Far more pictures than a test can wait for. The bar, shown on terminals only, tells that drawing has begun.
    flags = ["--model", str(DIGITS), "--count", "64", "--sampler", "ddpm", "--steps", "1000", "-o", "a.png"]
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-m", "ldm", "generate", "3", *flags]

    def listen() -> None:  # a shell has what it starts in the background ignore interrupts, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    program = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stdout=theirs, stderr=theirs, preexec_fn=listen)
    os.close(theirs)
    shown = b""
    while not re.search(rb"[1-9]\d*/4000", shown):
        shown += os.read(ours, 4096)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=60) == 130
    with contextlib.suppress(OSError):  # how Linux tells that nobody has the terminal open any more
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert b"Traceback" not in shown
    assert shown.rstrip().endswith(b"interrupted")
    assert files(place) == []


def test_an_interrupted_training_tells_what_it_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    file = config_file("label", tmp_path / "run.yaml", run, train__steps=2, train__checkpoint_every=1)
    replace = os.replace

    def interrupted_twice(*names: Any) -> None:
        replace(*names)
        if Path(names[1]).name == "step_00000001":
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.1)  # after which it is no echo of the first
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted_twice)
    assert command("train", str(file)) == 130
    told = capsys.readouterr().err
    assert f"{run / 'checkpoints' / 'step_00000001'} is kept, and --resume goes on from it" in told
    assert told.endswith("interrupted\n")
    monkeypatch.undo()
    assert command("train", str(file), "--resume") == 0
