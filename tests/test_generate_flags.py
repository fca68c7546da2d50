"""Every flag of ``ldm generate``: it does what the library does with the same settings, or it is refused.

``ROWS`` has a row for every flag, so a new flag without one fails. Each is drawn through the command line and compared,
pixel by pixel, with the library; without the flag the picture must be another, and without what the flag needs to be
of any effect it must be refused. What files it names are found again by ``ldm replay --verify``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer.main
from generate_lab import COMMON, PROMPT, SEED, furnish, pixels, run
from PIL import Image
from tiny_families import FAMILIES
from tiny_models import written

import ldm
from ldm import cli
from ldm.codec import PixelCodec
from ldm.conditioner import NoConditioner
from ldm.diffusion.settings import ProcessConfig
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.studio import Studio
from ldm.weights.model import Model, save_model

COMMIT = 40 * "b"


class Row(NamedTuple):
    """A flag, and the same in the library's words.

    Attributes:
        flags: as typed.
        drawing, pictures, loading: what ``Studio.__call__`` and ``ldm.load`` are given.
        needs: rows without which it would do nothing.
        idle: whether the picture stays the same up to rounding, as it says how that is computed.
        model: that is drawn with, where it is not ``sd1``.
        prompt: of the picture, where the flag brings it.
    """

    flags: str
    drawing: Mapping[str, Any] = {}
    pictures: Mapping[str, Any] = {}
    loading: Mapping[str, Any] = {}
    needs: tuple[str, ...] = ()
    idle: bool = False
    model: str = "sd1"
    prompt: str = PROMPT


CONTROL = {"net": "control-sd1-7", "hint": "init.png", "scale": 0.8, "start": 0.0, "end": 0.7}
ROWS = {
    "prompt": Row("-p three", prompt="three"),
    "from_file": Row("--from-file prompts.txt", prompt="four"),
    "model": Row("-m other", model="other"),
    "negative": Row("--negative-prompt four", {"negative": "four"}, needs=("guidance",)),
    "preview": Row("--preview look.png", idle=True),  # what is in it: tests/test_live_previews.py
    "batch_size": Row("--batch-size 1", {"batch_size": 1}, idle=True),
    "sampler": Row("--sampler euler_a", {"sampler": "euler_a"}),
    "scheduler": Row("--scheduler trailing", {"spacing": "trailing"}),
    "eta": Row("--eta 0.7", {"eta": 0.7}),
    "guidance": Row("--cfg-scale 3", {"guidance": 3.0}),
    "guidance_rescale": Row("--guidance-rescale 0.6", {"guidance_rescale": 0.6}, needs=("guidance",)),
    "guidance_interval": Row("--guidance-interval 0.2 0.5", {"guidance_interval": (0.2, 0.5)}, needs=("guidance",)),
    "apg": Row("--apg", {"apg": True}, needs=("guidance",)),
    "prompt_syntax": Row("--prompt-syntax plain", {"prompt_syntax": "plain"}),
    "clip_skip": Row("--clip-skip 2", {"clip_skip": 2}),
    "variation_seed": Row("--variation-seed 9", {"variation_seed": 9}, needs=("variation_strength",)),
    "variation_strength": Row("--variation-strength 0.4", {"variation_strength": 0.4}, needs=("variation_seed",)),
    "width": Row("--width 40", {"width": 40}),
    "height": Row("--height 24", {"height": 24}),
    "init": Row("--init-image init.png", pictures={"init": "init.png"}),
    "strength": Row("--strength 0.4", {"strength": 0.4}, needs=("init",)),
    "mask": Row("--mask mask.png", pictures={"mask": "mask.png"}, needs=("init",)),
    "invert_mask": Row("--invert-mask", pictures={"invert_mask": True}, needs=("init", "mask")),
    "mask_blur": Row("--mask-blur 2.5", pictures={"mask_blur": 2.5}, needs=("init", "mask")),
    "only_masked": Row("--only-masked", pictures={"only_masked": True}, needs=("init", "mask")),
    "padding": Row("--padding 3", pictures={"padding": 3}, needs=("init", "mask", "only_masked")),
    "outpaint": Row("--outpaint 4 0 8 12", pictures={"outpaint": (4, 0, 8, 12)}, needs=("init",)),
    "outpaint_fill": Row("--outpaint-fill noise", pictures={"outpaint_fill": "noise"}, needs=("init", "outpaint")),
    "fit": Row("--fit crop -W 40", {"width": 40}, {"fit": "crop"}, needs=("init",)),
    "controls": Row(
        "--control control-sd1-7=init.png:0.8:0-0.7 --control control-sd1-8=mask.png",
        pictures={"controls": [CONTROL, {"net": "control-sd1-8", "hint": "mask.png"}]},
    ),
    "hires_scale": Row("--hires-scale 1.5", {"hires_scale": 1.5}),
    "hires_upscaler": Row("--hires-upscaler lanczos", {"hires_upscaler": "lanczos"}, needs=("hires_scale",)),
    "hires_strength": Row("--hires-strength 0.4", {"hires_strength": 0.4}, needs=("hires_scale",)),
    "hires_steps": Row("--hires-steps 7", {"hires_steps": 7}, needs=("hires_scale",)),
    "tiled": Row("--tiled", {"tiled": True}, idle=True),
    "loras": Row(
        "--lora style.safetensors:-0.7 --lora style.safetensors:0.2",
        loading={"loras": [("style.safetensors", -0.7), ("style.safetensors", 0.2)]},
    ),
    "embeddings": Row("--embedding zebra.safetensors", loading={"embeddings": ["zebra.safetensors"]}),
    "vae": Row("--vae other/vae", loading={"vae": "other/vae"}),
    "variant": Row("--variant fp16", loading={"variant": "fp16"}, model="varied"),
    "ema": Row("--ema", loading={"ema": True}, model="averaged.safetensors"),
    "prediction": Row("--prediction v", loading={"prediction": "v"}),
    "allow_pickle": Row("--allow-pickle", loading={"allow_pickle": True}, model="pickled"),
    "device": Row("--device cpu", loading={"device": "cpu"}, idle=True),
    "dtype": Row("--dtype bf16", loading={"dtype": "bf16"}),
    "attention": Row("--attention math", loading={"attention": "math"}, idle=True),
}
ELSEWHERE = {"prompts", "seed", "steps", "output"}  # given in every test here
ELSEWHERE |= {"matrix", "x", "y", "count"}  # in test_generate_sheets.py: they draw several pictures
ELSEWHERE |= {"as_written"}  # in test_knowledge.py: it is for models that say what they know
ELSEWHERE |= {"revision", "compile"}  # at the end of this file


def test_every_flag_has_a_row() -> None:
    command: Any = typer.main.get_command(cli.app)
    flags = {parameter.name for parameter in command.commands["generate"].params} - {"help"}
    assert flags == ROWS.keys() | ELSEWHERE
    assert not ROWS.keys() & ELSEWHERE


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    with contextlib.chdir(folder):
        furnish(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)


def typed(names: tuple[str, ...], model: str = "sd1") -> tuple[int, str]:
    """Draw to ``o.png`` with the flags of these rows."""
    Path("o.png").unlink(missing_ok=True)
    flags = " ".join(ROWS[name].flags for name in names).split()
    own = [] if {"prompt", "from_file"} & set(names) else [PROMPT]
    place = [] if "model" in names else ["--model", model]
    dtype = [] if "dtype" in names else ["--dtype", "fp32"]
    return run("generate", *own, *place, *dtype, *COMMON, "-o", "o.png", *flags)


@functools.cache
def without(names: tuple[str, ...], model: str) -> Image.Image | str:
    """The picture, or why there is none."""
    code, said = typed(names, model)
    return said if code else Image.open("o.png").copy()


@functools.cache
def studio(model: str, loading: str) -> Studio:
    return ldm.load(model, **json.loads(loading))


def by_library(names: tuple[str, ...]) -> Image.Image:
    rows = [ROWS[name] for name in names]
    drawing, pictures, loading = (
        {key: value for row in rows for key, value in getattr(row, part).items()}
        for part in ("drawing", "pictures", "loading")
    )
    pipe = studio(rows[-1].model, json.dumps({"dtype": "fp32", **loading}))
    (image,) = pipe(rows[-1].prompt, seed=SEED, pictures=pictures, **{"steps": 3, **drawing})
    return image


@pytest.mark.parametrize("name", ROWS)
def test_a_flag_does_what_the_library_does(name: str) -> None:
    row = ROWS[name]
    assert typed((*row.needs, name), row.model) == (0, "")
    found = Image.open("o.png").copy()
    expected = by_library((*row.needs, name))
    assert pixels(found) == pixels(expected)
    if row.loading or row.pictures:  # tests/test_recorded.py draws again what is drawn from words alone
        pickles = ["--allow-pickle"] if name == "allow_pickle" else []
        if pickles:  # a picture does not decide what is read
            assert run("replay", "o.png")[0] == 2
        assert run("replay", "o.png", "--verify", *pickles) == (0, "")
    before = without(row.needs, "sd1" if name == "model" else row.model)
    if row.idle:
        assert not isinstance(before, str)
        assert np.abs(np.asarray(before).astype(int) - np.asarray(found)).max() <= 1
    else:
        assert isinstance(before, str) or pixels(before) != pixels(found)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.needs])
def test_a_flag_without_what_it_needs_is_refused(name: str) -> None:
    """Rather than ignored: nobody would know why the picture is as it was."""
    for needed in ROWS[name].needs:
        names = tuple(other for other in ROWS[name].needs if other != needed and needed not in ROWS[other].needs)
        code, said = typed((*names, name))
        assert (code, said.count("error: "), said.count("\n")) == (2, 1, 1), f"{name} without {needed} does nothing"
        assert name in said or needed in said
        assert not Path("o.png").exists()


# ------------------------------------------------------------ what no other setting is missing for

NOTHING_THERE = {  # typed, and the flag that is told to do nothing here
    "two -m sd1 --sampler euler --eta 0.5": "eta",
    "two -m sd1 --cfg-scale 1 -n four": "negative",
    "two -m sd1 --cfg-scale 1 --apg": "apg",
    "two -m sd1 --cfg-scale 3 --apg --guidance-rescale 0.5": "guidance_rescale",
    "two -m sd1 --ema": "ema",
    "two -m one.safetensors --variant fp16": "variant",
    "two -m sd1 --revision main": "revision",
    "two -m sd1 --matrix": "matrix",
    "two -m sd1 --hires-scale 1.5 -i init.png": "hires",
    "two -m sd1 -i init.png --outpaint 8 8 8 8 --mask mask.png": "outpaint",
    "two -m lcm -n four": "negative",
    "two -m lcm --cfg-scale 4 --apg": "apg",
    "two -m lcm --cfg-scale 4 --guidance-rescale 0.5": "guidance_rescale",
    "two -m lcm --cfg-scale 4 --guidance-interval 0 0.5": "guidance_interval",
    "3 -m label --clip-skip 2": "clip_skip",
    "3 -m label --prompt-syntax plain": "prompt_syntax",
    "3 -m label --tiled": "tiled",
    "3 -m label --vae other/vae": "vae",
    "3 -m label --embedding zebra.safetensors": "zebra.safetensors",
    "3 -m label --matrix": "matrix",
    "3 -m label --hires-steps 3": "hires_steps",
}


@pytest.fixture(scope="module")
def more(lab: Path) -> None:
    written("label", lab / "label")
    save_model(FAMILIES["lcm"](), lab / "lcm")


@pytest.mark.usefixtures("more")
@pytest.mark.parametrize("line", NOTHING_THERE)
def test_what_this_model_or_sampler_cannot_heed_is_refused(line: str) -> None:
    Path("o.png").unlink(missing_ok=True)
    code, said = run("generate", *line.split(), "--dtype", "fp32", *COMMON, "-o", "o.png")
    assert (code, said.count("error: "), said.count("\n")) == (2, 1, 1)
    assert NOTHING_THERE[line] in said
    assert not Path("o.png").exists()


# ----------------------------------------------------------------------------- slow to look at


def test_revision_is_that_of_the_hub(tmp_path: Path) -> None:
    """From huggingface_hub's cache, in a process of its own, as the library reads its place when it is imported."""
    cache = tmp_path / "hub" / "models--owner--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(40 * "a")
    for name, commit in (("sd1", 40 * "a"), ("other", COMMIT)):
        shutil.copytree(name, cache / "snapshots" / commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    flags = ["-m", "owner/tiny", "--revision", COMMIT, "--dtype", "fp32", *COMMON, "-o", str(tmp_path / "o.png")]
    command = [sys.executable, "-m", "ldm", "generate", PROMPT, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert pixels(Image.open(tmp_path / "o.png")) == pixels(by_library(("model",)))
    record = json.loads(Image.open(tmp_path / "o.png").text["ldm"])  # type: ignore[attr-defined]
    assert record["loading"]["revision"] == COMMIT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_compiles() -> None:
    torch.manual_seed(0)
    toy = ToyUNet(ToyUNetConfig(in_channels=1))
    save_model(Model(toy, ProcessConfig(), "epsilon", PixelCodec(1), NoConditioner(), (8, 8)), Path("toy"))
    sizes, flags = ["-W", "8", "-H", "8"], ["--dtype", "fp32", *COMMON]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert run("generate", "-m", "toy", *sizes, *flags, "-o", "p.png") == (0, "")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert run("generate", "-m", "toy", *sizes, *flags, "-o", "c.png", "--compile") == (0, "")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    plain, compiled = (np.asarray(Image.open(name)).astype(int) for name in ("p.png", "c.png"))
    assert np.abs(plain - compiled).max() <= 1
    assert run("replay", "c.png", "--verify") == (0, "")
