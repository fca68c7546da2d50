"""What a picture can show: its names in both languages, and how often it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldm.starter.emoji import Emoji
from ldm.starter.icon_sets import glyph_noun
from ldm.starter.nouns import article_of

# Flags, letters and arrows are a fifth of all emoji, and seldom asked for; of people there are three of each.
_GROUP_WEIGHTS = {"flags": 0.15, "symbols": 0.4, "people-body": 0.6, "smileys-emotion": 0.8}
_SUBGROUP_WEIGHTS = {"alphanum": 0.15, "keycap": 0.3, "av-symbol": 0.2, "arrow": 0.25, "family": 0.2, "time": 0.4}
_PLACEABLE = {"animals-nature", "food-drink", "travel-places", "activities", "objects", "smileys-emotion"}
_SCENES = {"place-map", "place-geographic", "place-building", "place-religious", "place-other", "time", "emotion"}
_COLOUR_WORDS = re.compile(r"\b(red|orange|yellow|green|blue|purple|pink|brown|black|white|grey|golden)\b")
_OWN_COLOUR = {"smileys-emotion", "people-body", "symbols", "flags"}


@dataclass(frozen=True)
class Subject:
    """Something to draw.

    Attributes:
        name: unique; a code point sequence, ``icon`` and a slug, or what tells an avatar.
        kind: ``emoji``, ``glyph`` or ``avatar``.
        noun, article, tags: in English, as in ``Emoji``.
        korean, korean_tags: in Korean; empty where there is no Korean name.
        other: further English nouns that mean the same, such as ``car`` for ``automobile``.
        group, subgroup: of the Unicode consortium; empty for what is no emoji.
        weight: how often it comes, in proportion to the others.
    """

    name: str
    kind: str
    noun: str
    article: str
    tags: tuple[str, ...]
    korean: str
    korean_tags: tuple[str, ...]
    other: tuple[str, ...]
    group: str
    subgroup: str
    weight: float

    @property
    def placeable(self) -> bool:
        """Whether it is a thing that can stand beside another thing."""
        return self.group in _PLACEABLE and self.subgroup not in _SCENES

    @property
    def colourable(self) -> bool:
        """Whether "a blue ..." of it makes sense: it has no colour in its name, and none that makes it what it is."""
        return self.group not in _OWN_COLOUR and not _COLOUR_WORDS.search(self.noun)

    def as_row(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Subject:
        """From a JSON file."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**values)


def emoji_subject(emoji: Emoji) -> Subject:
    """What the pictures of an emoji show."""
    weight = _SUBGROUP_WEIGHTS.get(emoji.subgroup, _GROUP_WEIGHTS.get(emoji.group, 1.0))
    if re.match(r"(wo)?man |(wo)?men ", emoji.noun):
        weight *= 0.5
    known = (emoji.noun, emoji.article, emoji.tags, emoji.korean, emoji.korean_tags)
    other = OTHER_NAMES.get(emoji.label, ())
    return Subject(emoji.code, "emoji", *known, other, emoji.group, emoji.subgroup, weight)


def glyph_subject(slug: str, koreans: Mapping[str, str]) -> Subject:
    """What a one-colour icon shows.

    Args:
        slug: its name in its set.
        koreans: Korean nouns by English ones, for icons that are called as an emoji is.
    """
    noun = glyph_noun(slug)
    weight = (
        0.1 if re.fullmatch(r"(abstract|card|tarot|rank|tally mark|dice|domino|inverted dice).*\d.*", noun) else 1.0
    )
    return Subject(f"icon {slug}", "glyph", noun, article_of(noun), (), koreans.get(noun, ""), (), (), "", "", weight)


OTHER_NAMES: dict[str, tuple[str, ...]] = {  # what people say where the label is another word
    "automobile": ("car",),
    "sport utility vehicle": ("SUV", "jeep"),
    "delivery truck": ("truck",),
    "articulated lorry": ("big truck",),
    "fire engine": ("fire truck",),
    "motor scooter": ("scooter",),
    "racing car": ("race car",),
    "airplane": ("plane",),
    "bicycle": ("bike",),
    "locomotive": ("steam train",),
    "sailboat": ("sailing boat",),
    "flying saucer": ("UFO",),
    "mobile phone": ("phone", "smartphone"),
    "television": ("TV",),
    "laptop": ("computer",),
    "desktop computer": ("PC",),
    "soccer ball": ("football",),
    "game die": ("die",),
    "wrapped gift": ("gift", "present"),
    "jack-o-lantern": ("Halloween pumpkin",),
    "honeybee": ("bee",),
    "lady beetle": ("ladybug",),
    "bug": ("caterpillar",),
    "rabbit face": ("bunny face",),
    "rabbit": ("bunny",),
    "dog face": ("puppy",),
    "cat face": ("kitten",),
    "hatching chick": ("chick in an egg",),
    "sauropod": ("dinosaur",),
    "T-Rex": ("tyrannosaurus",),
    "red apple": ("apple",),
    "hot beverage": ("cup of coffee",),
    "beer mug": ("beer",),
    "wine glass": ("glass of wine",),
    "cocktail glass": ("cocktail",),
    "hamburger": ("burger",),
    "doughnut": ("donut",),
    "birthday cake": ("cake",),
    "cheese wedge": ("cheese",),
    "ear of corn": ("corn",),
    "hot pepper": ("chili pepper",),
    "soft ice cream": ("ice cream cone",),
    "eggplant": ("aubergine",),
    "necktie": ("tie",),
    "t-shirt": ("shirt",),
    "top hat": ("hat",),
    "billed cap": ("cap",),
    "running shoe": ("sneaker",),
    "high-heeled shoe": ("high heel",),
    "magnifying glass tilted left": ("magnifying glass",),
    "closed book": ("book",),
    "alarm clock": ("clock",),
    "evergreen tree": ("fir tree",),
    "deciduous tree": ("tree",),
    "four leaf clover": ("lucky clover",),
    "seedling": ("sprout",),
    "snow-capped mountain": ("snowy mountain",),
    "crescent moon": ("moon",),
    "red heart": ("heart",),
    "pile of poo": ("poop",),
    "grinning face": ("smiley",),
    "locked": ("lock",),
    "gem stone": ("diamond",),
    "wastebasket": ("trash can",),
    "envelope": ("letter",),
    "glasses": ("eyeglasses",),
}
