"""A comparison of codecs: counted, timed, judged, kept stage by stage, and written."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import own_processes
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ldm.cli import app
from ldm.compare.codecs import DRAWING, ENCODING, TRAINING, compare_codecs, count_codecs, pictures_of
from ldm.compare.counted import asks_of
from ldm.compare.equal import Point, spent_for
from ldm.compare.isolated import in_own_process
from ldm.compare.ready import NOWHERE, make_ready
from ldm.compare.report import report_of
from ldm.compare.results import DISTANCE, FLOPS, SECONDS, Results
from ldm.compare.rows import rows_of
from ldm.compare.settings import CodecComparison, DrawingConfig
from ldm.compare.stages import Stages
from ldm.compare.timed import Timing, time_drawing, time_training
from ldm.compare_command import read_comparison
from ldm.diffusion.settings import ProcessConfig
from ldm.errors import UserError
from ldm.models.unet import UNet

ROOT = Path(__file__).parent.parent
VAE = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "layers_per_block": 1, "norm_num_groups": 4}
TINY: dict[str, Any] = {
    "compare": "codecs",
    "data": {"source": "mnist", "size": 32, "limit": 240},
    "held_out": 40,
    "unet": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "attention": [False, True],
        "num_attention_heads": 2,
        "cross_attention_dim": None,
        "norm_num_groups": 4,
    },
    "draw": {"sampler": "dpm++_2m", "steps": 2},
    "train": {"steps": 4, "batch_size": 8, "lr_warmup_steps": 1, "log_every": 2, "ema_decay": 0.5},
    "quality": {"seeds": [0], "points": 2, "count": 12, "batch_size": 6, "judge": {"epochs": 10, "batch_size": 100}},
    "timing": None,
    "vae": {
        "loss": {"adversarial": 0},
        "scale_from": 16,
        "train": {"steps": 3, "batch_size": 8, "lr_warmup_steps": 1, "log_every": 1},
    },
    "rows": [
        {"name": "pixels"},
        {"name": "f = 4", "codec": {"kind": "new", "vae": {**VAE, "block_out_channels": [4, 8, 8]}}},
    ],
}


def tiny(folder: Path, **changes: Any) -> CodecComparison:
    return CodecComparison.checked(json.loads(json.dumps({**TINY, "output": str(folder), **changes})))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CliRunner, Any]:
    """The tiny comparison, made by the command."""
    folder = tmp_path_factory.mktemp("compared")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output": str(folder / "out")}))
    found = CliRunner().invoke(app, ["compare", str(config)])
    assert found.exit_code == 0, found.output
    return folder / "out", CliRunner(), found


# ------------------------------------------------------------------------------- counted


CONVOLUTIONS = {**TINY["unet"], "attention": [False, False], "mid_attention": False}


def test_operations_of_training_are_those_that_a_step_takes(tmp_path: Path) -> None:
    """Counted on paper, against torch's counter on a real forward and backward pass of the same network."""
    told = tiny(tmp_path, unet=CONVOLUTIONS)
    row = rows_of(told, pictures_of(told))[0]
    found = count_codecs(told)["counted"]["pixels"]
    net = UNet(row.shape.net)  # pyright: ignore[reportArgumentType]
    assert found["parameters"]["U-Net"] == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(8, 1, 32, 32), torch.zeros(8)).sum().backward()
    assert found["training"]["U-Net"] == pytest.approx(counter.get_total_flops() / 8, rel=0.01)
    assert found["numbers"] == 32 * 32


def test_latents_are_counted_at_their_size(tmp_path: Path) -> None:
    found = count_codecs(tiny(tmp_path, unet=CONVOLUTIONS))["counted"]
    latent = found["f = 4"]
    assert (latent["factor"], latent["numbers"]) == (4, 2 * 8 * 8)
    # all but what reads the time does as much work for every place, of which there are 16 times fewer
    assert found["pixels"]["training"]["U-Net"] / latent["training"]["U-Net"] == pytest.approx(16, rel=0.05)
    assert latent["vae_training"] > 3 * 8 * 3 * latent["encoding"]  # forward and backward, and the decoder too
    assert latent["drawing"]["VAE decoder"] > 0
    assert "VAE decoder" not in found["pixels"]["drawing"]


