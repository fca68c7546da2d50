"""Generative families side by side: tiny ones, trained, drawn from and judged; and what the configurations promise."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config, digits, judge_file
from torch import Tensor

from ldm.compare.drawers import GeneratorDrawer, PipelineDrawer, PriorDrawer
from ldm.compare.families import compare_families, count_families, mark_diverged, pictures_of
from ldm.compare.family_report import REAL, report
from ldm.compare.family_runs import rows_of
from ldm.compare.family_settings import FamilyComparison, FamilyDrawing
from ldm.compare.writing import markdown, write_report
from ldm.config import read_tree, validate
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.evaluate.distance import frechet_distance
from ldm.evaluate.features import open_features
from ldm.flops import Meter
from ldm.models.generator import Generator
from ldm.models.vae import AutoencoderKL
from ldm.weights.components import load_module
from ldm.weights.files import read_tensors
from ldm.weights.model import load_vae, resolve

ROOT = Path(__file__).parent.parent
COUNT = 12
_TRAIN = {"steps": 3, "batch_size": 4, "lr_warmup_steps": 0, "ema_decay": 0.5, "log_every": 1}
_DDIM = {"sampler": "ddim", "steps": 2}


def _configs(folder: Path) -> None:
    """A configuration of each family, as ``ldm train`` takes them."""
    vae = config("vae", folder / "runs" / "vae", loss={"adversarial": 0}, train=_TRAIN)
    pixel = config("toy", folder / "runs" / "pixel", process={"kind": "ddpm"}, prediction="epsilon", train=_TRAIN)
    pixel["data"]["size"] = 32
    latent = config("latent", folder / "runs" / "latent", condition={"kind": "none"}, sample=_DDIM, train=_TRAIN)
    latent["unet"]["cross_attention_dim"] = None
    latent["codec"]["path"] = vae["output"]
    lcm = {**{key: latent[key] for key in ("data", "train")}, "task": "lcm", "teacher": latent["output"]}
    lcm["output"] = str(folder / "runs" / "lcm")
    gan = {
        "task": "gan",
        "output": str(folder / "runs" / "gan"),
        "data": vae["data"],
        "generator": {"latent_dim": 8, "sample_size": 32, "channels": [8, 4]},
        "discriminator": {"layers": 2, "channels": 4},
        "train": _TRAIN,
    }
    for name, tree in {"vae": vae, "pixel": pixel, "latent": latent, "lcm": lcm, "gan": gan}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(tree))


def _comparison(folder: Path, *rows: dict[str, Any], **quality: Any) -> FamilyComparison:
    judge = folder / "judge.safetensors"
    tree = {
        "compare": "families",
        "output": str(folder / "compared"),
        "data": {"source": "mnist", "size": 32, "path": str(digits())},
        "held_out": 14,
        "quality": {"seeds": [0], "count": COUNT, "batch_size": 5, "features": [f"judge:{judge}"], **quality},
        "rows": list(rows),
    }
    return validate(tree, "tiny", FamilyComparison).beside(folder / "compare.yaml")


_ROWS: tuple[dict[str, Any], ...] = (
    {"name": "VAE", "train": ["vae.yaml"]},
    {"name": "GAN", "train": ["gan.yaml"]},
    {"name": "pixels", "train": ["pixel.yaml"], "draw": _DDIM},
    {"name": "latents", "train": ["vae.yaml", "latent.yaml"], "draw": _DDIM},
    {"name": "student", "train": ["vae.yaml", "latent.yaml", "lcm.yaml"], "draw": {"sampler": "lcm", "steps": 2}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("families")
    _configs(found)
    judge_file(found / "judge.safetensors")
    return found


@pytest.fixture(scope="module")
def told(folder: Path) -> FamilyComparison:
    return _comparison(folder, *_ROWS)


@pytest.fixture(scope="module")
def data(told: FamilyComparison) -> dict[str, Any]:
    return compare_families(told)


def _only_run(told: FamilyComparison, name: str) -> Path:
    return resolve(next((told.output / "runs").glob(f"{name}-0-*")))


# ------------------------------------------------------------------------------- a whole comparison


def test_every_row_is_trained_drawn_and_judged(data: dict[str, Any]) -> None:
    assert [*data["seeds"]] == [row["name"] for row in _ROWS]
    for row, (found,) in zip(_ROWS, data["seeds"].values(), strict=True):
        assert [one["title"] for one in found["trained"]] == [Path(path).stem for path in row["train"]]
        assert all(one["seconds"] > 0 for one in found["trained"])
        assert found["drawn"]["seconds"] > 0
        assert found["diverged"] is None


def test_rows_share_their_trainings(told: FamilyComparison, data: dict[str, Any]) -> None:
    assert len(data["seeds"]) == 5
    runs = sorted(path.name.rpartition("-")[0] for path in (told.output / "runs").iterdir())
    assert runs == ["gan-0", "latent-0", "lcm-0", "pixel-0", "vae-0"]


def _announced(printed: str) -> list[str]:
    """The stages that were worked on: lines of ``row |bar| 1/2 [0:01] title``."""
    return re.findall(r"\| \d+/\d+ \[\d+:\d+\] (.*)$", printed, re.MULTILINE)


def test_pictures_that_are_gone_are_drawn_again(
    folder: Path, data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "compared", tmp_path / "moved")
    told = _comparison(folder, _ROWS[1]).model_copy(update={"output": tmp_path / "moved"})
    gone = told.output / "drawn" / data["seeds"]["GAN"][0]["drawn"]["pictures"]
    before = gone.read_bytes()
    gone.unlink()
    capsys.readouterr()
    compare_families(told)
    assert _announced(capsys.readouterr().err) == ["counting", "GAN, seed 0: drawing"]
    assert gone.read_bytes() == before


def test_another_seed_is_all_that_is_done_for_another_seed(
    folder: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    more = compare_families(_comparison(folder, _ROWS[1], seeds=[0, 1]))
    stages = ["counting", "real pictures, seed 1", "gan, seed 1: training", "GAN, seed 1: drawing"]
    assert _announced(capsys.readouterr().err) == [*stages, "GAN, seed 1: judging"]
    first, second = more["seeds"]["GAN"]
    assert first == data["seeds"]["GAN"][0]
    assert second["metrics"] != first["metrics"]


def test_what_is_done_is_not_done_again(
    told: FamilyComparison, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    again = compare_families(told)
    assert _announced(capsys.readouterr().err) == []
    assert again == data


def test_distances_are_those_of_the_pictures_to_the_held_out(told: FamilyComparison, data: dict[str, Any]) -> None:
    network = open_features(told.quality.features[0], torch.device("cpu"))
    source = open_source(told.data)
    held = open_source(pictures_of(told).held_out)
    reference = network.describe(torch.stack([held.read(k).image for k in range(len(held))]))
    assert len(held) + 26 == len(source)
    for seeds in data["seeds"].values():
        for seed in seeds:
            pictures = read_tensors(told.output / "drawn" / seed["drawn"]["pictures"])["pictures"]
            assert pictures.shape == (COUNT, 1, 32, 32)
            expected = frechet_distance(network.describe(pictures), reference)
            assert seed["metrics"][0]["value"] == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------ drawing


def _drawers(told: FamilyComparison) -> dict[str, Any]:
    return {
        "VAE": PriorDrawer(_only_run(told, "vae")),
        "GAN": GeneratorDrawer(_only_run(told, "gan")),
        "pixels": PipelineDrawer(_only_run(told, "pixel"), FamilyDrawing(**_DDIM)),
        "latents": PipelineDrawer(_only_run(told, "latent"), FamilyDrawing(**_DDIM)),
        "student": PipelineDrawer(_only_run(told, "lcm"), FamilyDrawing(sampler="lcm", steps=2)),
    }


def test_a_picture_depends_on_its_own_seed_alone(told: FamilyComparison, data: dict[str, Any]) -> None:
    for drawer in _drawers(told).values():
        both, one = drawer.draw([3, 5]), drawer.draw([5])
        torch.testing.assert_close(both[1:], one, rtol=0, atol=0.02)
        assert (both[0] - both[1]).abs().max() > 0.02


def test_operations_on_paper_are_those_of_drawing(told: FamilyComparison, data: dict[str, Any]) -> None:
    for name, drawer in _drawers(told).items():
        meter = Meter()
        with meter.running():
            drawer.draw([0])
        assert data["counted"][name]["picture"] == pytest.approx(meter.flops, rel=0.01), name


def _near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=0.1)  # one of them may be in 16 bits


def test_an_autoencoder_decodes_standard_normal_latents(told: FamilyComparison, data: dict[str, Any]) -> None:
    vae: AutoencoderKL = load_vae(_only_run(told, "vae"))
    assert vae.config.scaling_factor != 1  # which a prior knows nothing of
    with torch.no_grad():
        latents = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (7, 8)])
        _near(PriorDrawer(_only_run(told, "vae")).draw([7, 8]), vae.decode(latents))


def test_a_generator_is_given_the_vectors_of_the_seeds(told: FamilyComparison, data: dict[str, Any]) -> None:
    generator = load_module(_only_run(told, "gan") / "generator")
    assert isinstance(generator, Generator)
    with torch.no_grad():
        vectors = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in (7, 8)])
        _near(GeneratorDrawer(_only_run(told, "gan")).draw([7, 8]), generator(vectors))


# --------------------------------------------------------------------------------------- divergence


def _seeds(*distances: float) -> list[dict[str, Any]]:
    return [{"metrics": [{"name": "Fréchet distance", "value": value}]} for value in distances]


def test_a_seed_that_is_far_from_the_median_has_diverged() -> None:
    seeds = [*_seeds(1.0, 1.2, 2.5), {"diverged": "not finite"}]
    mark_diverged(seeds, 2.0)
    assert [seed["diverged"] for seed in seeds] == [None, None, "2.1 times the median distance", "not finite"]


def test_a_training_that_is_not_finite_is_counted_and_not_drawn_from(folder: Path) -> None:
    tree = json.loads((folder / "pixel.yaml").read_text())
    tree["train"] = {**_TRAIN, "learning_rate": 1e30}
    (folder / "wild.yaml").write_text(json.dumps(tree))
    told = _comparison(folder, {"name": "wild", "train": ["wild.yaml"], "draw": _DDIM}, _ROWS[2], seeds=[0])
    data = compare_families(told)
    (wild,) = data["seeds"]["wild"]
    assert "not finite" in wild["diverged"]
    assert "drawn" not in wild
    assert "1 of 1" in next(line for line in markdown(report(data)).splitlines() if line.startswith("| wild"))


# ----------------------------------------------------------------------------------------- the report


def test_the_report_shows_every_row(told: FamilyComparison, data: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, report(data, told.output), data)
    text = (tmp_path / "report.md").read_text()
    for name in (REAL, *data["seeds"]):
        assert f"| {name} |" in text
    assert len(list(tmp_path.glob("drawn_*.png"))) == 6
    with (tmp_path / "results.csv").open() as file:
        figures = list(csv.DictReader(file))
    (distance,) = (one for one in figures if (one["row"], one["what"]) == ("GAN", "Fréchet distance"))
    assert float(distance["value"]) == data["seeds"]["GAN"][0]["metrics"][0]["value"]
    assert distance["of"] == "seed 0"
    assert json.loads((tmp_path / "results.json").read_text())["seeds"]["GAN"][0]["trained"]


def test_a_dry_run_counts_the_same_and_trains_nothing(folder: Path, data: dict[str, Any], tmp_path: Path) -> None:
    told = _comparison(folder, *_ROWS).model_copy(update={"output": tmp_path / "out"})
    counted = count_families(told)
    assert counted["counted"] == data["counted"]
    assert "student" in markdown(report(counted))
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- configurations


def test_the_families_of_the_repository_are_of_one_size() -> None:
    file = ROOT / "configs" / "compare" / "families.yaml"
    told = validate(
        read_tree(file, [f"data.path={digits()}", "held_out=20", "quality.count=20", "quality.batch_size=20"]),
        str(file),
        FamilyComparison,
    )
    sizes = [row.parameters()[0] for row in rows_of(told.beside(file), pictures_of(told))]
    assert len(sizes) == 8
    assert max(sizes) < 1.1 * min(sizes)
    assert 1.8e6 < min(sizes) < 2.2e6


def _changed(folder: Path, name: str, **changes: Any) -> None:
    tree = json.loads((folder / f"{name}.yaml").read_text())
    (folder / f"odd_{name}.yaml").write_text(json.dumps({**tree, **changes}))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"train": ["latent.yaml"], "draw": _DDIM}, ["codec.path", "no configuration before it"]),
        ({"train": ["vae.yaml", "lcm.yaml"], "draw": _DDIM}, ["teacher", "no configuration before it"]),
        ({"train": ["gan.yaml", "vae.yaml"]}, ["vae.yaml does not begin from", "gan.yaml"]),
        ({"train": ["pixel.yaml"]}, ["`draw` says"]),
        ({"train": ["gan.yaml"], "draw": _DDIM}, ["`draw` is of diffusion models"]),
        ({"train": ["odd_gan.yaml"]}, ["sample_size is 28", "32 x 32"]),
        ({"train": ["odd_pixel.yaml"], "draw": _DDIM}, ["condition.kind is label"]),
        ({"train": ["nowhere.yaml"]}, ["nowhere.yaml"]),
    ],
)
def test_mistakes_are_told(folder: Path, row: dict[str, Any], words: Sequence[str]) -> None:
    _changed(folder, "gan", generator={"latent_dim": 8, "sample_size": 28, "channels": [8, 4]})
    _changed(folder, "pixel", condition={"kind": "label", "classes": 10})
    with pytest.raises(UserError) as error:
        count_families(_comparison(folder, {"name": "odd", **row}))
    assert all(word in str(error.value) for word in words), str(error.value)
