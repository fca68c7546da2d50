"""Configuration files: what they may say, and how every mistake is answered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from ldm.compare_command import read_comparison
from ldm.config import dump_config, load_config, parse_yaml, validate
from ldm.data.mnist import MnistConfig
from ldm.errors import UserError
from ldm.schema import Settings
from ldm.training.settings import DiffusionRun, VAERun

EVERYTHING = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in EVERYTHING if path.parent.name not in ("launch", "cost", "compare")]
COMPARISONS = [path for path in EVERYTHING if path.parent.name == "compare"]
LABEL = next(path for path in CONFIGS if path.name == "mnist_label.yaml")


def tree(**changes: Any) -> dict[str, Any]:
    """The label configuration as plain data, with values at dotted keys changed."""
    found = yaml.safe_load(LABEL.read_text().replace("1e-3", "0.001"))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = found
        for parent in parents:
            node = node[parent]
        node[last] = copy.deepcopy(value)
    return found


def complaint(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(tree(**changes), "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_reads_and_survives_being_written(path, tmp_path):
    run = load_config(path)
    copy_of_it = tmp_path / "copy.yaml"
    copy_of_it.write_text(dump_config(run))
    assert load_config(copy_of_it) == run
    assert run.output.parts[0] == "runs"


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_reads(path):
    told = read_comparison(path, [])
    assert told.output.parts[0] == "runs"
    assert told.rows


# ------------------------------------------------------------------- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("4.", 4.0),
        ("12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'1e-4'", "1e-4"),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
    ],
)
def test_words_mean_what_yaml_12_says(text, value):
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_merge_keys_work_and_may_be_overridden():
    found = parse_yaml("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}", "here")
    assert found["more"] == {"x": 1, "y": 3}


@given(st.lists(st.one_of(st.integers(-(2**60), 2**60), st.text(max_size=8)), max_size=4))
@example(["\x85", "a\u2028b", "\ufeff", "\n", "1e-4", "0o7", " x ", "- a: b"])
def test_any_conditions_survive_being_written(conditions):
    run = validate(tree(sample__conditions=conditions), "here")
    assert validate(parse_yaml(dump_config(run), "here"), "here") == run


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_number_survives_being_written(rate):
    run = validate(tree(train__learning_rate=rate), "here")
    assert validate(parse_yaml(dump_config(run), "here"), "here").train.learning_rate == rate


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c", "line 1"),
        ("task: 1\nseed: 2\ntask: 3", "'task' twice"),
        ("train: {steps: 1, steps: 2}", "'steps' twice"),
        ("[1, 2", "not YAML"),
        ("a: \x00", "not YAML"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: *nobody", "not YAML"),
        ("a: &itself [*itself]", "holds itself"),
        ("- 1", "found list"),
        ("", "found NoneType"),
    ],
)
def test_what_is_not_yaml_is_said_with_its_place(text, said, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.yaml cannot be read"):
        load_config(tmp_path / "bytes.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


# ------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "place", "hint", "allowed"),
    [
        ({"tsak": 1}, "tsak", "task", "condition"),
        ({"train__stepps": 1}, "train.stepps", "steps", "learning_rate"),
        ({"unet__chanels": 1}, "unet.chanels", None, "block_out_channels"),
        ({"data__limt": 1}, "data.limt", "limit", "origin"),
        ({"process__beta_strat": 1}, "process.beta_strat", "beta_start", "zero_snr"),
        ({"condition__clases": 1}, "condition.clases", "classes", "drop"),
        ({"codec__kinds": 1}, "codec.kinds", "kind", "kind"),
        ({"codec": {"kind": "vae", "path": "x", "pth": "y"}}, "codec.pth", "path", "kind"),
        ({"sample__colums": 3}, "sample.colums", "columns", "guidance"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_and_the_allowed(changes, place, hint, allowed):
    message = complaint(**changes)
    line = next(line for line in message.splitlines() if line.strip().startswith(f"{place}: unknown key"))
    assert message.startswith("run.yaml: ")
    assert (f"did you mean {hint!r}" in line) == (hint is not None)
    assert allowed in line.split("allowed: ")[1]


def test_the_allowed_keys_are_those_of_the_chosen_kind():
    pixel, vae = complaint(codec__path="x"), complaint(codec={"kind": "vae", "path": "x", "colour": 1})
    assert "codec.path: unknown key (allowed: kind)" in pixel
    assert "codec.colour: unknown key (allowed: kind, path)" in vae


def test_all_mistakes_are_told_at_once():
    message = complaint(train__steps=0, train__stepz=1, unet__sample_size="big", condition__kind="labels", seed=-1)
    assert "5 mistakes" in message
    for place in ("train.steps", "train.stepz", "unet.sample_size", "condition.kind", "seed"):
        assert f"\n  {place}: " in message, place


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"task": "difusion"},
            "task: should be one of 'diffusion', 'vae', 'clip', 'lcm', 'gan', got 'difusion'; did you",
        ),
        ({"train__mixed_precision": "fp32"}, "train.mixed_precision: should be 'no', 'bf16' or 'fp16', got 'fp32'"),
        ({"train__lr_schedule": "cosin"}, "got 'cosin'; did you mean 'cosine'?"),
        ({"train__batch_size": 0}, "train.batch_size: should be greater than or equal to 1, got 0"),
        ({"train__ema_decay": 1.0}, "train.ema_decay: should be less than 1, got 1.0"),
        ({"condition__drop": 1.5}, "condition.drop: should be less than or equal to 1, got 1.5"),
        (
            {"condition__kind": "lable"},
            "condition.kind: should be one of 'none', 'label', 'text', 'model', got ",
        ),
        ({"prediction": "noise"}, "prediction: should be 'epsilon', "),
        ({"train": None}, "train: should be a group of keys and values, got None"),
        ({"unet__attention": True}, "unet.attention: should be a list, got True"),
        ({"unet__attention": [True, "yes", False]}, "unet.attention.1: should be a valid boolean, got 'yes'"),
        ({"unet__num_attention_heads": "two"}, "should be a valid integer or a list, got 'two'"),
        ({"unet__norm_num_groups": 7}, "unet: block_out_channels[0] = 16 is not divisible by norm_num_groups = 7"),
        ({"train__learning_rate": float("nan")}, "train.learning_rate: should be a finite number, got nan"),
        ({"train__max_grad_norm": float("inf")}, "train.max_grad_norm: should be a finite number, got inf"),
        ({"toy": {}}, "exactly one of `unet`, `toy` and `model`"),
        ({"data__origin": "folder"}, "data: origin is 'folder' and path is None"),
    ],
)
def test_wrong_values_are_answered_with_the_right_ones(changes, said):
    assert said in complaint(**changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train__batch_size", True),
        ("train__steps", "20"),
        ("train__steps", 2.0),
        ("train__steps", 1e5),
        ("train__learning_rate", "0.1"),
        ("train__learning_rate", True),
        ("train__compile", 1),
        ("train__compile", "off"),
        ("output", 12),
        ("sample__sampler", 5),
    ],
)
def test_nothing_is_turned_into_another_type(key, value):
    assert key.replace("__", ".") + ": should be a valid" in complaint(**{key: value})


def test_whole_numbers_are_real_ones_and_lists_are_tuples():
    run = validate(tree(train__learning_rate=1, unet__block_out_channels=[8, 16, 24]), "here")
    assert isinstance(run, DiffusionRun)
    assert run.unet is not None
    assert isinstance(run.train.learning_rate, float)
    assert run.unet.block_out_channels == (8, 16, 24)
    assert run.output == Path("runs/mnist_label")


def test_missing_keys():
    found = tree()
    del found["train"]["steps"], found["condition"]["kind"]
    with pytest.raises(UserError, match=r"2 mistakes\n  train.steps: missing\n  condition.kind: missing"):
        validate(found, "here")
    with pytest.raises(UserError, match="task: missing"):
        validate({}, "here")


def test_values_that_only_yaml_has_are_refused():
    with pytest.raises(UserError, match="more than text, numbers, lists"):
        validate({**tree(), "seed": {1, 2}}, "here")


# ------------------------------------------------------------------ overrides


def test_overrides_are_yaml_at_dotted_keys():
    run = load_config(
        LABEL,
        [
            "train.learning_rate=1e-5",
            "condition={kind: none}",
            "unet.cross_attention_dim=null",
            "data.limit=7",
            "seed = 3",
        ],
    )
    assert isinstance(run, DiffusionRun)
    assert (run.train.learning_rate, run.condition.kind, run.data.limit, run.seed) == (1e-5, "none", 7, 3)
    assert run.unet is not None
    assert run.unet.cross_attention_dim is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "'train.steps' is no override: expected dotted.key=value"),
        ("=3", "is no override"),
        ("train.steps.more=3", "train.steps is a value, not a group of keys"),
        ("train.stepp=3", "train.stepp: unknown key; did you mean 'steps'?"),
        ("train.steps=[", "the value of train.steps is not YAML"),
        ("train.steps=", "train.steps: should be a valid integer, got None"),
        ("new.group=1", "new: unknown key"),
    ],
)
def test_wrong_overrides_are_named(override, said):
    with pytest.raises(UserError) as caught:
        load_config(LABEL, [override])
    assert said in str(caught.value)


def test_settings_are_frozen():
    run = load_config(LABEL)
    for holder, key in ((run, "seed"), (run.train, "steps"), (run.data, "limit")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(holder, key, 5)


class Folders(Settings):
    """A second data source, as someone who adds one would write it."""

    source: Literal["folders"] = "folders"
    path: Path
    limit: int = 1


class WithFolders(DiffusionRun):
    data: Annotated[MnistConfig | Folders, Field(discriminator="source")]  # type: ignore[assignment]


def test_mistakes_in_an_added_data_source_have_their_place():
    kinds = Annotated[WithFolders | VAERun, Field(discriminator="task")]
    good = tree(data={"source": "folders", "path": "x"})
    assert validate(good, "run.yaml", kinds).data == Folders(path=Path("x"))
    with pytest.raises(UserError) as caught:
        validate(tree(data={"source": "folders", "limt": 2, "limit": "no"}), "run.yaml", kinds)
    said = str(caught.value)
    assert "data.limt: unknown key; did you mean 'limit'? (allowed: source, path, limit)" in said
    assert "data.path: missing" in said
    assert "data.limit: should be a valid integer" in said
    with pytest.raises(UserError, match=r"data\.source: .* 'mnist', 'folders', got 'folder'; did you mean 'folders'"):
        validate(tree(data={"source": "folder"}), "run.yaml", kinds)


# ------------------------------------------------------------------- settings in Python


class Pair(Settings):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    first: Path | range | None = None
    word: str | int | None = None
    files: tuple[tuple[Path, float], ...] = ()


def told(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        Pair.checked(values)
    return str(caught.value)


def test_a_value_of_several_kinds_has_one_line_without_the_kinds() -> None:
    assert told(word=["fog"]) == "word: should be a valid string or a valid integer, got ['fog']"
    shown = told(first=np.zeros((300, 300)))
    assert shown.startswith(
        "first: should be a path or an instance of range, got array([[0., 0., 0., ..., 0., 0., 0.], ["
    )
    assert len(shown) < 140
    assert "\n" not in shown


def test_a_text_for_a_list_has_one_line_for_all_its_letters() -> None:
    assert told(files=tuple("style.safetensors")) == "files.0: should be a list, got 's'"
    assert told(files=[("a", 1), ("b", "x")]) == (
        "files.1.1: should be a valid number, unable to parse string as a number, got 'x'"
    )


def test_a_page_of_mistakes_is_cut() -> None:
    shown = told(**{f"key{k}": 1 for k in range(50)})
    assert shown.count("unknown key") == 5
    assert shown.endswith("; and 45 more mistakes")


def test_unknown_keys_in_a_list_of_groups():
    mixed = {"source": "mix", "sources": [{"data": {"source": "mnist"}}, {"data": {"source": "mnist"}, "wieght": 2}]}
    with pytest.raises(UserError, match=r"data\.sources\.1\.wieght: unknown key; did you mean 'weight'"):
        validate(tree(data=mixed), "here")
