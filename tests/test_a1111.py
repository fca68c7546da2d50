"""The text of the A1111 family: ours as theirs, theirs read, and ours read by sd-parsers."""

from __future__ import annotations

import re
import time
from io import BytesIO

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_records import HASH, TEXTS, example, records

from ldm.diffusion.grid import SPACINGS
from ldm.diffusion.samplers import SAMPLERS, find_sampler
from ldm.metadata.a1111 import SAMPLERS as THEIRS
from ldm.metadata.a1111 import SCHEDULES, parameters_text, parse_parameters
from ldm.metadata.embed import save_options
from ldm.metadata.record import Record

NEGATIVE = "Negative prompt:"
PICTURE = Image.new("RGB", (2, 2))
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


# ------------------------------------------------------------------------------------- writing


def test_a_whole_text() -> None:
    drawing = {"sampler": "dpm++_2m", "spacing": "karras", "steps": 20, "guidance": 7.0, "width": 64, "height": 48}
    drawing |= {"strength": 0.75, "clip_skip": 2, "eta": 0.0, "variation_seed": 5, "variation_strength": 0.5}
    assert parameters_text(example(negative="blue", drawing=drawing)) == (
        "a red cat\n"
        "Negative prompt: blue\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 64x48, "
        "Model hash: 0123456789, Model: tiny, Variation seed: 5, Variation seed strength: 0.5, "
        "Denoising strength: 0.75, Clip skip: 2, RNG: CPU, Version: ldm 0.1.0"
    )


def test_values_with_punctuation_are_quoted_and_of_a_model_name_it_is_left_out() -> None:
    model = {"name": "a: b, c", "source": "", "hash": None}
    text = parameters_text(example(drawing={"sampler": 'my, "own": one\n'}, model=model))
    assert 'Sampler: "my, \\"own\\": one\\n", Seed: 42, Model: a b c, ' in text
    assert parse_parameters(text).settings["Sampler"] == 'my, "own": one\n'


@pytest.mark.parametrize("prompt", [None, "", 0, -3])
def test_labels_and_empty_prompts(prompt: int | str | None) -> None:
    text = parameters_text(example(prompt=prompt))
    expected = "" if prompt in (None, "") else str(prompt)
    assert parse_parameters(text).prompt == expected
    assert text.startswith("Steps: 20" if not expected else f"{expected}\nSteps: 20")


@pytest.mark.parametrize("theirs", THEIRS)
def test_names_of_samplers_are_ours_too(theirs: str) -> None:
    ours = THEIRS[theirs][0]
    assert find_sampler(theirs) == SAMPLERS[ours]
    for name in (ours, *SAMPLERS[ours].aliases):
        assert f"Sampler: {theirs}, Schedule type: Karras" in parameters_text(
            example(drawing={"sampler": name, "spacing": "karras"})
        )
        assert f"Sampler: {theirs}, Schedule type: Karras" in parameters_text(
            example(drawing={"sampler": f"{name} Karras"})
        )


def test_every_spacing_but_that_of_lcm_has_a_name_there() -> None:
    assert set(SPACINGS) - {"lcm"} <= set(SCHEDULES)


# ------------------------------------------------------------------------------------- reading


def test_a_picture_of_theirs() -> None:
    text = (
        "portrait of a cat, (fluffy:1.2),\n<lora:paint:0.8>\n"
        "Negative prompt: blurry,\nlow quality\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, "
        'Lora hashes: "paint: 0f1e2d3c", TI hashes: "a: 1, b: 2", Version: v1.9.4'
    )
    found = parse_parameters(text)
    assert found.prompt == "portrait of a cat, (fluffy:1.2),\n<lora:paint:0.8>"
    assert found.negative == "blurry,\nlow quality"
    assert list(found.settings.items()) == [
        ("Steps", "20"),
        ("Sampler", "DPM++ 2M Karras"),
        ("CFG scale", "7"),
        ("Seed", "965400086"),
        ("Size", "512x768"),
        ("Model hash", "45dee52b"),
        ("Lora hashes", "paint: 0f1e2d3c"),
        ("TI hashes", "a: 1, b: 2"),
        ("Version", "v1.9.4"),
    ]


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nsitting: here", "Steps: 20, Seed: 3", "a\r\nb"])
def test_without_settings_all_is_prompt(text: str) -> None:
    assert parse_parameters(text) == (text.replace("\r", ""), "", {})


@pytest.mark.parametrize("value", ['"', '"a', '"a\\', '"\\q"', '""', '"a" b', '{"a": 1}', ":", "a: b"])
def test_odd_values_do_no_harm(value: str) -> None:
    found = parse_parameters(f"p\nSteps: 1, Seed: 2, Odd: {value}, Size: 8x8, CFG scale: 3")
    assert found.prompt == "p"
    assert {"Steps": "1", "Seed": "2", "Size": "8x8", "CFG scale": "3"}.items() <= found.settings.items()


