"""Names of emoji as people say them, in both languages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starter_lab import make_packages

from ldm.starter.colours import COLOURS, distance, nearest
from ldm.starter.emoji import EmojiNames
from ldm.starter.korean import ends_closed, particle
from ldm.starter.nouns import english_noun, korean_noun, with_article


@pytest.mark.parametrize(
    ("label", "subgroup", "expected"),
    [
        ("dog", "animal-mammal", "a dog"),
        ("orangutan", "animal-mammal", "an orangutan"),
        ("unicorn", "animal-mammal", "a unicorn"),
        ("ewe", "animal-mammal", "a ewe"),
        ("umbrella", "sky-weather", "an umbrella"),
        ("hourglass done", "time", "a finished hourglass"),
        ("one-piece swimsuit", "clothing", "a one-piece swimsuit"),
        ("x-ray", "medical", "an x-ray"),
        ("SOS button", "alphanum", "an SOS button"),
        ("NEW button", "alphanum", "a NEW button"),
        ("UP! button", "alphanum", "a UP! button"),
        ("people hugging", "person-symbol", "people hugging"),
        ("two hearts", "heart", "two hearts"),
        ("glasses", "clothing", "glasses"),
        ("bus", "transport-ground", "a bus"),
        ("cactus", "plant-other", "a cactus"),
        ("wine glass", "drink", "a wine glass"),
        ("nest with eggs", "plant-other", "a nest with eggs"),
        ("glass of milk", "drink", "a glass of milk"),
        ("person lifting weights", "person-sport", "a person lifting weights"),
        ("cooked rice", "food-asian", "cooked rice"),
        ("ice cream", "food-sweet", "an ice cream"),
        ("woman: curly hair", "person", "a woman with curly hair"),
        ("person: beard", "person", "a person with a beard"),
        ("man walking: facing right", "person-activity", "a man walking facing right"),
        ("family: man, woman, boy", "family", "a family of man, woman and boy"),
        ("flag: China", "country-flag", "a China flag"),
        ("keycap: 5", "keycap", "a keycap 5"),
        ("warning", "warning", "a warning sign"),
        ("Aries", "zodiac", "an Aries zodiac sign"),
        ("three o’clock", "time", "a clock showing three o'clock"),
        ("man’s shoe", "clothing", "a man's shoe"),
        ("Santa Claus", "person-fantasy", "Santa Claus"),
        ("Statue of Liberty", "place-building", "the Statue of Liberty"),
        ("Japanese “here” button", "alphanum", "a Japanese here button"),
    ],
)
def test_a_label_becomes_what_one_would_say(label: str, subgroup: str, expected: str) -> None:
    assert with_article(*english_noun(label, subgroup)) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [("깃발: 중국", "중국 깃발"), ("여자: 곱슬머리", "곱슬머리 여자"), ("키 캡: 1", "키캡 1"), ("사과", "사과")],
)
def test_a_korean_label_becomes_a_noun(label: str, expected: str) -> None:
    assert korean_noun(label) == expected


@pytest.mark.parametrize(
    ("word", "subject", "together"),
    [
        ("사과", "사과가", "사과와"),
        ("문", "문이", "문과"),
        ("펜", "펜이", "펜과"),
        ("키캡 1", "키캡 1이", "키캡 1과"),  # il
        ("키캡 2", "키캡 2가", "키캡 2와"),  # i
        ("DNA", "DNA가", "DNA와"),
        ("ATM", "ATM이", "ATM과"),  # em
    ],
)
def test_a_particle_fits_the_sound_before_it(word: str, subject: str, together: str) -> None:
    assert particle(word, "이", "가") == subject
    assert particle(word, "과", "와") == together


@given(st.integers(0, 18), st.integers(0, 20), st.integers(0, 27))
def test_a_syllable_ends_closed_when_it_has_a_final(first: int, vowel: int, final: int) -> None:
    syllable = chr(0xAC00 + (first * 21 + vowel) * 28 + final)  # the Unicode standard, section 3.12
    assert ends_closed(f"가{syllable}") == (final > 0)


def test_emoji_are_found_by_code_and_by_the_names_that_sets_give_them(tmp_path: Path) -> None:
    packages = make_packages(tmp_path)
    names = EmojiNames(tmp_path / packages["emojibase"].tarball)
    dog = names.of_code("1F436-FE0F")
    assert dog is not None
    assert (dog.noun, dog.article, dog.korean, dog.group) == ("dog face", "a", "강아지 얼굴", "animals-nature")
    for slug in ("dog-face", "dogface", "dog-face-2", "DOG FACE"):
        assert names.of_slug(slug) == dog
    for slug, code in (("flag-for-china", "1f1e8-1f1f3"), ("red-car", "1f697"), ("thumbsup", "1f44d")):
        found = names.of_slug(slug)
        assert found is not None
        assert found.code == code
    assert names.of_slug("mouse") is None
    assert names.of_code("1f44d-1f3ff") is None
    assert dog.tags == ("dog", "pet", "puppy")
    thumb = names.of_code("1f44d")
    assert thumb is not None
    assert thumb.tags == ("like",)  # "+1" is no word


def test_named_colours_can_be_told_from_each_other() -> None:
    for colour in COLOURS.values():
        others = [distance(colour.rgb, other.rgb) for other in COLOURS.values() if other != colour]
        assert min(others) > 60
        assert nearest(colour.rgb) == colour.name