@pytest.mark.parametrize(
    ("sampler", "steps", "asked"), [("ddim", 7, 7), ("dpm++_2m", 5, 5), ("heun", 5, 9), ("euler", 3, 3)]
)
def test_a_network_is_asked_as_often_as_its_sampler_says(sampler: str, steps: int, asked: int) -> None:
    assert asks_of(DrawingConfig(sampler=sampler, steps=steps), ProcessConfig(), "epsilon") == asked


def test_guidance_asks_twice(tmp_path: Path) -> None:
    labelled = {"condition": {"kind": "label", "classes": 10}, "unet": {**TINY["unet"], "cross_attention_dim": 8}}
    plain = count_codecs(tiny(tmp_path, **labelled))["counted"]["pixels"]["drawing"]["U-Net"]
    guided = count_codecs(tiny(tmp_path, draw={"steps": 2, "guidance": 2.0}, **labelled))["counted"]["pixels"]
    assert guided["drawing"]["U-Net"] == 2 * plain


# --------------------------------------------------------------------------------- timed


def test_what_is_timed_is_what_was_counted(tmp_path: Path) -> None:
    told = tiny(tmp_path)
    material = pictures_of(told)
    ready = [make_ready(row, material.as_told(), Stages(tmp_path, 9)) for row in rows_of(told, material)]
    counted = count_codecs(told)["counted"]
    timing = Timing(2, 4, 1, told.draw)
    for one in ready:
        found = time_training(one.run(tmp_path / NOWHERE, 0, 4), timing)
        assert found["flops"] == pytest.approx(counted[one.row.name]["training"]["U-Net"] * 8, rel=0.01)
        assert 0 <= found["waited"] < found["seconds"]
        drawn = time_drawing(one.run(tmp_path / NOWHERE, 0, 4, cached=False), timing)
        assert drawn["seconds"] > drawn["decoding"] >= 0
        assert (drawn["decoding"] > 0) == (one.vae is not None)
    encoding = time_training(ready[1].run(tmp_path / NOWHERE, 0, 4, cached=False), timing)["flops"]
    whole = counted["f = 4"]["training"]["U-Net"] + counted["f = 4"]["encoding"]
    assert encoding == pytest.approx(whole * 8, rel=0.01)


def test_memory_is_that_of_the_work_alone() -> None:
    held = bytearray(2**30)  # what this process holds is no matter to another
    held[::4096] = b"x" * len(held[::4096])
    assert 700 < in_own_process("holding", own_processes.hold, 700) < 1000
    del held


def test_faults_of_a_process_of_its_own_are_told() -> None:
    with pytest.raises(UserError, match=r"^failing: this cannot be$"):
        in_own_process("failing", own_processes.fail)
    with pytest.raises(UserError, match="dying: the process was killed"):
        in_own_process("dying", own_processes.die)


# -------------------------------------------------------------------------------- stages


