"""``ldm prompts``: ideas that the model can draw, and what it knows."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from test_imports import COMMAND_LINE, HEAVY, NEVER_TO_DRAW, modules_after
from tiny_models import written

from ldm import cli
from ldm.errors import UserError
from ldm.knowledge.file import KNOWS, Colour, Group, Knowledge, Phrases, Style, Thing, write_knowledge
from ldm.knowledge.ideas import ideas
from ldm.knowledge.mending import Mender
from ldm.knowledge.showing import columns, listing, matches, wrapped
from ldm.weights.parts import INDEX

ANIMALS = ("cat", "owl", "fox", "puppy", "snail")
KNOWN = Knowledge(
    scenes=("single", "colours", "pairs", "triples", "glyphs", "avatars"),
    styles=(
        Style(word="flat", drawing="flat drawing", korean="플랫", korean_drawing="플랫 그림"),
        Style(word="3d", drawing="3d render", korean="3D", korean_drawing="3D 렌더링"),
        Style(word="icon", drawing="icon", korean="아이콘", kind="icon"),
    ),
    colours=(
        Colour(name="white", korean="흰색", rgb=(255, 255, 255)),
        Colour(name="red", korean="빨간색", rgb=(220, 38, 38)),
        Colour(name="sky blue", korean="하늘색", rgb=(130, 205, 250)),
    ),
    groups=(
        Group(
            name="animals and nature",
            styles=("flat", "3d"),
            things=(
                Thing(noun="cat", korean="고양이", tags=("pet", "kitten"), korean_tags=("동물",)),
                Thing(noun="owl", article="an", korean="올빼미", styles=("flat",)),
                Thing(noun="fox", korean="여우"),
                Thing(noun="dog face", other=("puppy",), korean="강아지 얼굴", tags=("dog",), paintable=False),
                Thing(noun="snail", korean="달팽이", styles=("3d",)),
                Thing(noun="flag in a hole", placeable=False),
            ),
        ),
        Group(name="icons", styles=("icon",), things=(Thing(noun="sword"), Thing(noun="anvil", article="an"))),
        Group(
            name="avatars",
            things=(Thing(noun="monster", tags=("horns", "a big smile", "red"), korean="괴물", placeable=False),),
        ),
    ),
    places=Phrases(en=("in the top left corner", "in the top right corner", "in the bottom left corner")),
    sizes=Phrases(en=("small", "large"), ko=("작은", "큰")),
    relations=Phrases(
        en=("left of", "right of", "above", "below", "between ... and", "in a row", "from left to right", "top bottom"),
        ko=("왼쪽에", "오른쪽에", "위에", "아래에", "왼쪽부터", "위에서부터"),
    ),
    function=Phrases(en=("style", "background", "of", "on"), ko=("스타일", "배경")),
    examples=Phrases(en=("a cat",), ko=("고양이",)),
)


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``ldm prompts``."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            cli.run(cli.app, ["prompts", *words])
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), said.getvalue()
    raise AssertionError("the command ends the process")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "knowing"
    folder.mkdir()
    write_knowledge(KNOWN, folder)
    return str(folder)


# ------------------------------------------------------------------------------- ideas


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("kind", KNOWN.scenes)
def test_ideas_are_of_what_is_known(kind: str, language: str) -> None:
    knowledge = KNOWN.model_copy(update={"scenes": (kind,)})
    if (kind, language) == ("glyphs", "ko"):  # these have no names in Korean
        with pytest.raises(UserError, match="Korean"):
            ideas(knowledge, 5, 0, "ko")
        return
    found = ideas(knowledge, 200, 0, language)  # type: ignore[arg-type]
    assert len(set(found)) == len(found) >= 3 if kind != "avatars" else found
    mender = Mender(knowledge)
    assert [prompt for prompt in found if mender(prompt).unknown] == []
    hangul = [any("HANGUL" in unicodedata.name(letter, "") for letter in prompt) for prompt in found]
    assert all(hangul) if language == "ko" else not any(hangul)


def test_things_of_one_picture_come_in_its_style() -> None:
    """The owl is flat only and the snail in 3d only, so they never meet."""
    found = ideas(KNOWN.model_copy(update={"scenes": ("pairs", "triples")}), 1000, 4)
    assert len(found) > 200
    assert not [prompt for prompt in found if "owl" in prompt and ("snail" in prompt or "3d" in prompt)]
    assert not [prompt for prompt in found if "snail" in prompt and "flat" in prompt]
    for prompt in found:
        names = re.findall(rf"\b(?:{'|'.join(ANIMALS)})\b", prompt)
        assert len(names) == len(set(names)) in (2, 3)
        assert re.search(r"left of|right of|above|below|between|in a row|from left|from top", prompt)


def test_articles_fit_and_what_has_its_own_colour_keeps_it() -> None:
    found = " ".join(ideas(KNOWN, 1000, 0))
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", found)
    assert not re.search(r"(red|blue) puppy", found)
    assert re.search(r"red (cat|fox)", found)
    assert not re.search(r"red [a-z ]* on a red background", "\n".join(ideas(KNOWN, 1000, 0)))


def test_a_seed_gives_the_same_ideas() -> None:
    assert ideas(KNOWN, 20, 7) == ideas(KNOWN, 20, 7) != ideas(KNOWN, 20, 8)
    with pytest.raises(UserError, match="count"):
        ideas(KNOWN, 0, 7)


# ------------------------------------------------------------------------------- lists and words


def test_lists() -> None:
    things = listing(KNOWN, "things", 60)
    assert all(thing.noun in things for _, thing in KNOWN.members())
    assert "animals and nature (6)" in things
    assert listing(KNOWN, "animals", 60) == listing(KNOWN, "animals and nature", 60)
    assert "flat drawing of" in listing(KNOWN, "styles", 60)
    assert "#82cdfa" in listing(KNOWN, "colours", 60)
    assert listing(KNOWN, "relations", 60).splitlines()[0] == "left of"
    assert (
        listing(KNOWN.model_copy(update={"relations": Phrases()}), "relations", 60)
        == "it was trained without relations"
    )
    with pytest.raises(UserError, match="did you mean 'colours'"):
        listing(KNOWN, "colors", 60)


def test_lines_keep_to_their_width() -> None:
    words = ["강아지 얼굴", "cat", "고양이"] * 30
    lines = list(wrapped(words, 50))
    assert ", ".join(line.strip().rstrip(",") for line in lines) == ", ".join(words)
    assert max(sum(1 + (ord(letter) > 0x1100) for letter in line) for line in lines) <= 50
    assert [line.index("|") for line in columns([("ab", "|"), ("abcd", "|")])] == [6, 6]


def test_names_come_before_tags() -> None:
    assert [thing.noun for _, thing in matches(KNOWN, "dog")] == ["dog face"]
    assert [thing.noun for _, thing in matches(KNOWN, "Puppy")] == ["dog face"]
    assert [thing.noun for _, thing in matches(KNOWN, "동물")] == ["cat"]
    assert [thing.noun for _, thing in matches(KNOWN, "in")] == ["flag in a hole"]
    assert not matches(KNOWN, "do")


# ------------------------------------------------------------------------------- the command


def test_ideas_alone_go_to_stdout(place: str) -> None:
    code, out, said = run(place, "--seed", "3", "--count", "5")
    assert code == 0
    assert out.splitlines() == ideas(KNOWN, 5, 3)
    assert "knows 6 things in 2 styles (flat, 3d), 2 icons, 1 avatars and 3 colours" in " ".join(said.split())
    assert f"ldm prompts {place} --seed 3" in said
    assert run("-m", place, "--seed", "3", "-c", "5") == (0, out, said)
    assert run(place, "--seed", "3", "--language", "ko")[1].splitlines() == ideas(KNOWN, 8, 3, "ko")
    assert json.loads(run(place, "--seed", "3", "--json")[1])["ideas"] == ideas(KNOWN, 8, 3)


def test_words_are_looked_up(place: str) -> None:
    code, out, said = run(place, "dog")
    assert (code, said) == (0, "")
    assert out.splitlines()[0] == "dog face · 강아지 얼굴"
    for words in ("also     puppy", "found by dog", "styles   flat, 3d", "group    animals and nature"):
        assert words in out
    assert run(place, "dog", "face")[1] == out
    assert run(place, "강아지")[1] == out
    assert "red: a colour (빨간색)" in run(place, "red")[1]
    found = json.loads(run(place, "dog", "--json")[1])
    assert [thing["noun"] for thing in found["things"]] == ["dog face"]
    assert found["things"][0]["styles"] == ["flat", "3d"]


def test_an_unknown_word_finds_the_nearest(place: str) -> None:
    code, out, said = run(place, "snial")
    assert (code, out.splitlines()[0]) == (0, "snail · 달팽이")
    assert said == 'note: this model does not know "snial"; the nearest is "snail"\n'
    code, out, said = run(place, "quux")
    assert (code, out) == (2, "")
    assert "'quux'" in said


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--list", "thigns"), "did you mean 'things'"),
        (("--list", "things", "dog"), "not both"),
        (("--language", "fr"), "language"),
        (("--count", "0"), "count"),
        (("-m", "no/such"), "no/such"),
    ],
)
def test_mistakes_are_named(place: str, words: tuple[str, ...], fault: str) -> None:
    code, out, said = run(*([] if "-m" in words else ["-m", place]), *words)
    assert (code, out, said[:7], said.count("\n")) == (2, "", "error: ", 1)
    assert fault in said


def test_lists_for_programs(place: str) -> None:
    assert [row["name"] for row in json.loads(run(place, "--list", "colours", "--json")[1])] == [
        colour.name for colour in KNOWN.colours
    ]
    assert len(json.loads(run(place, "--list", "animals", "--json")[1])) == 6
    assert json.loads(run(place, "--list", "examples", "--json")[1]) == {"en": ["a cat"], "ko": ["고양이"]}


def test_models_that_do_not_say_what_they_know(tmp_path: Path) -> None:
    """Those trained here name the samples of their training; of others nothing is known."""
    code, out, said = run("ldm:mnist_text")
    assert code == 0
    assert "a handwritten seven" in out.splitlines()
    assert KNOWS in said
    assert run("ldm:mnist_label")[1].split() == [str(digit) for digit in range(10)]
    code, out, said = run("ldm:mnist_text", "dog")
    assert (code, out) == (2, "")
    assert KNOWS in said
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / INDEX).write_text("{}")
    code, out, said = run(str(silent))
    assert (code, out) == (2, "")
    assert KNOWS in said


def test_a_run_shows_its_newest_checkpoint(tmp_path: Path) -> None:
    written("unconditional", tmp_path / "run" / "checkpoints" / "step_2")
    write_knowledge(KNOWN, tmp_path / "run" / "checkpoints" / "step_2")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step_2", tmp_path / "run" / "checkpoints" / "step_1")
    (tmp_path / "run" / "checkpoints" / "step_1" / KNOWS).unlink()
    assert run(str(tmp_path / "run"), "owl")[1].startswith("owl")


def test_no_torch_to_show_prompts(place: str, tmp_path: Path) -> None:
    found = modules_after(COMMAND_LINE, tmp_path, "prompts", place)
    assert "typer" in found
    assert not found & ({"torch", "transformers", "numpy", "PIL"} & HEAVY | NEVER_TO_DRAW)
