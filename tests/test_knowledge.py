"""What a model says that it knows: the file, the words that it covers, and prompts with unknown ones."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from generate_lab import pixels, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starter_lab import EMOJI, ICONS, SIDE, make_packages
from tiny_models import written

import ldm
from ldm.describe import describe
from ldm.errors import UserError
from ldm.knowledge.file import KNOWS, Knowledge, read_knowledge, write_knowledge
from ldm.knowledge.ideas import ideas
from ldm.knowledge.mending import Mender, told
from ldm.knowledge.vocabulary import words_of
from ldm.prompts import parse
from ldm.starter.knowledge import knowledge_of
from ldm.starter.preparing import prepare
from ldm.starter.settings import StarterConfig
from ldm.starter.source import StarterSource
from ldm.weights.converting import convert_model
from ldm.weights.embedded import as_path
from ldm.weights.model import load_model, save_model

pytest.importorskip("resvg_py")
SEVERAL = {"single": 1, "colours": 1, "pairs": 1, "triples": 1, "glyphs": 1}
# words that the hand-made pictures leave unknown, and what is nearest of what they show
NEAREST = {
    "snails": "snail",
    "snial": "snail",
    "autmobile": "automobile",
    "automobils": "automobile",
    "dogface": "dog face",
    "graeps": "grapes",
    "keydoor": "door",
    "beagle": "dog",
    "beagles": "dog",
    "sedan": "automobile",
    "crimson": "red",
    "gray": "grey",
    "빨강": "빨간색",
    "빨강으로": "빨간색",
    "강아자": "강아지",
    "달팬이": "달팽이",
}
FAR = ("quux", "zzz", "photorealistic", "behind", "cathedral", "dour", "snack", "floor", "뒤에")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("starter")
    prepare(place / "data", place / "npm", SIDE, 1, 0, make_packages(place / "npm"))
    return place / "data"


def config(folder: Path, **changes: Any) -> StarterConfig:
    return StarterConfig.checked({"path": folder, "size": SIDE, "kinds": SEVERAL, "length": 5000, **changes})


@pytest.fixture(scope="module")
def knowledge(folder: Path) -> Knowledge:
    return knowledge_of(config(folder))


@pytest.fixture(scope="module")
def mender(knowledge: Knowledge) -> Mender:
    return Mender(knowledge)


# ------------------------------------------------------------------------------- the file


def test_a_converted_folder_keeps_it_and_info_tells_of_it(knowledge: Knowledge, tmp_path: Path) -> None:
    copytree(as_path("ldm:mnist_text"), tmp_path / "model")
    write_knowledge(knowledge, tmp_path / "model")
    convert_model(tmp_path / "model", tmp_path / "half", "diffusers", dtype=torch.float16)
    assert read_knowledge(tmp_path / "half") == knowledge
    things = sum(1 for _ in knowledge.members())
    assert f"knows: {things} things in {len(knowledge.styles)} styles" in describe(str(tmp_path / "half"))


def test_what_is_written_is_read(knowledge: Knowledge, tmp_path: Path) -> None:
    path = write_knowledge(knowledge, tmp_path)
    assert path == tmp_path / KNOWS
    assert read_knowledge(tmp_path) == knowledge
    assert [each.name for each in tmp_path.iterdir()] == [KNOWS]


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert read_knowledge(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        ('{"format": 2}', "format 2"),
        ("{}", "format None"),
        ('{"format": 1, "thigns": []}', "thigns"),
        ('{"format": 1, "colours": [{"name": "red", "rgb": [1, 2]}]}', "colours.0.rgb"),
        ('{"format": 1, "groups": [{"name": "g", "things": [{"noun": ""}]}]}', "groups.0.things.0.noun"),
        ('{"format": 1, "groups": [{"name": "g", "things": [{"noun": "n", "styles": ["x"]}]}]}', "'x'"),
        (b"\xff\xfe".decode("latin-1"), "JSON"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / KNOWS).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_knowledge(tmp_path)
    assert str(tmp_path / KNOWS) in str(caught.value)
    assert fault in str(caught.value)


# ------------------------------------------------------------------------------- what is in it


def nouns(knowledge: Knowledge) -> set[str]:
    return {thing.noun for _, thing in knowledge.members()}


def test_all_that_can_be_drawn_is_in_it(folder: Path, knowledge: Knowledge) -> None:
    source = StarterSource(config(folder))
    shown = {
        source.prepared.subjects[source.prepared.pictures[item.picture].subject].noun
        for number in range(2000)
        for item in source.scene(number).items
    }
    assert nouns(knowledge) == shown
    assert len(nouns(knowledge)) > len(EMOJI)
    by_group = {group.name: group for group in knowledge.groups}
    assert len(by_group["icons"].things) == len(ICONS)
    assert by_group["icons"].styles == ("icon",)
    (car,) = [thing for thing in by_group["travel and places"].things]
    assert (car.noun, car.other, car.korean) == ("automobile", ("car",), "자동차")
    assert set(by_group["travel and places"].styles_of(car)) == {"twemoji", "noto", "3d"}


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": {"single": 1}},
        {"kinds": {"single": 1, "colours": 0}, "groups": ["food-drink", "animals-nature"]},
        {"kinds": {"glyphs": 1}},
        {"kinds": {"pairs": 1}},
    ],
)
def test_only_what_is_in_the_world_of_the_training(folder: Path, changes: dict[str, Any]) -> None:
    """A smaller world has fewer things, and none that its scenes lack."""
    asked = config(folder, **changes)
    found, source = knowledge_of(asked), StarterSource(asked)
    shown = {
        source.prepared.subjects[source.prepared.pictures[item.picture].subject].noun
        for number in range(1000)
        for item in source.scene(number).items
    }
    assert nouns(found) == shown
    assert bool(found.relations.en) == ("pairs" in changes["kinds"])
    assert bool(found.places.en) == ("glyphs" in changes["kinds"])
    assert found.scenes == tuple(kind for kind, share in changes["kinds"].items() if share)
    for prompt in (*found.examples.en, *found.examples.ko, *ideas(found, 20, 1)):
        assert not Mender(found)(prompt).unknown


def test_what_a_word_is_near_is_known(knowledge: Knowledge, mender: Mender) -> None:
    assert knowledge.near
    for word, name in knowledge.near.items():
        assert not mender.vocabulary.knows(word)
        assert all(map(mender.vocabulary.knows, words_of(name)))


# ------------------------------------------------------------------------------- unknown words


def test_no_caption_has_an_unknown_word(folder: Path, mender: Mender) -> None:
    source = StarterSource(config(folder, captions={"en": 4, "ko": 4}))
    captions = {caption for number in range(1500) for caption in source.words(number).captions}
    assert len(captions) > 5000
    assert {caption: mender(caption) for caption in captions if mender(caption) != (caption, ())} == {}


@pytest.mark.parametrize("word", NEAREST)
def test_the_nearest(mender: Mender, word: str) -> None:
    (unknown,) = mender(word).unknown
    assert unknown == (word, NEAREST[word])
    assert mender(word).prompt == NEAREST[word]


@pytest.mark.parametrize("word", FAR)
def test_rather_nothing_than_something_far(mender: Mender, word: str) -> None:
    assert mender(f"a {word}, flat") == (f"a {word}, flat", ((word, None), ("flat", None)))
    assert mender(word) == (word, ((word, None),))


@pytest.mark.parametrize(
    ("prompt", "mended"),
    [
        ("a beagle", "a dog"),
        ("A Beagle, please", "A dog, please"),
        ("a (beagle:1.3)", "a (dog:1.3)"),
        ("a [sedan] left of ((a beagle))", "an [automobile] left of ((a dog))"),
        ("a sedan", "an automobile"),
        ("a graeps", "grapes"),
        ("a snail BREAK a sedan", "a snail BREAK an automobile"),
        ("<quux:1> a snail", "<quux:1> a snail"),
        ("2 snails, 100%, 4k!", "2 snail, 100%, 4k!"),
        ("a mycat and mycatsnail", "a mycat and mycatsnail"),
        ("embedding:mycat", "embedding:mycat"),
        ("\\(a snail\\)", "\\(a snail\\)"),
        ("달팽이가 자동차와 있다", "달팽이가 자동차와 있다"),
        ("빨간색자동차", "빨간색자동차"),
        ("", ""),
    ],
)
def test_what_is_no_word_stays(knowledge: Knowledge, prompt: str, mended: str) -> None:
    assert Mender(knowledge, {"mycat"})(prompt).prompt == mended


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_weights_do_not_depend_on_the_words(mender: Mender, data: st.DataObject) -> None:
    """Brackets and numbers come through, so that a mended prompt weighs its words as the one that was asked for."""
    words = st.sampled_from(["beagle", "a", "snail", "(", ")", "[", "]", ":1.2)", "sedan", ",", "BREAK", "quux", "\\("])
    prompt = " ".join(data.draw(st.lists(words, max_size=12)))
    mended = mender(prompt)
    assert all(each.nearest is None for each in mender(mended.prompt).unknown)
    assert [[span.weight for span in part] for part in parse(prompt)] == [
        [span.weight for span in part] for part in parse(mended.prompt)
    ]


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(max_size=60))
def test_any_text_can_be_mended(mender: Mender, prompt: str) -> None:
    found = mender(prompt)
    assert found.prompt == prompt or any(each.nearest for each in found.unknown)


def test_one_sentence_names_all(mender: Mender) -> None:
    found = mender("beagle, sedan, beagle").unknown
    expected = 'this model does not know "beagle" or "sedan"; the nearest that it knows are "dog" and "automobile"'
    assert told(found) == expected
    assert told(found[:1]) == 'this model does not know "beagle"; the nearest that it knows is "dog"'
    assert told(mender("quux beagle").unknown).endswith('it knows nothing like "quux"')
    many = told(mender(" ".join(f"zz{chr(97 + k)}qx" for k in range(20))).unknown)
    assert many.endswith("or 12 more")


# ------------------------------------------------------------------------------- ldm generate


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, knowledge: Knowledge) -> Path:
    """``knowing`` and ``silent``, the same weights."""
    place = tmp_path_factory.mktemp("models")
    for name in ("knowing", "silent"):
        written("text", place / name)
    write_knowledge(knowledge, place / "knowing")
    return place


def drawn(models: Path, *words: str, model: str = "knowing") -> tuple[str, Image.Image]:
    output = str(models / "o.png")
    code, said = run("generate", *words, "-m", str(models / model), "--steps", "2", "--seed", "3", "-o", output)
    assert code == 0, said
    return said, Image.open(output).copy()


def test_unknown_words_get_the_nearest_and_a_note(models: Path) -> None:
    said, picture = drawn(models, "a beagle left of a quux")
    assert said.count("note: ") == said.count("\n") == 1
    for told_word in ('"beagle"', '"dog"', '"quux"', f"ldm prompts {models / 'knowing'}", "--as-written"):
        assert told_word in said
    record = json.loads(picture.info["ldm"])
    assert record["prompt"] == "a dog left of a quux"
    assert record["drawing"]["asked"] == "a beagle left of a quux"
    assert run("replay", str(models / "o.png"), "--verify", "-o", str(models / "again.png")) == (0, "")
    again = json.loads(Image.open(models / "again.png").text["ldm"])  # type: ignore[attr-defined]
    assert again["drawing"]["asked"] == "a beagle left of a quux"
    silent, same = drawn(models, "a dog left of a quux", model="silent")
    assert silent == ""
    assert pixels(picture) == pixels(same)


def test_as_written(models: Path) -> None:
    said, picture = drawn(models, "a beagle", "--as-written")
    assert said == ""
    assert pixels(picture) == pixels(drawn(models, "a beagle", model="silent")[1])
    assert "asked" not in json.loads(picture.info["ldm"])["drawing"]
    code, refused = run("generate", "a beagle", "--as-written", "-m", str(models / "silent"), "-o", "never.png")
    assert code == 2
    assert KNOWS in refused


def test_known_words_give_no_note(models: Path) -> None:
    said, picture = drawn(models, "an (automobile:1.2) above a dog face, flat drawing 3d style")
    assert said.count("flat") == 1  # the hand-made pictures have no such style
    said, picture = drawn(models, "an (automobile:1.2) above a dog face, 3d style", "-n", "blurry")
    assert said == ""
    assert "asked" not in json.loads(picture.info["ldm"])["drawing"]


def test_one_note_for_many_prompts(models: Path) -> None:
    code, said = run(
        *("generate", "a beagle", "a sedan", "a key", "--steps", "2", "--seed", "3", "-m", str(models / "knowing")),
        *("-o", str(models / "many.png")),
    )
    assert (code, said.count("note: ")) == (0, 1)
    records = [json.loads(Image.open(path).text["ldm"]) for path in sorted(models.glob("many_*.png"))]  # type: ignore[attr-defined]
    assert [record["prompt"] for record in records] == ["a dog", "an automobile", "a key"]
    assert [record["drawing"].get("asked") for record in records] == ["a beagle", "a sedan", None]


def test_python_draws_what_it_is_given(models: Path) -> None:
    studio = ldm.load(models / "knowing", device="cpu", dtype="fp32")
    (picture,) = studio("a beagle", seed=3, steps=2)
    assert picture.info["record"].prompt == "a beagle"
    assert pixels(picture) != pixels(studio("a dog", seed=3, steps=2)[0])
    assert studio.mended("a beagle") == ("a dog", (("beagle", "dog"),))
    assert studio.knowledge is not None
    silent = ldm.load(models / "silent", device="cpu", dtype="fp32")
    assert silent.knowledge is None
    assert silent.mended("a beagle") == ("a beagle", ())


def test_a_damaged_file_is_told_before_anything_is_drawn(models: Path, tmp_path: Path) -> None:
    save_model(load_model(models / "silent"), tmp_path / "model")
    (tmp_path / "model" / KNOWS).write_text("{")
    code, said = run("generate", "a key", "-m", str(tmp_path / "model"), "-o", str(tmp_path / "o.png"))
    assert (code, said[:7], said.count("\n")) == (2, "error: ", 1)
    assert not (tmp_path / "o.png").exists()
