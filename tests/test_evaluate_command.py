"""Whole evaluations: what they find beside a computation by hand, what they write, and what they refuse."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_lab import asked, clip_folder, numbers, value
from PIL import Image
from several_runs import launch
from test_evaluate_numbers import frechet
from tiny_models import fill, written
from tiny_runs import digits, judge_file
from transformers import CLIPModel, CLIPTokenizer

import ldm
from ldm.data.folder import FolderConfig
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.data.user_cache import keep
from ldm.errors import UserError
from ldm.evaluate.drawn import requests
from ldm.evaluate.features import open_features
from ldm.evaluate.reference import RealPictures, read_data
from ldm.evaluate_command import evaluate_model, several
from ldm.images import to_bytes, to_signed
from ldm.models.judge import DigitJudge
from ldm.training.parallel import Team

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    written("text", folder / "text")
    written("label", folder / "label")
    judge_file(folder / "judge.safetensors")
    clip_folder(folder / "clip_run")
    shutil.copytree(folder / "text" / "vae", folder / "vae" / "vae")
    (folder / "vae" / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ldm" / "features"


def data(**changes: Any) -> dict[str, Any]:
    return {"source": "mnist", "path": str(digits()), "size": 32, "captions": True, **changes}


def whole(lab: Path, output: Path, **changes: Any) -> Any:
    """Everything at once."""
    settings = {
        "features": [f"judge:{lab / 'judge.safetensors'}"],
        "clip": str(lab / "clip_run"),
        "reconstruction": True,
        "steps": [2, 3],
        "guidance": [1.0, 2.0],
        "floor": data(),
        **changes,
    }
    return asked(lab / "text", data(), output, **settings)


@pytest.fixture(scope="module")
def evaluated(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        evaluate_model(whole(lab, base / "report"))
    return base / "report"


# ------------------------------------------------------------------------------ the numbers


@pytest.fixture(scope="module")
def source() -> MnistSource:
    return MnistSource(MnistConfig(path=digits(), size=32, captions=True))


def test_the_distance_of_a_setting_by_hand(lab: Path, evaluated: Path, source: MnistSource) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()[:10]
    captions = [source.captions[i][k % len(source.captions[i])] for k, i in enumerate(order)]
    studio = ldm.load(lab / "text", device="cpu", dtype="fp32")
    images = studio.generate(captions, list(range(10)), steps=3, guidance=2.0, prompt_syntax="plain")
    judge = DigitJudge.load(lab / "judge.safetensors")
    drawn, real = (judge.describe(x).double().numpy() for x in (to_signed(to_bytes(images)), to_signed(source.images)))
    (setting,) = [s for s in numbers(evaluated)["settings"] if (s["steps"], s["guidance"]) == (3, 2.0)]
    assert value(setting, "Fréchet distance") == pytest.approx(frechet(drawn, real), rel=1e-3)
    wanted = torch.tensor([source.labels[i] for i in order])
    accuracy = (judge.classify(to_signed(to_bytes(images))) == wanted).double().mean()
    assert value(setting, "class accuracy") == pytest.approx(float(accuracy))
    clip, tokenizer = (
        CLIPModel.from_pretrained(lab / "clip_run" / "clip").eval(),
        CLIPTokenizer.from_pretrained(lab / "clip_run" / "tokenizer"),
    )
    tokens = tokenizer(captions, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        out = clip(input_ids=tokens, pixel_values=to_signed(to_bytes(images)))
    score = 100 * (out.image_embeds * out.text_embeds).sum(1).clamp(min=0).mean()
    assert value(setting, "CLIP score") == pytest.approx(float(score), rel=1e-4)


def test_what_an_autoencoder_loses_by_hand(lab: Path, evaluated: Path, source: MnistSource) -> None:
    vae = ldm.load(lab / "text", device="cpu", dtype="fp32").model.codec.vae  # pyright: ignore[reportAttributeAccessIssue]
    real = to_signed(source.images)
    with torch.no_grad():
        mean, logvar = vae.encode(real).double().chunk(2, dim=1)
        decoded = vae.decode(mean.float()).clamp(-1, 1)
    found = numbers(evaluated)["reconstruction"]
    a, b = (((x.double() + 1) / 2)[:, 0].numpy() for x in (decoded, real))
    psnr = -10 * np.log10(((a - b) ** 2).mean((1, 2)))
    assert value(found, "PSNR") == pytest.approx(psnr.mean(), rel=1e-4)
    similar = np.mean([structural_similarity(x, y) for x, y in zip(a, b, strict=True)])
    assert value(found, "SSIM") == pytest.approx(similar, rel=1e-4)
    judge = DigitJudge.load(lab / "judge.safetensors")
    seen, back = (judge.describe(to_signed(to_bytes(x))).double() for x in (real, decoded))
    perceived = (back - seen).norm(dim=1).mean() / (seen.roll(1, 0) - seen).norm(dim=1).mean()
    assert value(found, "perceptual distance", "digit judge") == pytest.approx(float(perceived), rel=1e-3)
    latents, scale = found["latents"], vae.config.scaling_factor
    noise = torch.randn(500, *mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = scale * (mean + (logvar / 2).exp() * noise)
    assert latents["mean"] == pytest.approx((scale * mean).mean((0, 2, 3)).tolist(), abs=1e-5)
    assert latents["std"] == pytest.approx(drawn.std((0, 1, 3, 4)).tolist(), rel=0.01)
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert latents["kl"] == pytest.approx(float(divergence.sum((1, 2, 3)).mean()), rel=1e-4)
    assert latents["values"] == mean[0].numel()


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, with the usual window."""
    from scipy.ndimage import gaussian_filter

    def smooth(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="mirror", truncate=3.5)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b, both = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2, smooth(a * b) - mean_a * mean_b
    first, second = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + first) * (2 * both + second)
    return float((above / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second))).mean())


