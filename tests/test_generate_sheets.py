"""Several pictures from one call of ``ldm generate``: counts, files of prompts, matrices and tables of settings."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate_lab import pixels, run
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from tiny_families import FAMILIES
from tiny_models import written

import ldm
from ldm.studio import Studio
from ldm.weights.model import save_model

FLAGS = ["-m", "sd1", "--dtype", "fp32", "--seed", "5"]
FEW = [*FLAGS, "--steps", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(FAMILIES["sd1"](), folder / "sd1")
    written("label", folder / "label")
    return folder


@pytest.fixture(autouse=True)
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, but for the models."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def studio(place: Path) -> Studio:
    return ldm.load(place, dtype="fp32")


def alone(models: Path, prompt: Any, seed: int = 5, model: str = "sd1", **options: Any) -> Image.Image:
    """A picture by itself, from the library."""
    (image,) = studio(models / model)(prompt, seed=seed, **{"steps": 2, **options})
    return image


def made(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_file())


def same(name: str, image: Image.Image) -> bool:
    return pixels(Image.open(name)) == pixels(image)


# ------------------------------------------------------------------------------ many pictures


@pytest.mark.parametrize("together", ["1", "3", "16"])
def test_each_picture_of_a_count_is_the_one_drawn_alone(models: Path, place: Path, together: str) -> None:
    flags = [*FEW, "--batch-count", "2", "--batch-size", together]
    assert run("generate", "two", "three", *flags, "-o", "a.webp") == (0, "")
    assert made(place) == [f"a_{k:04d}.webp" for k in range(1, 5)]
    for k, prompt in enumerate(["two", "two", "three", "three"]):
        assert same(f"a_{k + 1:04d}.webp", alone(models, prompt, 5 + k))


def test_lines_of_text(models: Path, place: Path) -> None:
    Path("prompts.txt").write_text("two\n\n  three \n")
    assert run("generate", "--from-file", "prompts.txt", *FEW, "-o", "a.png") == (0, "")
    assert made(place) == ["a_0001.png", "a_0002.png", "prompts.txt"]
    assert same("a_0001.png", alone(models, "two", 5))
    assert same("a_0002.png", alone(models, "three", 6))


def test_lines_of_json_have_settings_of_their_own(models: Path, place: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "two", "steps": 3, "seed": 9, "output": "own.webp"},
        {"prompt": "three", "cfg_scale": 4, "negative_prompt": "two"},
        {"prompt": "two", "sampler": "euler_a", "width": 24, "height": 40, "seed": 1},
        {"prompt": "(two:1.4)", "prompt_syntax": "plain", "clip_skip": 2},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("generate", "--from-file", "p.jsonl", *FEW, "-o", "a.png") == (0, "")
    assert made(place) == ["a_0001.png", "a_0002.png", "a_0003.png", "own.webp", "p.jsonl"]
    assert same("own.webp", alone(models, "two", 9, steps=3))
    assert same("a_0001.png", alone(models, "three", 6, guidance=4, negative="two"))
    assert same("a_0002.png", alone(models, "two", 1, sampler="euler_a", width=24, height=40))
    assert same("a_0003.png", alone(models, "(two:1.4)", 8, prompt_syntax="plain", clip_skip=2))
    for name in ("own.webp", "a_0001.png", "a_0003.png"):
        assert run("replay", name, "--verify") == (0, "")


def test_standard_input_in_a_process_of_its_own(models: Path, place: Path) -> None:
    command = [sys.executable, "-m", "ldm", "generate", "--from-file", "-", *FEW, "-o", "a.png"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    given = 'two\n{"not": "json here, as the first line is text"}\n'
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert same("a_0001.png", alone(models, "two", 5))
    assert same("a_0002.png", alone(models, given.splitlines()[1], 6))


# -------------------------------------------------------------------------------------- sheets


def places(sheet: Path, picture: Image.Image) -> list[tuple[int, int]]:
    """(top, left) of wherever a picture stands on a sheet, to the last bit."""
    whole, part = (np.asarray(image.convert("RGB")).astype(np.int16) for image in (Image.open(sheet), picture))
    windows = sliding_window_view(whole[..., 0], part.shape[:2])
    found = np.argwhere((windows == part[..., 0]).all(axis=(2, 3)))
    high, wide = part.shape[:2]
    return [(int(y), int(x)) for y, x in found if (whole[y : y + high, x : x + wide] == part).all()]


def laid_out(sheet: Path, rows: list[list[Image.Image]]) -> bool:
    """Whether a sheet shows these pictures, each once, those of a row side by side and the rows below each other."""
    found = [[places(sheet, picture) for picture in row] for row in rows]
    assert all(len(at) == 1 for row in found for at in row)
    tops = [{at[0][0] for at in row} for row in found]
    lefts = [{row[k][0][1] for row in found} for k in range(len(found[0]))]
    assert all(len(each) == 1 for each in (*tops, *lefts))
    return all(sorted(lines, key=min) == lines for lines in (tops, lefts))


def test_a_matrix(models: Path, place: Path) -> None:
    assert run("generate", "{two|three}|four", "--matrix", *FEW, "-o", "m.png") == (0, "")
    assert made(place) == ["m.png"]
    rows = [[alone(models, prompt) for prompt in (one, f"{one}, four")] for one in ("two", "three")]
    assert laid_out(place / "m.png", rows)


TABLES: dict[str, tuple[list[str], list[list[dict[str, Any]]]]] = {
    "both": (
        ["--x", "steps=2,3", "--y", "sampler=ddim,euler_a"],
        [[{"steps": n, "sampler": name} for n in (2, 3)] for name in ("ddim", "euler_a")],
    ),
    "a row": (["--x", "Clip Skip=1-3"], [[{"clip_skip": n} for n in (1, 2, 3)]]),
    "a column": (["--y", "cfg-scale=1,4"], [[{"guidance": 1.0}], [{"guidance": 4.0}]]),
    "seeds": (["--x", "seed=8,3"], [[{"seed": 8}, {"seed": 3}]]),
    "words": (["--x", "prompt=two,three"], [[{"prompt": "two"}, {"prompt": "three"}]]),
    "pairs": (
        ["--cfg-scale", "4", "--x", 'guidance_interval="0,0.3","0,1"'],
        [[{"guidance": 4.0, "guidance_interval": (0, 0.3)}, {"guidance": 4.0}]],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(models: Path, place: Path, name: str) -> None:
    flags, cells = TABLES[name]
    assert run("generate", "two", *flags, *FEW, "-o", "t.webp") == (0, "")
    assert made(place) == ["t.webp"]
    assert laid_out(place / "t.webp", [[alone(models, **{"prompt": "two", **cell}) for cell in row] for row in cells])


def test_a_sheet_for_every_prompt(models: Path, place: Path) -> None:
    Path("p.txt").write_text("two\nthree\n")
    assert run("generate", "--from-file", "p.txt", "--y", "sampler=ddim,heun", *FEW, "-o", "t.png") == (0, "")
    assert made(place) == ["p.txt", "t_0001.png", "t_0002.png"]
    for k, prompt in enumerate(["two", "three"]):
        rows = [[alone(models, prompt, 5 + k, sampler=name)] for name in ("ddim", "heun")]
        assert laid_out(place / f"t_{k + 1:04d}.png", rows)


def test_labels_have_tables_too(models: Path, place: Path) -> None:
    flags = ["-m", "label", *FEW[2:]]
    assert run("generate", "7", "--x", "cfg_scale=1,3", *flags, "-o", "t.png") == (0, "")
    assert laid_out(place / "t.png", [[alone(models, 7, model="label", guidance=g) for g in (1.0, 3.0)]])


# ------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "two --matrix": "stands for itself alone",
    "{two|three} --matrix --x steps=1,2": "a matrix of prompts (--matrix) or a table of settings (--x, --y), not both",
    "two --x steps=1,2 --y steps=3": "both axes are of steps",
    "two --x stesp=1,2": "did you mean 'steps'",
    "two --x steps": "should be NAME=VALUE",
    "two --x steps=1,0": "steps: should be greater than or equal to 1, got '0'",
    "two --x sampler=ddim,dimm": "did you mean 'ddim'",
    "two --x steps=1-2000": "numbers: 1 to 1,000 can be drawn",
    "two --x prompt=cat,dog": "'cat', its first value, which is not in 'two'",
    "two --x width=32,33": "width 33 is not a multiple of 4",
    "two --from-file p.jsonl": "from --from-file or from the command line, not from both",
    "--from-file none.txt": "'none.txt' cannot be read",
    "--from-file p.jsonl": "p.jsonl, line 2: unknown key 'stesp'",
    "--from-file same.jsonl": "'x.png' is given twice",
    "--from-file place.jsonl": "there is no folder nowhere",
    "--from-file ending.jsonl": "unknown picture format '.gif'",
    "--from-file width.jsonl": "width.jsonl, line 2: width 33 is not a multiple of 4",
    "--from-file eta.jsonl": "eta.jsonl, line 1: eta",
    "--from-file idle.jsonl": "idle.jsonl, line 1: apg",
    "two three --count 0": "count should be 1 or more",
}
FILES: dict[str, list[dict[str, Any]]] = {
    "p": [{"prompt": "two"}, {"prompt": "two", "stesp": 3}],
    "same": [{"prompt": "two", "output": "x.png"}, {"prompt": "three", "output": "x.png"}],
    "place": [{"prompt": "two"}, {"prompt": "two", "output": "nowhere/x.png"}],
    "ending": [{"prompt": "two", "output": "x.gif"}],
    "width": [{"prompt": "two"}, {"prompt": "two", "width": 33}],
    "eta": [{"prompt": "two", "sampler": "euler", "eta": 0.5}],
    "idle": [{"prompt": "two", "guidance": 1, "apg": True}],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_named_and_nothing_is_drawn(place: Path, line: str) -> None:
    for name, lines in FILES.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    before = made(place)
    code, said = run("generate", *line.split(), *FEW, "-o", "t.png")
    assert (code, said.lower().count("error: "), said.count("\n")) == (2, 1, 1)
    assert MISTAKES[line] in said
    assert made(place) == before


def test_an_output_that_another_picture_has_is_refused(place: Path) -> None:
    Path("p.jsonl").write_text('{"prompt": "two"}\n{"prompt": "two", "output": "t.png"}\n')
    code, said = run("generate", "--from-file", "p.jsonl", *FEW, "-o", "t.png")
    assert (code, "two pictures would be written to t.png" in said) == (2, True)
    assert made(place) == ["p.jsonl"]