@given(st.text(st.characters(codec="utf-8")) | st.text('a:,"\\\n {}Negative prompt'))
def test_any_text_is_read(text: str) -> None:
    found = parse_parameters(text)
    assert all(isinstance(value, str) for value in (*found.settings, *found.settings.values()))


@pytest.mark.parametrize(
    "unit", ["a", "a:", 'a:"', "a: b,", '"', "\\", ":   ", "a, ", 'a:"\\"', "\n", "Negative prompt:\n"]
)
def test_a_megabyte_of_anything_is_read_in_a_moment(unit: str) -> None:
    began = time.process_time()
    parse_parameters(unit * (2**20 // len(unit)) + "x")
    assert time.process_time() - began < 5


@settings(PATIENT)
@given(records())
def test_what_is_written_is_read_back(record: Record) -> None:
    """Outside what the form cannot tell apart."""
    assume(not ambiguous(record))
    text = parameters_text(record)
    found = parse_parameters(text)
    assert found.prompt == as_text(record.prompt)
    assert found.negative == as_text(record.negative)
    assert found.settings["Seed"] == str(record.seed)
    assert found.settings["Steps"] == str(record.drawing["steps"])
    assert float(found.settings["CFG scale"]) == record.drawing["guidance"]


# ------------------------------------------------------------------------------------ sd-parsers


def as_text(condition: str | int | None) -> str:
    return "" if condition is None else str(condition)


def ambiguous(record: Record) -> bool:
    """The form cannot hold this record's prompts, or names that it has no quotes for.

    "Negative prompt:" inside a prompt ends it; white space at the ends of a text or of its lines is dropped; NUL and
    lone surrogates have no place in a text. Of the model, the punctuation is dropped.
    """
    texts = [as_text(record.prompt), as_text(record.negative)]
    model = record.model.name
    return (
        any(NEGATIVE in text or re.search("[\0\ud800-\udfff]", text) for text in texts)
        or any(line != line.strip() for text in texts for line in text.split("\n"))
        or any(text != text.strip() for text in texts)
        or model != model.strip()
        or bool(re.search("[,:\n\0\ud800-\udfff]", model))
    )


# sd-parsers 0.6 remembers the last comment by the id of its image, which Python gives away again once that is gone
KEPT: list[Image.Image] = []


def read_by_sd_parsers(record: Record, format: str) -> None:
    sd_parsers = pytest.importorskip("sd_parsers")
    file = BytesIO()
    PICTURE.save(file, format, **save_options(format, record))
    image = Image.open(file)
    found = sd_parsers.ParserManager().parse(image)
    if format != "PNG":
        KEPT[:] = [image]
    assert found is not None
    assert found.generator.name == "AUTOMATIC1111"
    (sampler,) = found.samplers
    assert [prompt.value for prompt in found.prompts] == [text for text in [as_text(record.prompt)] if text]
    assert [prompt.value for prompt in found.negative_prompts] == [text for text in [as_text(record.negative)] if text]
    assert find_name(sampler.name) == find_name(record.drawing["sampler"])
    assert sampler.parameters["seed"] == str(record.seed)
    assert sampler.parameters["steps"] == str(record.drawing["steps"])
    assert float(sampler.parameters["cfg_scale"]) == record.drawing["guidance"]
    assert found.metadata["Size"] == f"{record.drawing['width']}x{record.drawing['height']}"
    spacing = record.drawing["spacing"] or ("karras" if "Karras" in record.drawing["sampler"] else None)
    assert sampler.parameters.get("scheduler") == SCHEDULES.get(spacing)
    if record.model.name:
        assert sampler.model.name == record.model.name
    if record.model.hash:
        assert sampler.model.hash == HASH[:10]


def find_name(name: str) -> object:
    return name if name == "mine" else find_sampler(name.removesuffix(" Karras"))


@settings(PATIENT, max_examples=250)
@given(records(), st.sampled_from(["PNG", "PNG", "JPEG", "WEBP"]))
def test_sd_parsers_reads_ours(record: Record, format: str) -> None:
    assume(not ambiguous(record))
    read_by_sd_parsers(record, format)


@pytest.mark.slow  # several minutes: the same, ten thousand times
@settings(PATIENT, max_examples=10_000)
@given(records(), st.sampled_from(["PNG", "PNG", "JPEG", "WEBP"]))
def test_sd_parsers_reads_ten_thousand_of_ours(record: Record, format: str) -> None:
    assume(not ambiguous(record))
    read_by_sd_parsers(record, format)


@given(TEXTS)
def test_the_text_can_always_be_written(prompt: str) -> None:
    text = parameters_text(example(prompt=prompt))
    assert "\0" not in text
    assert text.encode("utf-8").decode("utf-8") == text
