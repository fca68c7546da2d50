"""``ldm replay`` over records that somebody changed: refused in one line, and the terminal is not steered."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from generate_lab import run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_families import FAMILIES

from ldm import cli
from ldm.weights.model import save_model

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an init image, and ``r.png`` that was drawn from both."""
    folder = tmp_path_factory.mktemp("drawn")
    with contextlib.chdir(folder):
        save_model(FAMILIES["sd1"](), folder / "sd1")
        Image.radial_gradient("L").resize((32, 24)).save("init.png")
        flags = ["-m", "sd1", "-i", "init.png", "--steps", "2", "--seed", "3", "--dtype", "fp32", "-o", "r.png"]
        assert run("generate", "two", *flags) == (0, "")
    return folder


def with_record(change: Change, path: str) -> None:
    """The picture with its record changed, and its pixels as they were."""
    image = Image.open("r.png")
    image.load()
    record = copy.deepcopy(json.loads(image.text["ldm"]))  # type: ignore[attr-defined]
    change(record)
    chunks = PngInfo()
    chunks.add_text("ldm", json.dumps(record), zip=True)
    image.save(path, pnginfo=chunks)


def drawing(**values: Any) -> Change:
    return lambda record: record["drawing"].update(values)


def loading(**values: Any) -> Change:
    return lambda record: record["loading"].update(values)


def other(part: str, **values: Any) -> Change:
    return lambda record: record[part].update(values)


ODD: dict[str, Change] = {
    "a seed below 0": lambda record: record.update(seed=-1),
    "a seed too large": lambda record: record.update(seed=2**70),
    "steps below 0": drawing(steps=-1),
    "steps in words": drawing(steps="many"),
    "a setting unknown": drawing(zeal=1),
    "a height": drawing(height=33),
    "a batch that is none": drawing(batch=5),
    "a batch of letters": drawing(batch="ab"),
    "a batch without seeds": drawing(batch=[[1]]),
    "a place outside the batch": drawing(batch=[["two", 3]], place_in_batch=7),
    "a place in words": drawing(batch=[["two", 3]], place_in_batch="first"),
    "pictures in words": drawing(pictures="init.png"),
    "a picture that is a number": drawing(pictures={"init": 5}),
    "no such picture": drawing(pictures={"init": "none.png"}),
    "a picture lost": drawing(pictures={}),
    "how to load unknown": loading(zeal=1),
    "another place": loading(place="elsewhere"),
    "a device that is a number": loading(device=5),
    "no such device": loading(device="cuda:99"),
    "no such dtype": loading(dtype="fp9"),
    "attention that is nothing": loading(attention=None),
    "LoRAs in words": loading(loras="x"),
    "no such LoRA": loading(loras=[["none.safetensors", 1]]),
    "no such model": other("model", source="none"),
    "a model of another hash": other("model", hash="0" * 64),
    "an input of another hash": lambda record: record["inputs"]["init"].update(sha256="0" * 64),
    "an input without a name": other("inputs", mask={"sha256": "0" * 64}),
    "other pixels": lambda record: record.update(pixels="0" * 64),
    "a newer format": lambda record: record.update(format=99),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_is_refused(drawn: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(drawn)
    with_record(ODD[name], "odd.png")
    before = sorted(drawn.iterdir())
    code, said = run("replay", "odd.png", "--verify", "-o", "new.png")
    assert (code, said.count("\n"), said[:7]) == (2, 1, "error: ")
    assert sorted(drawn.iterdir()) == before


HARM = "1\x1b[2J\x07\u202e"


@pytest.mark.parametrize(
    "change",
    [
        other("versions", torch=HARM),
        other("model", name=HARM, hash="0" * 64),
        other("model", source=HARM),
        other("inputs", mask={"name": HARM, "sha256": "0" * 64}),
        drawing(sampler=HARM),
        loading(dtype=HARM),
    ],
)
def test_the_terminal_is_not_steered(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Change
) -> None:
    monkeypatch.chdir(drawn)
    with_record(change, "odd.png")
    with pytest.raises(SystemExit):
        cli.run(cli.app, ["replay", "odd.png"])
    said = capsys.readouterr()
    assert all(letter == "\n" or letter.isprintable() for letter in said.out + said.err)