def test_a_stage_is_done_once_and_again_where_it_depends_on_something_else(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> dict[str, Any]:
        done.append(name)
        return {"found": len(done)}

    assert Stages(tmp_path, 1).find("a = 1", {"x": 1}, work) == {"found": 1}
    assert Stages(tmp_path, 1).find("a = 1", {"x": 1}, work) == {"found": 1}
    assert Stages(tmp_path, 1).find("a = 1", {"x": 2}, work) == {"found": 2}
    assert len(set(done)) == 2


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def work(_: str) -> dict[str, Any]:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        Stages(tmp_path, 1).find("a", {}, work)
    assert not [*tmp_path.rglob("*.json*")]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    Stages(tmp_path, 1).find("a", {}, lambda _: {"found": 1})
    [place] = tmp_path.rglob("*.json")
    place.write_text('{"found"')
    with pytest.raises(UserError, match=re.escape(str(place))):
        Stages(tmp_path, 1).find("a", {}, lambda _: {"found": 1})


def test_a_result_whose_files_are_gone_is_found_again(tmp_path: Path) -> None:
    def work(_: str) -> dict[str, Any]:
        (tmp_path / "made").touch()
        return {"file": "made"}

    for _ in range(2):
        Stages(tmp_path, 1).find("a", {}, work, needs=lambda found: [tmp_path / found["file"]])
        assert (tmp_path / "made").is_file()
        (tmp_path / "made").unlink()


# -------------------------------------------------------------------------------- figures


def made_up(**timed: Any) -> Results:
    """Two rows that learn as 100 / steps and 40 / steps; a step of the second takes a quarter of the operations."""

    def points(scale: float) -> list[dict[str, Any]]:
        metrics = [
            [{"name": DISTANCE, "features": f, "value": scale / s * k} for k, f in ((1, "a"), (7, "b"))]
            for s in (1, 2, 4)
        ]
        return [{"step": s, "metrics": found} for s, found in zip((1, 2, 4), metrics, strict=True)]

    counted = {"training": {"U-Net": 4.0}, "drawing": {"U-Net": 8.0}, "encoding": 0, "vae_training": 0}
    latent = {"training": {"U-Net": 1.0}, "drawing": {"U-Net": 2.0}, "encoding": 1, "vae_training": 20}
    return Results(
        {
            "rows": ["pixels", "latents"],
            "asked": {"train": {"batch_size": 1, "gradient_accumulation": 1}},
            "counted": {"pixels": counted, "latents": latent},
            "caches": {"latents": {"pictures": 10, "seconds": 1.0, "bytes": 1}},
            "autoencoders": {"latents": {"seconds": 2.0}},
            "quality": {
                "real": {"metrics": [{"name": DISTANCE, "features": f, "value": 0.1} for f in ("a", "b")]},
                "points": {"pixels": [points(100)] * 2, "latents": [points(40)] * 2},
            },
            "timed": None,
            **timed,
        }
    )


def test_what_is_saved_is_counted_to_where_both_first_were_there() -> None:
    """Pixels come to 25 after 4 steps of 4 operations; latents after 1.6 steps of 1."""
    results = made_up()
    found = results.saved("latents", FLOPS)
    assert found is not None
    assert found.times.mean == pytest.approx(16 / 1.6)
    assert not found.at_least
    whole = results.saved("latents", FLOPS, all_in=True)  # 20 of its VAE and 10 of its latents before
    assert whole is not None
    own = [Point(30 + s, 40 / s) for s in (1, 2, 4)]
    assert whole.times.mean == pytest.approx(16 / spent_for(own, 25))  # type: ignore[operator]
    base = results.saved("pixels", FLOPS)
    assert base is not None
    assert base.times.mean == 1
    assert results.saved("latents", SECONDS) is None  # nothing was timed


def test_the_base_with_the_means_of_a_row() -> None:
    """All of the latents' training is 4 operations, which are one step of pixels."""
    found = made_up().base_at("latents", FLOPS)
    assert found is not None
    assert found.mean == pytest.approx(100)


def test_networks_are_not_mixed_up() -> None:
    results = made_up()
    assert results.networks == ["a", "b"]
    assert results.measured("pixels", DISTANCE, -1).mean == 25
    assert results.measured("pixels", DISTANCE, -1, "b").mean == 175


def test_ratios_of_times_are_within_turns() -> None:
    def turn(slow: float) -> dict[str, Any]:
        rows = {
            "pixels": {"training": {"seconds": 8 * slow, "samples": 2}},
            "latents": {"training": {"seconds": slow, "samples": 1}},
        }
        return {"peak": 1.0, "others": 0.0, "rows": rows}

    results = made_up(timed=[turn(1), turn(3)])
    assert results.times_faster("latents", TRAINING) == (4.0, 0.0, 2)
    assert results.times_faster("latents", DRAWING) is None
    assert results.training_seconds("latents") == 2


def test_what_was_timed_is_told(tmp_path: Path) -> None:
    """Made-up times of the tiny comparison, twice as long in the second turn."""

    def turn(slow: float) -> dict[str, Any]:
        def row(times: float) -> dict[str, Any]:
            held = {"memory": 300 * times, "beyond": 100.0, "reserved": None}
            training = {"seconds": slow * times, "waited": 0.0, "samples": 8, "flops": 4e9 * times, **held}
            drawing = {"seconds": slow * times, "decoding": 0.25 * slow, "together": 4, **held}
            return {TRAINING: training, DRAWING: drawing}

        latent = row(0.5)
        encoding = {**latent[TRAINING], "seconds": 0.8 * slow}
        rows = {"pixels": row(1.0), "f = 4": {**latent, ENCODING: encoding}}
        return {"peak": 8e9, "others": 0.2, "rows": rows}

    ratio = {"where": "a paper", "row": "f = 4", "base": "pixels", "what": "training", "ratio": 2.9}
    told = tiny(tmp_path, timing={"rounds": 2}, published=[ratio])
    data = {**count_codecs(told), "machine": {}, "timed": [turn(1.0), turn(2.0)], "quality": None}
    report = report_of(data, tmp_path)
    tables = {name: table for section in report.sections for name, table in section.tables.items()}
    assert tables["saving"].rows[1][2] == "2 ± 0x"  # in each turn
    assert tables["saving"].rows[1][4] == "1.25 ± 0x"
    assert tables["timed"].rows[0][1] == "6 ± 2.8"  # 8 and 4 pictures a second
    assert tables["timed"].rows[0][7] == "300 (100)"
    assert any("20% of the processors" in note for note in tables["timed"].notes)
    assert [row[1:3] for row in tables["published"].rows] == [["2.9x", "1.25 ± 0x"], ["2.9x", "2 ± 0x"]]
    assert report.sections[1].plots["cost"][1].png.startswith(b"\x89PNG")


# ----------------------------------------------------------------------------- the whole


def test_all_numbers_are_written(compared: Any) -> None:
    folder, _, _ = compared
    data = json.loads((folder / "results.json").read_text())
    results = Results(data)
    assert results.names == ["pixels", "f = 4"]
    assert results.marks == [2, 4]
    for name in results.names:
        for k in range(2):
            assert results.measured(name, DISTANCE, k).mean > 0
    assert data["quality"]["ceilings"].keys() == {"f = 4"}
    figures = [*csv.DictReader((folder / "results.csv").read_text().splitlines())]
    for figure in figures:
        float(figure["value"])
    distances = [f for f in figures if f["what"] == DISTANCE and f["row"] == "f = 4"]
    assert [f["of"] for f in distances] == ["seed 0, 2 steps", "seed 0, 4 steps"]
    assert float(distances[1]["value"]) == results.measured("f = 4", DISTANCE, 1).mean
    assert (folder / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_beside_it(compared: Any) -> None:
    folder, _, _ = compared
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") >= 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name in re.findall(r"\]\((.+?\.png)\)", (folder / "report.md").read_text()):
        assert (folder / name).is_file()


def test_what_was_done_is_not_done_again_and_more_seeds_change_nothing(compared: Any) -> None:
    """Another seed beside the first: the first's numbers are those of the first comparison, to the last digit."""
    folder, _, _ = compared
    before = json.loads((folder / "results.json").read_text())
    stages = {path: path.stat().st_mtime_ns for path in (folder / "stages").iterdir()}
    found = compare_codecs(tiny(folder, quality={**TINY["quality"], "seeds": [0, 1]}))
    assert all(path.stat().st_mtime_ns == time for path, time in stages.items())
    assert len([*(folder / "stages").iterdir()]) == len(stages) + 4  # two rows, two points
    for name, points in found["quality"]["points"].items():
        assert points[0] == before["quality"]["points"][name][0]
        assert points[1][0]["metrics"] != points[0][0]["metrics"]


def test_a_model_on_the_way_is_trained_again_where_its_run_went_on(compared: Any) -> None:
    """Its model is gone, and its run is further: it begins anew, and comes to the same."""
    folder, _, _ = compared
    data = json.loads((folder / "results.json").read_text())
    point = data["quality"]["points"]["f = 4"][0][0]
    [stage] = [
        p for p in (folder / "stages").iterdir() if json.loads(p.read_text())["found"].get("model") == point["model"]
    ]
    stage.unlink()
    model = folder / "models" / point["model"]
    weights = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    import shutil

    shutil.rmtree(model)
    again = compare_codecs(tiny(folder))
    assert again["quality"]["points"]["f = 4"][0][0] == point
    assert (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights


NOISE = {"data": None, "side": 16, "held_out": None, "quality": None, "vae": None}


@pytest.mark.slow  # five processes, each of which imports torch
def test_time_is_taken_of_every_row_in_every_turn(tmp_path: Path) -> None:
    """The command, on pictures of noise; after a dry run, which must not stand in its way."""
    unet = {"block_out_channels": [4], "attention": [False], "mid_attention": False, "layers_per_block": 1}
    unet |= {"norm_num_groups": 2, "cross_attention_dim": None}
    vae = {"block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False}
    rows = [{"name": "pixels"}, {"name": "f = 2", "codec": {"kind": "new", "vae": vae}}]
    ratio = {"where": "a paper", "row": "f = 2", "base": "pixels", "what": "training", "ratio": 2.9}
    timing = {"rounds": 1, "steps": 1, "batch_size": 2, "draw_steps": 1, "encoding": False}
    told = {**TINY, **NOISE, "unet": unet, "rows": rows, "timing": timing, "published": [ratio]}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**told, "output": str(tmp_path / "out")}))
    assert CliRunner().invoke(app, ["compare", str(config), "--dry-run"]).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    found = CliRunner().invoke(app, ["compare", str(config)])
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    [turn] = data["timed"]
    assert turn["peak"] > 1e8
    for name in ("pixels", "f = 2"):
        assert turn["rows"][name].keys() == {TRAINING, DRAWING}
        assert turn["rows"][name][TRAINING]["samples"] == 8
    assert "a paper" in found.output
    assert ENCODING not in turn["rows"]["f = 2"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output": str(tmp_path / "out")}))
    found = CliRunner().invoke(app, ["compare", str(config), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "GFLOPs of a picture" in found.output
    assert "![" not in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs" / "compare").iterdir()))
def test_the_configurations_that_come_with_it_are_valid(name: str) -> None:
    read_comparison(ROOT / "configs" / "compare" / name, [])


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "two rows are named 'a'"),
        ({"unet": {**TINY["unet"], "in_channels": 3}}, "in_channels follows from what is diffused"),
        ({"train": {**TINY["train"], "lr_schedule": "cosine"}}, "train.lr_schedule should be constant"),
        ({"quality": {**TINY["quality"], "points": 4}}, "quality.points 4 is too many for 4 steps"),
        ({"held_out": 0}, "held_out"),
        ({"held_out": TINY["data"]}, "held_out should be other pictures"),
        ({"held_out": None}, "quality needs `data` to train on and `held_out` to compare with"),
        ({"data": None, "held_out": None, "quality": None, "timing": {}}, "give `data`, or the `side`"),
        ({"quality": None, "held_out": None}, "neither quality nor timing"),
        ({"vae": None}, "quality needs trained VAEs"),
        ({"quality": {"seeds": [0]}}, "quality needs a network to compare pictures in"),
        (
            {"published": [{"where": "x", "row": "b", "base": "a", "what": "training", "ratio": 2}]},
            "no row is named 'b'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_done(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output": str(tmp_path / "out"), **changes}))
    with pytest.raises(UserError, match=re.escape(told)):
        read_comparison(config, [])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    config = tmp_path.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**TINY, "output": str(tmp_path)}))
    found = CliRunner().invoke(app, ["compare", str(config)])
    assert isinstance(found.exception, UserError)
    assert "holds something that is no comparison" in str(found.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quality": {**TINY["quality"], "count": 201}}, "quality.count is 201"),
        (
            {"condition": {"kind": "label", "classes": 10}},
            "pixels: condition.kind label needs unet.cross_attention_dim",
        ),
        ({"held_out": 5}, "should have 10 pictures each"),
    ],
)
def test_what_hours_of_training_would_end_in_is_told_at_once(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    comparison = tiny(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(told)):
        rows_of(comparison, pictures_of(comparison))
    assert not [*tmp_path.iterdir()]


def test_pictures_that_no_vae_divides_are_refused(tmp_path: Path) -> None:
    told = tiny(tmp_path, data={"source": "mnist", "size": 30, "limit": 240})
    with pytest.raises(UserError, match="f = 4: pictures of 30 x 30 are no multiple of 4"):
        rows_of(told, pictures_of(told))
