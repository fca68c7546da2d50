"""Lists of pictures to draw: files of prompts, seeds, matrices, tables, and jobs drawn together."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import written

import ldm
from ldm.drawing import ALIASES, Drawing, find_key
from ldm.errors import UserError
from ldm.metadata.a1111 import SCHEDULES
from ldm.plans.axes import Axis, parse_axis
from ldm.plans.job import Job, Plan, Request, groups, numbered, seeded
from ldm.plans.lines import read_requests
from ldm.plans.matrix import matrix, parse
from ldm.plans.table import table

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip())


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(data: str | bytes, name: str = "prompts.txt") -> str:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
        return str(path)

    return write


# ----------------------------------------------------------------------- files of prompts


def test_every_line_of_text_that_is_not_blank_is_a_prompt(file: Callable[..., str]) -> None:
    text = "\ufeffa cat\r\n\r\n  a dog \n# a hash\n\u2028{red|blue} car\r한국어"
    read = read_requests(file(text))
    assert [(r.prompt, r.place.rpartition(" ")[2]) for r in read] == [
        ("a cat", "1"),
        ("a dog", "3"),
        ("# a hash", "4"),
        ("{red|blue} car", "5"),
        ("한국어", "6"),
    ]
    assert all((r.seed, r.output, dict(r.drawing)) == (None, None, {}) for r in read)


def test_objects_say_what_the_command_line_and_the_library_say(file: Callable[..., str]) -> None:
    lines = """
        {"prompt": "a cat", "negative_prompt": "blurry", "cfg-scale": 7, "steps": 30, "seed": 5, "output": "a.png"}

        {"prompt": 3, "guidance": 1.5, "Width": 64, "sampler": "ddim", "guidance_interval": [0, 0.5], "seed": null}
        {"prompt": null, "steps": null}
    """
    first, second, third = read_requests(file(lines, "many.jsonl"))
    assert (first.prompt, first.seed, first.output) == ("a cat", 5, "a.png")
    assert first.drawing == {"negative": "blurry", "guidance": 7.0, "steps": 30}
    assert (second.prompt, second.seed) == (3, None)
    assert second.drawing == {"guidance": 1.5, "width": 64, "sampler": "ddim", "guidance_interval": (0.0, 0.5)}
    assert (third.prompt, third.drawing) == (None, {"steps": None})
    assert third.place.endswith("many.jsonl, line 5")


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2**64 - 1), st.integers(1, 1000)), min_size=1, max_size=5))
def test_any_text_comes_out_of_json_lines_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    keys = ("prompt", "negative", "seed", "steps")
    dumped = [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=row[3] % 2 == 0) for row in rows]
    path.write_text("\n".join(dumped), encoding="utf-8", newline="")
    read = read_requests(str(path))
    assert [(r.prompt, r.drawing["negative"], r.seed, r.drawing["steps"]) for r in read] == rows


def test_standard_input_and_any_name_are_looked_into(file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbf{"prompt": "a cat", "steps": 2}\n')))
    (read,) = read_requests("-")
    assert (read.prompt, read.drawing, read.place) == ("a cat", {"steps": 2}, "standard input, line 1")
    assert read_requests(file('{ "prompt": "a dog"}'))[0].prompt == "a dog"


WRONG_LINES = [
    ('{"prompt": "x", "stesp": 3}', "'stesp'; did you mean 'steps'?"),
    ('{"prompt": "x", "negative_promt": "y"}', "did you mean 'negative_prompt'?"),
    ('{"prompt": "x", "steps": "3"}', "steps: should be a valid integer, got '3'"),
    ('{"prompt": "x", "steps": true}', "steps: should be a valid integer, got True"),
    ('{"prompt": "x", "steps": 2.5}', "steps: "),
    ('{"prompt": "x", "steps": 0}', "steps: should be greater than or equal to 1, got 0"),
    ('{"prompt": "x", "cfg_scale": NaN}', "cfg_scale: should be a finite number"),
    ('{"prompt": "x", "cfg_scale": 1e999}', "cfg_scale: should be a finite number"),
    ('{"prompt": "x", "cfg_scale": 1, "guidance": 2}', "'cfg_scale' and 'guidance' are the same setting"),
    ('{"prompt": "x", "guidance_interval": [0, 0.5, 1]}', "guidance_interval"),
    ('{"prompt": "x", "seed": -2}', "seed: should be greater than or equal to 0, got -2"),
    ('{"prompt": "x", "seed": 18446744073709551616}', "seed: "),
    ('{"prompt": "x", "seed": 1' + "0" * 6000 + "}", "no JSON"),
    ('{"prompt": "x", "output": ""}', "output: "),
    ('{"prompt": "x", "output": "a\\u0000b"}', "output: holds what is no character"),
    ('{"prompt": "\\ud800"}', "prompt: holds what is no character"),
    ('{"prompt": "x", "prompt": "y"}', "the key 'prompt' is given twice"),
    ('{"prompt": ["x"]}', "prompt: should be a valid string or a valid integer"),
    ('{"seed": 3}', "prompt: missing"),
    ("{}", "prompt: missing"),
    ('["x"]', "should be an object"),
    ("a cat", "is no JSON"),
    ('{"prompt": "x"', "is no JSON"),
    ('{"prompt": "x"} {"prompt": "y"}', "is no JSON"),
    ('{"prompt": ' + "[" * 100_000, "is no JSON"),
]


@pytest.mark.parametrize(("line", "told"), WRONG_LINES, ids=[line[:40] for line, _ in WRONG_LINES])
def test_a_wrong_line_is_named(file: Callable[..., str], line: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_requests(file('{"prompt": "good"}\n\n' + line, "p.jsonl"))
    assert "p.jsonl, line 3" in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "holds no prompt"),
        (b"\xef\xbb\xbf \r\n\n", "holds no prompt"),
        (b"a cat\r\nna\xefve", "line 2: byte 0xef is no UTF-8"),
        (b"a cat\r\xff", "line 2: byte 0xff is no UTF-8"),
        ("a cat".encode("utf-16"), "is UTF-16"),
        (b"a cat\n--prompt x --steps 3", "line 2 holds --prompt"),
        (b"a castle --steps 3", "line 1 holds --steps"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(file: Callable[..., str], data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_requests(file(data))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for place in (str(tmp_path), str(tmp_path / "none.txt"), "a\0b"):
        with pytest.raises(UserError, match="cannot be read"):
            read_requests(place)


@settings(max_examples=150)
@given(st.one_of(st.binary(), st.lists(st.sampled_from([*b'{}[]",:\\\n\r -ept\xff0', *b"prompt"])).map(bytes)))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    for whole in (data, b'{"prompt": ' + data + b"}"):
        path.write_bytes(whole)
        with contextlib.suppress(UserError):
            assert all(isinstance(r, Request) for r in read_requests(str(path)))


# ----------------------------------------------------------------------- names, seeds, groups


def test_every_name_of_a_setting_is_found() -> None:
    for name, field in [*ALIASES.items(), *((f, f) for f in Drawing.model_fields)]:
        assert field in Drawing.model_fields
        assert find_key(name.upper().replace("_", "-")) == find_key(name.title().replace("_", " ")) == field
    assert not set(ALIASES) & set(Drawing.model_fields)


def test_settings_have_the_same_names_in_python() -> None:
    ours = Drawing(steps=9, guidance=2.5, negative="fog", spacing="karras", strength=0.4, variation_seed=3)
    theirs = {"num_inference_steps": 9, "cfg_scale": 2.5, "negative_prompt": "fog", "scheduler": "Karras"}
    assert Drawing.checked({**theirs, "denoising_strength": 0.4, "subseed": 3}) == ours
    with pytest.raises(UserError, match="'guidance' and 'guidance_scale' are the same setting"):
        Drawing.checked({"guidance": 1, "guidance_scale": 2})
    with pytest.raises(UserError, match="guidance_scal: unknown key; did you mean 'guidance_scale'"):
        Drawing.checked({"guidance_scal": 2})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("image", 'pictures={"init": ...}'),
        ("init_image", 'pictures={"init": ...}'),
        ("mask_image", 'pictures={"init": ..., "mask": ...}'),
        ("generator", "seed="),
        ("num_images_per_prompt", "the prompt as often as you want pictures"),
    ],
)
def test_arguments_of_others_that_are_no_settings_say_what_is(name: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        Drawing.checked({name: object()})


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("SGM Uniform", "trailing"),
        ("sgm_uniform", "trailing"),
        ("Align Your Steps", "ays"),
        ("Uniform", "linspace"),
        ("normal", "linspace"),
        ("DDIM", "leading"),
        ("Exponential", "exponential"),
        ("ays-xl", "ays_xl"),
        ("Automatic", None),
        ("Trailin", "Trailin"),  # the grid refuses it by its name
    ],
)
def test_spacings_have_the_names_of_the_web_ui_and_comfyui(name: str, ours: str | None) -> None:
    assert Drawing.checked({"spacing": name}).spacing == ours


def test_spacings_are_those_that_our_metadata_names() -> None:
    for ours, theirs in SCHEDULES.items():
        assert Drawing(spacing=theirs).spacing == ours.removesuffix("_xl")


def test_minus_one_is_a_random_seed(file: Callable[..., str]) -> None:
    asked = [Drawing(variation_seed=-1).variation_seed for _ in range(3)]
    assert len(set(asked)) == 3
    assert all(seed is not None and 0 <= seed < 2**32 for seed in asked)
    line = '{"prompt": "a", "seed": -1, "subseed": -1, "subseed_strength": 0.5}'
    one, other = read_requests(file(f"{line}\n{line}", "p.jsonl"))
    assert None not in (one.seed, other.seed)
    assert one.seed != other.seed
    assert one.drawing["variation_seed"] != other.drawing["variation_seed"]
    with pytest.raises(UserError, match="variation_seed: should be greater than or equal to 0, got -2"):
        Drawing.checked({"variation_seed": -2})


def test_settings_in_capitals_and_none() -> None:
    assert Drawing.checked({"hires_upscaler": "Latent", "prompt_syntax": "A1111"}) == Drawing()
    with pytest.raises(UserError, match="hires_steps: should be 1 or more; leave it out for the same number"):
        Drawing.checked({"hires_steps": 0})


@given(st.lists(st.none() | st.integers(0, 1000), min_size=1), st.integers(0, 2**32), st.integers(1, 4))
def test_picture_k_has_the_kth_seed_unless_its_line_has_one(own: list[int | None], first: int, count: int) -> None:
    jobs = seeded([Request(str(at), seed) for at, seed in enumerate(own)], first, count)
    assert [job.prompt for job in jobs] == [str(at) for at in range(len(own)) for _ in range(count)]
    for k, job in enumerate(jobs):
        seed = own[k // count]
        assert job.seed == (first + k if seed is None else seed + k % count)


def test_files_get_numbers_and_none_is_written_twice() -> None:
    jobs = seeded([Request("a", output="x/a.png"), Request("b")], 0, 2)
    assert [job.output for job in jobs] == ["x/a_0001.png", "x/a_0002.png", None, None]
    assert [str(name) for name in numbered(Path("a.webp"), 1)] == ["a.webp"]
    assert numbered(Path("a.png"), 10_000)[-1] == Path("a_10000.png")
    twice = [Request("a", output="a.png", place="p, line 1"), Request("b", output="./a.png", place="p, line 2")]
    with pytest.raises(UserError, match=r"p, line 1: output 'a\.png' is given twice"):
        seeded(twice, 0)


def test_seeds_do_not_leave_their_range() -> None:
    assert seeded([Request("a")], 2**64 - 1)[0].seed == 2**64 - 1
    for request, first, count in ((Request("a"), -1, 1), (Request("a"), 2**64 - 1, 2), (Request("a", 2**64 - 1), 0, 2)):
        with pytest.raises(UserError, match="is not between 0 and"):
            seeded([request], first, count)


def test_groups_are_drawn_together_and_give_every_picture_as_if_alone(tmp_path: Path) -> None:
    pipeline = ldm.load(written("label", tmp_path / "model"), device="cpu", dtype="fp32")
    base = Drawing(steps=2, guidance=1.0)
    own: list[dict[str, Any]] = [{}, {"steps": 3}, {"steps": 2}, {"sampler": "euler"}, {"steps": 3}, {"guidance": 1}]
    jobs = seeded([Request(k % 10, drawing=drawing) for k, drawing in enumerate(own)], 11)
    found = groups(Plan(tuple(jobs)), base, pipeline.settle)
    assert [group.places for group in found] == [[0, 2, 5], [1, 4], [3]]
    for how, _, places in found:
        asked = [jobs[i] for i in places]
        options = how.model_dump()
        together = pipeline.generate([j.prompt for j in asked], [j.seed for j in asked], **options)
        for job, picture in zip(asked, together, strict=True):
            alone = pipeline.generate([job.prompt], [job.seed], **{**base.model_dump(), **job.drawing})
            assert torch.equal(alone[0], picture)


def test_a_table_may_begin_at_off(tmp_path: Path) -> None:
    pipeline = ldm.load(written("text", tmp_path / "model"), device="cpu", dtype="fp32")
    base = Drawing(negative="three", steps=2)
    swept = table(Job("two", 0), parse_axis("guidance=1,4", "--x"), None)
    assert [group.how.negative for group in groups(swept, base, pipeline.settle)] == [None, "three"]
    off = table(Job("two", 0), parse_axis("steps=2,3", "--x"), None)
    with pytest.raises(UserError, match="negative 'three' would do nothing"):  # in no picture of the sheet
        groups(off, base.model_copy(update={"guidance": 1.0}), pipeline.settle)
    with pytest.raises(UserError, match="negative 'three' would do nothing"):
        groups(Plan(swept.jobs), base, pipeline.settle)


def test_jobs_with_other_loras_are_other_groups() -> None:
    one, two = ((Path("one"), 0.5),), ((Path("one"), 0.6),)
    jobs = [Job(1, k, loras=loras) for k, loras in enumerate(((), one, two, one))]
    found = groups(Plan(tuple(jobs)), Drawing(), lambda how: how)
    assert [(group.loras, group.places) for group in found] == [((), [0]), (one, [1, 3]), (two, [2])]


def test_settings_that_do_not_fit_the_model_are_named_with_their_line(tmp_path: Path) -> None:
    pipeline = ldm.load(written("label", tmp_path / "model"), device="cpu", dtype="fp32")
    plan = Plan((Job(1, 0), Job(1, 0, {"sampler": "eulr"}, place="p.jsonl, line 2")))
    with pytest.raises(UserError, match=r"^p\.jsonl, line 2: unknown sampler 'eulr'"):
        groups(plan, Drawing(), pipeline.settle)
    with pytest.raises(UserError, match=r"^unknown sampler 'foo'"):
        groups(Plan((Job(1, 0, place="p.jsonl, line 1"),)), Drawing(sampler="foo"), pipeline.settle)


# ----------------------------------------------------------------------- matrices


def test_the_combinations_of_parts_are_those_of_the_web_ui() -> None:
    plan = matrix(Job("a cat|in the rain|at night", 7, {"steps": 3}, "x.png"))
    assert [job.prompt for job in plan.jobs] == [
        "a cat",
        "a cat, in the rain",
        "a cat, at night",
        "a cat, in the rain, at night",
    ]
    assert {(job.seed, job.drawing["steps"], job.output) for job in plan.jobs} == {(7, 3, None)}
    assert plan.labels is not None
    assert (plan.labels.columns, plan.labels.rows) == (("–", "in the rain"), ("–", "at night"))
    assert plan.labels.title == "a cat|in the rain|at night"


@given(st.lists(st.text("ab ,", min_size=1).filter(lambda text: text.strip(" ,")), min_size=2, max_size=8))
def test_bit_n_of_a_pictures_number_says_whether_it_has_part_n(parts: list[str]) -> None:
    plan = matrix(Job("|".join(parts), 0))
    first, *rest = (part.strip(" ,") for part in parts)
    for k, job in enumerate(plan.jobs):
        assert job.prompt == ", ".join([first, *(part for n, part in enumerate(rest) if k >> n & 1)])
    assert plan.labels is not None
    # the web UI's sheet: half of the parts, rounded up, are columns
    assert (len(plan.jobs), len(plan.labels.columns)) == (2 ** len(rest), 2 ** -(-len(rest) // 2))


def test_alternatives_in_braces() -> None:
    plan = matrix(Job("a {red|{light|dark} blue} {car|bike}", 0))
    assert [job.prompt for job in plan.jobs] == [
        f"a {colour} {thing}" for colour in ("red", "light blue", "dark blue") for thing in ("car", "bike")
    ]
    assert plan.labels is not None
    assert (plan.labels.rows, plan.labels.columns) == (("red", "light blue", "dark blue"), ("car", "bike"))
    both = matrix(Job("{a|b}|{x|y} z", 0))
    assert [job.prompt for job in both.jobs] == ["a", "a, x z", "a, y z", "b", "b, x z", "b, y z"]
    assert both.labels is not None
    assert (both.labels.rows, both.labels.columns) == (("a", "b"), ("–", "x z", "y z"))
    (only,) = matrix(Job("{|small }car", 0)).jobs[1:]
    assert only.prompt == "small car"


TREES = st.recursive(
    st.text("a{|}\\ b(", min_size=1, max_size=4),
    lambda inner: st.lists(st.lists(inner, max_size=2), min_size=1, max_size=3),
    max_leaves=5,
)


def escaped(text: str) -> str:
    """``text`` so that it stands for itself wherever it is put."""
    doubled = re.sub(r"(\\*)([{|}])", lambda m: m[1] * 2 + "\\" + m[2], text)
    ending = len(doubled) - len(doubled.rstrip("\\"))
    return doubled + "\\" * ending


def typed(tree: Any) -> str:
    if isinstance(tree, str):
        return escaped(tree)
    return "{" + "|".join("".join(map(typed, choice)) for choice in tree) + "}"


def meant(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return ["".join(t) for choice in tree for t in itertools.product(*map(meant, choice))]


def no_text_after_text(choice: list[Any]) -> list[Any]:
    """Join neighbouring texts: a backslash at the end of one would escape the beginning of the next."""
    found: list[Any] = []
    for tree in choice:
        if isinstance(tree, list):
            found.append([no_text_after_text(inner) for inner in tree])
        elif found and isinstance(found[-1], str):
            found[-1] += tree
        else:
            found.append(tree)
    return found


@settings(max_examples=150)
@given(st.lists(TREES, max_size=3))
def test_braces_of_any_depth_stand_for_every_choice_in_order(trees: list[Any]) -> None:
    trees = no_text_after_text(trees)
    (pieces,) = parse("".join(map(typed, trees)) + "{}")
    assert ["".join(chosen) for chosen in itertools.product(*pieces)] == meant([trees])


@given(st.text() | st.text("\\{|}a"))
def test_any_text_survives_escaping(text: str) -> None:
    (pieces,) = parse(escaped(text) + "{}")
    assert "".join(text for (text,) in pieces) == text


def test_a_matrix_that_is_wrong_or_enormous_is_refused_at_once() -> None:
    for prompt, told in [
        ("a cat", "stands for itself alone"),
        ("a {cat", r"\{ at character 3 .* has no partner"),
        ("a cat}", r"\} at character 6 .* has no partner"),
        ("{a|b}" * 40, "stands for 1,099,511,627,776 prompts"),
        ("{" + "{a|b}" * 40 + "}", "stands for 1,024 prompts"),
        ("|x" * 10, "stands for 1,024 prompts"),
        ("a|" + "{a|b}" * 40, "stands for 1,099,511,627,776 prompts"),
        ("{" * 20_000, "has no partner"),
        ("{" + "|" * 1000 + "}", "stands for 1,001 prompts"),
        (3, "is made of a prompt"),
    ]:
        with pytest.raises(UserError, match=told):
            matrix(Job(prompt, 0))


# ----------------------------------------------------------------------- tables


def axis(text: str) -> Axis:
    return parse_axis(text, "--x")


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("steps=5, 10,20", (5, 10, 20), ("steps 5", "steps 10", "steps 20")),
        ("cfg_scale=1,7.5", (1.0, 7.5), ("cfg scale 1", "cfg scale 7.5")),
        ("cfg_scale=1-10[5]", (1.0, 3.25, 5.5, 7.75, 10.0), None),
        ("guidance-rescale=0-0.3(+0.1)", (0.0, 0.1, 0.2, 0.3), None),
        ("steps=1-10[5]", (1, 3, 5, 7, 10), None),
        ("steps=1 - 3, 7", (1, 2, 3, 7), None),
        ("cfg_scale=-1--3", (-1.0, -2.0, -3.0), None),
        ("seed=18446744073709551614-18446744073709551615", (2**64 - 2, 2**64 - 1), None),
        ('sampler=ddim,"DPM++ 2M"', ("ddim", "DPM++ 2M"), ("ddim", "DPM++ 2M")),
        ("scheduler=karras,trailing", ("karras", "trailing"), None),
        ("negative_prompt=,blurry", ("", "blurry"), ("–", "blurry")),
        ('prompt=cat,"a horse, brown","say ""hi"""', ("cat", "a horse, brown", 'say "hi"'), None),
        ('guidance_interval="0,0.5", "0.2,1"', ((0.0, 0.5), (0.2, 1.0)), None),
        ("prompt_syntax=plain", ("plain",), ("plain",)),
    ],
)
def test_axes(text: str, values: tuple[Any, ...], labels: tuple[str, ...] | None) -> None:
    found = axis(text)
    assert found.values == values
    assert [type(value) for value in found.values] == [type(value) for value in values]
    assert len(found.labels) == len(values)
    assert labels is None or found.labels == labels


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 60))
def test_ranges_are_pythons_with_their_end(start: int, end: int, step: int) -> None:
    sign = 1 if end >= start else -1
    assert axis(f"steps={start}-{end}({sign * step:+d})").values == tuple(range(start, end + sign, sign * step))
    assert axis(f"steps={start}-{end}").values == tuple(range(start, end + sign, sign))


