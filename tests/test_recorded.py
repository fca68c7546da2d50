"""Drawing with records, and drawing again from them: from the file alone, every pixel is the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_models import written

from ldm.drawing import Drawing
from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.read import read_record
from ldm.metadata.record import Record, hash_pixels
from ldm.recorded import draw_again, load
from ldm.workpieces import PictureFiles

FP32 = {"device": "cpu", "dtype": "fp32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {kind: written(kind, base / kind) for kind in ("text", "label", "unconditional")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture larger than what is drawn, and a mask with a soft border."""
    base = tmp_path_factory.mktemp("pictures")
    picture = Image.radial_gradient("L").resize((80, 60))
    mask = Image.new("L", (80, 60))
    mask.paste(Image.linear_gradient("L").resize((30, 20)), (25, 15))
    for name, image in (("init", picture), ("mask", mask)):
        image.save(base / f"{name}.png")
    return {name: base / f"{name}.png" for name in ("init", "mask")}


def varied(choice: random.Random, pictures: dict[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings at random that a text model takes: fields of ``Drawing`` and of ``PictureFiles``."""
    files: dict[str, Any] = {}
    drawing: dict[str, Any] = {
        "sampler": choice.choice(["ddim", "euler_a", "dpm++_2m karras", "heun", "dpm++_2m_sde", "lcm", "plms"]),
        "steps": choice.randint(2, 5),
        "guidance": choice.choice([1.0, 3.0, 7.25]),
        "width": choice.choice([16, 32, 48]),
        "height": choice.choice([24, 32]),
        "clip_skip": choice.choice([1, 2]),
        "tiled": choice.random() < 0.3,
    }
    drawing["apg"] = drawing["guidance"] != 1 and choice.random() < 0.3
    kind = choice.choice(["text", "hires", "variation", "init", "inpaint", "region", "outpaint"])
    if kind == "hires":
        drawing |= {"hires_scale": 1.5, "hires_upscaler": choice.choice(["latent", "lanczos"])}
    elif kind == "variation":
        drawing |= {"variation_seed": 9, "variation_strength": choice.random()}
    elif kind != "text":
        files["init"] = pictures["init"]
        drawing["strength"] = choice.choice([0.6, 1.0])
    if kind in ("inpaint", "region"):
        files |= {"mask": pictures["mask"], "mask_blur": choice.choice([0.0, 2.5]), "only_masked": kind == "region"}
    elif kind == "outpaint":
        files |= {"outpaint": (4, 0, 8, 12), "outpaint_fill": choice.choice(["edge", "noise"])}
    return drawing, files


def test_fifty_varied_pictures_are_drawn_again_from_their_files(models, pictures, tmp_path) -> None:
    choice = random.Random(5)
    studios = {dtype: load(str(models["text"]), **{"device": "cpu", "dtype": dtype}) for dtype in ("fp32", "bf16")}
    drawn = 0
    while drawn < 50:
        drawing, files = varied(choice, pictures)
        prompts = [choice.choice(["two", "a (thick:1.3) three", ""]) for _ in range(choice.randint(1, 3))]
        seeds = [choice.randrange(2**64) for _ in prompts]
        studio = studios[choice.choice(["fp32", "bf16"])]
        found = studio.draw(prompts, seeds, Drawing.checked(drawing), PictureFiles.checked(files))
        image, record = found[k := choice.randrange(len(found))]
        path = tmp_path / f"{drawn}.{choice.choice(['png', 'jpg', 'webp'])}"
        save_image(image, path, record)
        read = read_record(path)
        assert read == record
        assert (read.prompt, read.seed) == (prompts[k], seeds[k])
        again, fresh = draw_again(read)
        assert hash_pixels(again) == fresh.pixels == record.pixels == hash_pixels(image), (drawing, files)
        drawn += 1


@pytest.mark.parametrize(("kind", "condition"), [("label", 7), ("unconditional", None)])
def test_pixel_models_too(models, kind, condition, tmp_path) -> None:
    (image, record), *_ = load(str(models[kind]), **FP32).draw([condition] * 3, [4, 5, 6], Drawing(steps=3))
    assert record.prompt == condition
    assert record.drawing["guidance"] == (2.0 if kind == "label" else 1.0)
    assert draw_again(record)[1].pixels == hash_pixels(image)


def test_companions_are_recorded_where_there_were_any(models) -> None:
    bf16 = load(str(models["text"]), **{"device": "cpu", "dtype": "bf16"})
    together = [record.drawing for _, record in bf16.draw(["two", "three"], [1, 2], Drawing(steps=2))]
    assert [d["batch"] for d in together] == [[["two", 1], ["three", 2]]] * 2
    assert [d["place_in_batch"] for d in together] == [0, 1]
    alone = load(str(models["text"]), **FP32).draw(["two", "three"], [1, 2], Drawing(steps=2))
    assert all("batch" not in record.drawing for _, record in alone)


def test_the_receipt_and_the_model(models) -> None:
    ((_, record),) = load(str(models["text"]), **FP32).draw(["two"], [1], Drawing(steps=2))
    assert record.cost.seconds > 0
    assert record.cost.peak_memory is not None
    assert record.cost.peak_memory > 50  # MiB: torch alone is more
    assert record.model.name == "text"
    assert record.loading["dtype"] == "float32"
    assert record.model.hash is not None


def test_another_input_or_model_is_refused(models, pictures, tmp_path) -> None:
    init = tmp_path / "init.png"
    init.write_bytes(pictures["init"].read_bytes())
    files = PictureFiles(init=init)
    ((_, record),) = load(str(models["text"]), **FP32).draw(["two"], [1], Drawing(steps=4), files)
    with pytest.raises(UserError, match="label is not text, which drew the picture"):
        draw_again(record, model=str(models["label"]))
    Image.new("L", (80, 60), 90).save(init)
    with pytest.raises(UserError, match=r"init \(.*init.png\) is not the file that the picture was drawn from"):
        draw_again(record)
    init.unlink()
    with pytest.raises(UserError, match=r"init\.png"):
        draw_again(record)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_pictures_in_memory_are_those_of_the_same_files(models, tmp_path, mode) -> None:
    studio = load(str(models["text"]), device="cpu", dtype="fp32")
    grey = Image.radial_gradient("L").resize((32, 24))
    image = grey.convert("I").point(lambda value: value * 257).convert("I;16") if mode == "I;16" else grey.convert(mode)
    mask = Image.linear_gradient("L").resize((32, 24))
    paths = {"init": tmp_path / ("init.tiff" if mode == "CMYK" else "init.png"), "mask": tmp_path / "mask.png"}
    image.save(paths["init"])
    mask.save(paths["mask"])
    given = {"init": image, "mask": mask, "mask_blur": 1.5}
    drawn = [studio("two", steps=2, pictures=pictures)[0] for pictures in (given, {**given, **paths})]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    record = drawn[0].info["record"]
    assert Record.from_json(record.to_json(), "here") == record
    assert record.inputs["init"].sha256 == hash_pixels(image)
    with pytest.raises(UserError, match=r"init was a picture in memory, of which the record has only the hash"):
        draw_again(record)