def test_real_pictures_come_first_and_are_close_to_themselves(evaluated: Path) -> None:
    found = numbers(evaluated)
    assert [(s["steps"], s["guidance"]) for s in found["settings"]] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    real, drawn = (value(x, "Fréchet distance") for x in (found["real"], found["settings"][0]))
    assert 0 < real < drawn  # ten of the forty against the forty
    assert value(found["real"], "precision") == 1
    two, guided_two, three, guided_three = (setting["flops_per_picture"] for setting in found["settings"])
    assert guided_two > 1.2 * two  # guided, the network is called twice as often
    assert guided_three - guided_two == pytest.approx(2 * (three - two), rel=0.01)


def test_the_report_names_networks_and_numbers_and_needs_nothing_beside_it(evaluated: Path) -> None:
    names = {path.name for path in evaluated.iterdir()}
    sheets = {"drawn_1.png", "drawn_2.png", "drawn_3.png", "drawn_4.png", "reconstruction.png"}
    assert names == {"evaluation.json", "report.md", "report.html", "pareto.png", "classes.png", "latents.png", *sheets}
    for name in names - {"evaluation.json", "report.md", "report.html"}:
        with Image.open(evaluated / name) as image:
            assert min(image.size) > 60
    text, page = ((evaluated / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    found = numbers(evaluated)
    for name in {metric["features"] for metric in found["settings"][0]["metrics"]}:
        assert name in text
        assert html.escape(name) in page
    assert "n = 10 against 40" in text
    assert "the first pictures: ddim, 3 steps, guidance 1\n\n![drawn_3](drawn_3.png)" in text
    assert f"{value(found['settings'][2], 'Fréchet distance'):.4g}" in text
    assert "FID" not in text + re.sub('base64,[^"]*', "", page)
    assert set(re.findall(r'src="(\w+:)', page)) == {"data:"}


# ------------------------------------------------------------------------------ again, and by several


def test_the_same_evaluation_by_one_process_and_by_two(lab: Path, evaluated: Path, tmp_path: Path) -> None:
    wanted = whole(lab, tmp_path / "report", workers=1)
    (tmp_path / "asked.json").write_text(json.dumps({**asdict(wanted), "output": str(wanted.output)}))
    script = Path(__file__).with_name("evaluate_lab.py")
    with pytest.MonkeyPatch.context() as patch:  # nothing is known beforehand
        patch.setitem(launch.__globals__["ENVIRONMENT"], "XDG_CACHE_HOME", str(tmp_path / "cache"))
        said, _ = (
            process := launch("--standalone", "--nproc-per-node", "2", str(script), str(tmp_path / "asked.json"))
        ).communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["made"]["processes"] == 2
    assert numbers(tmp_path / "report") == numbers(evaluated)
    assert said.count("# Evaluation") == 1


def known(lab: Path, real: RealPictures, judge: str = "judge.safetensors") -> torch.Tensor:
    found = real.features([open_features(f"judge:{lab / judge}", CPU)], CPU, Team(0, 1))
    assert found is not None
    return found[0]


def test_what_is_known_of_the_reference_is_not_found_again(lab: Path, cache: Path, source: MnistSource) -> None:
    real = RealPictures(source, (32, 32))
    first = known(lab, real)
    judge = DigitJudge.load(lab / "judge.safetensors")
    torch.testing.assert_close(first, judge.features(to_signed(source.images)))
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    head, _, floats = content[16:].partition(b"\n")
    keep(kept, head + b"\n" + bytes(len(floats)))  # whole, and wrong: only who reads it comes to something else
    assert not known(lab, real).any()
    for damage in (content[:-1], content[:50] + b"?" + content[51:], b""):
        kept.write_bytes(damage)
        assert torch.equal(known(lab, real), first)
        assert kept.read_bytes() == content
    fill(judge).save(lab / "other.safetensors")
    assert not torch.allclose(known(lab, real, "other.safetensors"), first)
    assert not torch.equal(known(lab, RealPictures(source, (28, 28))), first)
    assert torch.equal(
        known(lab, RealPictures(source, (32, 32), count=5, seed=1)),
        first[torch.randperm(40, generator=torch.Generator().manual_seed(1))[:5]],
    )
    assert torch.equal(known(lab, real), first)


def test_pictures_that_change_are_looked_at_again(lab: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")

    def found() -> torch.Tensor:
        return known(lab, RealPictures.at(FolderConfig(path=folder, colours="grey"), (32, 32)))

    before = found()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "3.png")
    changed = (found() != before).any(1)
    assert changed.tolist() == [k == 3 for k in range(8)]
    assert len([*cache.iterdir()]) == 1  # in the place of what was known before


# ------------------------------------------------------------------------------ what is asked for


def test_conditions_are_as_frequent_as_in_the_reference() -> None:
    real = RealPictures(MnistSource(MnistConfig(path=digits())), (28, 28))
    found = requests(real, "label", 100, seed=3)
    labels = [real.words(i).label for i in range(40)]
    assert sorted(one.condition for one in found[:40]) == sorted(labels)  # type: ignore[type-var]
    assert [one.condition for one in found[:40]] != labels
    assert found[40:80] == found[:40]
    assert all(one.condition == one.label for one in found)
    assert {one.condition for one in requests(real, "none", 5, 0)} == {None}


def test_pictures_come_to_the_size_of_the_model_whoever_opens_them() -> None:
    source = MnistSource(MnistConfig(path=digits()))
    real = RealPictures(source, (20, 16), count=5, seed=1)
    assert len(set(real.chosen)) == 5
    assert real.pictures[range(5)].shape == (5, 1, 20, 16)  # pyright: ignore[reportAttributeAccessIssue]
    same = RealPictures(source, (28, 28)).pictures[range(2, 4)]
    assert torch.equal(same, source.images[2:4])  # type: ignore[arg-type]
    assert real.told == "mnist train (folder), 5 pictures at 16 x 20, resized and cut from 28 x 28"
    assert RealPictures(source, (28, 28)).told == "mnist train (folder), 40 pictures at 28 x 28"


def test_ways_to_say_what_the_data_is(tmp_path: Path) -> None:
    told = read_data("{source: mnist, limit: 7}", "--data")
    assert told == MnistConfig(limit=7)
    (tmp_path / "run.yaml").write_text("task: vae\ndata: {source: mnist, size: 32, limit: 9}\nvae: {in_channels: 1}\n")
    with pytest.raises(UserError, match=r"run\.yaml"):
        read_data(str(tmp_path / "run.yaml"), "--data")
    (tmp_path / "pictures").mkdir()
    assert read_data(str(tmp_path / "pictures"), "--data").source == "folder"
    with pytest.raises(UserError, match="--data: 1 mistake\n  limt: unknown key"):
        read_data("{source: mnist, limt: 7}", "--data")


def test_lists_of_numbers() -> None:
    assert several("10,20", int, "--steps") == (10, 20)
    assert several("1, 2.5", float, "--cfg-scale") == (1.0, 2.5)
    assert several(None, int, "--steps") == ()
    with pytest.raises(UserError, match="--steps takes numbers with commas between them, such as 10,20,50; got '1;2'"):
        several("1;2", int, "--steps")


# ------------------------------------------------------------------------------ an autoencoder alone


def test_an_autoencoder_alone(lab: Path, evaluated: Path, tmp_path: Path) -> None:
    settings = {"features": [f"judge:{lab / 'judge.safetensors'}"], "reconstruction": True, "count": 0}
    evaluate_model(asked(lab / "vae", data(), tmp_path / "report", **settings))
    found, within = numbers(tmp_path / "report"), numbers(evaluated)
    assert found["settings"] == []
    assert found["reconstruction"]["latents"] == within["reconstruction"]["latents"]
    own = [m for m in within["reconstruction"]["metrics"] if not m["features"].startswith("CLIP")]
    assert found["reconstruction"]["metrics"] == own
    with pytest.raises(UserError, match="is an autoencoder, which draws nothing: --reconstruction --count 0"):
        evaluate_model(asked(lab / "vae", data(), tmp_path / "report", features=settings["features"]))


# ------------------------------------------------------------------------------ refusals


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("text", {}, {"features": []}, "nothing describes the pictures: --features takes KIND:PLACE"),
    ("text", {}, {"features": ["judge:a", "judge:a"]}, "judge:a is named twice"),
    ("text", {}, {"features": ["judge:judge.safetensors", "judge:./judge.safetensors"]}, "two are the same network"),
    ("text", {}, {"count": 5}, "count 5: draw more, as 5 neighbours of each"),
    ("text", {}, {"count": 0}, "there is nothing to evaluate"),
    ("text", {}, {"steps": [0]}, "steps: should be greater than or equal to 1, got 0"),
    ("text", {}, {"sampler": "dimm"}, "dimm.*did you mean 'ddim'"),
    ("text", {}, {"conditions": "label"}, "conditions of kind label are not for this model"),
    ("text", {"captions": False}, {}, "has no captions to ask for: --conditions none draws without"),
    ("text", {"captions": False}, {"conditions": "none", "clip": "CLIP"}, "has pictures without"),
    ("text", {"limit": 5}, {}, "has 5 pictures, too few to compare with"),
    ("text", {}, {"floor": data(limit=6)}, "has 6 pictures, and 10 are asked for"),
    ("text", {}, {"reference_count": 50}, "has 40 pictures, and 50 are asked for"),
    ("label", {}, {"reconstruction": True}, "diffuses pixels, and has no autoencoder"),
    ("label", {}, {}, r"judge of digits was given pictures of shape \(\d+, 1, 8, 8\)"),
    ("label", {"source": "folder"}, {}, "has no labels to ask for"),
]


@pytest.mark.parametrize(("model", "changes", "settings", "message"), REFUSED)
def test_what_cannot_be_evaluated(
    lab: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    changes: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    told = data(**changes)
    if changes.get("source") == "folder":
        (tmp_path / "pictures").mkdir()
        for k in range(8):
            Image.new("L", (8, 8), 30 * k).save(tmp_path / "pictures" / f"{k}.png")
        told = {"source": "folder", "path": str(tmp_path / "pictures"), "colours": "grey"}
    usual = {"features": [f"judge:{lab / 'judge.safetensors'}"], **settings}
    if "clip" in usual:
        usual["clip"] = str(lab / "clip_run")
    monkeypatch.chdir(lab)
    with pytest.raises(UserError, match=message):
        evaluate_model(asked(lab / model, told, tmp_path / "report", **usual))
    assert not (tmp_path / "report").exists()


def test_other_folders_are_not_written_over(lab: Path, evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no report of an evaluation"):
        evaluate_model(whole(lab, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_picture_is_named(lab: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(8):
        Image.new("L", (32, 32), 30 * k).save(folder / f"{k}.png")
    whole_file = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole_file[:-30])
    settings = {"features": [f"judge:{lab / 'judge.safetensors'}"], "conditions": "none", "workers": 1}
    wanted = asked(lab / "text", {"source": "folder", "path": str(folder)}, tmp_path / "report", **settings)
    with pytest.raises(UserError, match=r"5\.png.*ldm data check"):
        evaluate_model(wanted)