@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(2, 40))
def test_evenly_spaced_numbers_are_torchs(start: int, end: int, count: int) -> None:
    expected = torch.linspace(start, end, count, dtype=torch.float64)
    found = torch.tensor(axis(f"cfg_scale={start}-{end}[{count}]").values, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-7)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")), min_size=1, max_size=5))
def test_any_value_survives_quoting(values: list[str]) -> None:
    quoted = ",".join('"' + value.replace('"', '""') + '"' for value in values)
    assert axis(f"prompt={quoted}").values == tuple(value.strip() for value in values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps", "should be NAME=VALUE"),
        ("steps=", "has no values"),
        ("stesp=1", "did you mean 'steps'"),
        ("steps=0", "should be greater than or equal to 1, got '0'"),
        ("steps=1-3,0", "got '0'"),
        ("steps=5,,10", "steps: should be a valid integer"),
        ("steps=1.5-3", "range of whole numbers"),
        ("steps=1-5(-1)", "leads nowhere"),
        ("steps=1-5(0)", "leads nowhere"),
        ("steps=1-5[0]", "is 0 numbers"),
        ("steps=1-1000000000", "is 1,000,000,000 numbers"),
        ("steps=1-900,1-900", "1,800 values"),
        ("steps=" + "9" * 6000, "steps"),
        ("cfg_scale=nan", "finite"),
        ("guidance_rescale=0-2(+0.5)", "less than or equal to 1, got '1.5'"),
        ("seed=-1", "seed should be a whole number"),
        ("seed=1.5", "seed should be a whole number"),
        ("sampler=ddim,eulr", "unknown sampler 'eulr'"),
        ("scheduler=kerras", "unknown spacing 'kerras'; did you mean 'karras'"),
        ("guidance_interval=0,0.5", "takes pairs in quotes"),
        ('prompt="a', "the quotes cannot be read"),
        ("prompt=a\nb", "should be one line of values"),
    ],
)
def test_a_wrong_axis_is_named(text: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as error:
        axis(text)
    assert str(error.value).startswith("--x ")


def test_a_table_goes_row_by_row() -> None:
    job = Job("a cat in the sun", 4, {"width": 64, "steps": 1}, "x.png")
    plan = table(job, axis("steps=5,10,20"), axis("sampler=ddim,dpm++_2m"))
    assert [job.drawing for job in plan.jobs] == [
        {"width": 64, "steps": steps, "sampler": sampler} for sampler in ("ddim", "dpm++_2m") for steps in (5, 10, 20)
    ]
    assert {(job.prompt, job.seed, job.output) for job in plan.jobs} == {("a cat in the sun", 4, None)}
    assert plan.labels is not None
    assert plan.labels.columns == ("steps 5", "steps 10", "steps 20")
    assert (plan.labels.rows, plan.labels.title) == (("ddim", "dpm++_2m"), "a cat in the sun")
    down = table(job, axis("prompt=cat,dog"), axis("prompt=sun,rain"))
    assert [job.prompt for job in down.jobs] == [f"a {a} in the {w}" for w in ("sun", "rain") for a in ("cat", "dog")]
    alone = table(job, None, axis("seed=1-3"))
    assert [job.seed for job in alone.jobs] == [1, 2, 3]
    assert alone.labels is not None
    assert alone.labels.columns == ("",)


def test_a_table_that_makes_no_sense_is_refused() -> None:
    job = Job("a cat", 0)
    for x, y, told in [
        (None, None, "needs an axis"),
        ("steps=1", "num_inference_steps=2", "both axes are of steps"),
        ("steps=1-100", "seed=1-100", "are more than 1,000"),
        ("prompt=dog,cat", None, "replaces 'dog', its first value, which is not in 'a cat'"),
        ("prompt=,cat", None, "replaces '', its first value"),
        ("prompt=cat,dog", "prompt=a cat,a horse", "replaces 'a cat', its first value, which is not in 'a dog'"),
    ]:
        with pytest.raises(UserError, match=told):
            table(job, x and axis(x), y and axis(y))
