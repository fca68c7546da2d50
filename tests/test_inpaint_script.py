"""scripts/inpaint.py: folders of pictures with holes, with models for inpainting and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from script_calls import assert_same, call, files, hole, picture, shown
from tiny_families import Folders

import ldm
from ldm.drawing import Inputs
from ldm.images import to_pil
from ldm.metadata.read import read_record


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ["sd1", "sd1-inpaint"])
def test_inpaint_fills_every_pair(place: Path, models: Folders, family: str) -> None:
    pairs = place / "pairs"
    sizes = {"a": (32, 32), "b": (40, 24)}
    given = {name: picture(pairs / f"{name}.png", *size) for name, size in sizes.items()}
    masks = {name: hole(pairs / f"{name}_mask.png", *size) for name, size in sizes.items()}
    picture(pairs / "without.png")
    flags = ["--indir", "pairs", "--outdir", "out", "--steps", "5", "--prompt", "two", "--seed", "3", "--scale", "4"]
    assert call("inpaint", *flags, "--ckpt", models.folder(family), "--precision", "full") == 0
    assert files(place / "out") == ["a.png", "b.png"]
    pipe = ldm.load(models.folder(family), dtype="fp32")
    for name, (width, _) in sizes.items():
        inputs = Inputs(init=given[name][None], mask=masks[name][None])
        how = {"sampler": "ddim", "steps": 5, "guidance": 4.0, "strength": 1.0}
        found = shown(place / "out" / f"{name}.png")
        assert_same([found], to_pil(pipe.generate(["two"], [3], inputs=inputs, **how)), 0)
        source = shown(pairs / f"{name}.png")
        assert np.array_equal(found[:, width // 2 :], source[:, width // 2 :])
        assert np.abs(found[:, : width // 2] - source[:, : width // 2]).mean() > 5
        record = read_record(place / "out" / f"{name}.png")
        assert record is not None
        assert record.inputs.keys() == {"init", "mask"}


def test_inpaint_draws_with_the_model_in_ldm(place: Path) -> None:
    picture(place / "pairs" / "a.png")
    hole(place / "pairs" / "a_mask.png")
    assert call("inpaint", "--indir", "pairs", "--outdir", "new/out", "--steps", "2") == 0
    record = read_record(place / "new" / "out" / "a.png")
    assert record is not None
    assert (record.prompt, record.seed, record.drawing["guidance"], record.drawing["steps"]) == ("", 42, 7.5, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--outdir", "out"], "the following arguments are required: --indir"),
        (["--indir", "pairs"], "the following arguments are required: --outdir"),
        (["--indir", "nothing", "--outdir", "out"], "nothing is no folder"),
        (["--indir", "empty", "--outdir", "out"], "empty holds no mask"),
        (["--indir", "pairs", "--outdir", "out"], "b_mask.png has no picture beside it: there is no b.png"),
        (["--indir", "pairs", "--outdir", "empty/../pairs"], "is where the pictures come from"),
        (["--indir", "good", "--outdir", "empty/a.png"], "a.png is a file"),
        (["--indir", "good", "--outdir", "out", "--steps", "0"], "steps: should be greater than or equal to 1"),
        (["--indir", "good", "--outdir", "out", "--seed", "-1"], "seed"),
        (["--indir", "bad", "--outdir", "out"], "b_mask.png"),
    ],
)
def test_inpaint_mistakes(place: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    for folder in ("pairs", "good", "bad", "empty"):
        picture(place / folder / "a.png")
    for folder in ("pairs", "good", "bad"):
        hole(place / folder / "a_mask.png")
    hole(place / "pairs" / "b_mask.png")
    picture(place / "bad" / "b.png")
    (place / "bad" / "b_mask.png").write_text("white")
    before = files(place)
    assert call("inpaint", *flags) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") == 1
    assert files(place) == before
