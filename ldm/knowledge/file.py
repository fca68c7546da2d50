"""``knows.json`` in a model folder: what the model can draw, in words.

It is for models of a small world, whose makers know every word of the captions. All texts are UTF-8, and what is left
out is empty. An example, shortened:

    {"format": 1,
     "scenes": ["single", "colours", "pairs"],
     "styles": [{"word": "flat", "drawing": "flat drawing", "korean": "플랫", "korean_drawing": "플랫 그림"}],
     "colours": [{"name": "red", "korean": "빨간색", "rgb": [220, 38, 38]}],
     "groups": [{"name": "animals and nature", "styles": ["3d", "flat"],
                 "things": [{"noun": "dog face", "other": ["puppy"], "tags": ["pet"], "korean": "강아지 얼굴",
                             "korean_tags": ["개"], "paintable": false}]}],
     "places": {"en": ["at the top"], "ko": ["위쪽에 있는"]},
     "sizes": {"en": ["small"], "ko": ["작은"]},
     "relations": {"en": ["left of"], "ko": ["왼쪽에 있는"]},
     "function": {"en": ["a", "on", "background"], "ko": ["배경"]},
     "near": {"labrador": "dog face"},
     "examples": {"en": ["a dog face, flat style"], "ko": ["강아지 얼굴"]}}

It is small (hundreds of kilobytes for thousands of things), holds no more than words, and nothing of the drawing
depends on it: without it the same weights draw the same picture from the same prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ldm.errors import UserError
from ldm.publishing import disk_trouble, write_whole
from ldm.schema import Settings

KNOWS = "knows.json"
Language = Literal["en", "ko"]
SceneKind = Literal["single", "colours", "pairs", "triples", "glyphs", "avatars"]
Texts = tuple[str, ...]
_FORMAT = 1


class Style(Settings):
    """A style of drawing and what asks for it.

    Attributes:
        word: stands before "style", such as ``flat``.
        drawing: stands before "of a dog", such as ``flat drawing``.
        korean, korean_drawing: the same in Korean.
        kind: ``picture``, of colours of its own; ``icon``, of one colour that is named; ``avatar``.
    """

    word: str = Field(min_length=1)
    drawing: str = ""
    korean: str = ""
    korean_drawing: str = ""
    kind: Literal["picture", "icon", "avatar"] = "picture"


class Colour(Settings):
    """A named colour: its names, and sRGB 0 to 255."""

    name: str = Field(min_length=1)
    korean: str = ""
    rgb: tuple[int, int, int]


class Thing(Settings):
    """Something that can be asked for.

    Attributes:
        noun: what it is called, without an article.
        article: ``a``, ``an``, ``the`` or none.
        other: further names.
        tags: words that find it, too, as they were in captions.
        korean, korean_tags: name and tags in Korean.
        styles: words of those that it comes in, where they are not those of its group.
        placeable: whether it is one to stand beside another thing, where ``scenes`` have several.
        paintable: whether a colour can be asked for that is not its own.
    """

    noun: str = Field(min_length=1)
    article: str = "a"
    other: Texts = ()
    tags: Texts = ()
    korean: str = ""
    korean_tags: Texts = ()
    styles: Texts = ()
    placeable: bool = True
    paintable: bool = True

    @property
    def named(self) -> str:
        """With its article."""
        return f"{self.article} {self.noun}".strip()


class Group(Settings):
    """Things of a kind: the group's name, the words of the styles that most of them come in, and they themselves."""

    name: str = Field(min_length=1)
    styles: Texts = ()
    things: tuple[Thing, ...]

    def styles_of(self, thing: Thing) -> Texts:
        return thing.styles or self.styles


class Phrases(Settings):
    """Words in both languages."""

    en: Texts = ()
    ko: Texts = ()

    def of(self, language: Language) -> Texts:
        return self.en if language == "en" else self.ko


class Knowledge(Settings):
    """All that the file says.

    Attributes:
        format: of the file.
        scenes: kinds of pictures that the model was trained on: ``single`` things, on ``colours``, ``pairs`` and
            ``triples`` with their relations, ``glyphs`` (icons in a named colour) and ``avatars``.
        styles, colours, groups: what can be asked for.
        places, sizes, relations: how captions say where a thing is, how large, and how two stand to each other.
        function: every other word of the captions.
        near: word that the model does not know -> name of the thing, or the colour, that is nearest in meaning.
        examples: prompts that show what it can do.
    """

    format: Literal[1] = _FORMAT
    scenes: tuple[SceneKind, ...] = ("single",)
    styles: tuple[Style, ...] = ()
    colours: tuple[Colour, ...] = ()
    groups: tuple[Group, ...] = ()
    places: Phrases = Phrases()
    sizes: Phrases = Phrases()
    relations: Phrases = Phrases()
    function: Phrases = Phrases()
    near: dict[str, str] = Field(default_factory=dict)
    examples: Phrases = Phrases()

    @model_validator(mode="after")
    def _check_styles(self) -> Knowledge:
        known = {style.word for style in self.styles}
        for group, thing in self.members():
            for word in group.styles_of(thing):
                if word not in known:
                    raise UserError(f"{thing.noun!r} comes in the style {word!r}, which is not among the styles")
        return self

    def members(self) -> Iterator[tuple[Group, Thing]]:
        """Every thing with its group."""
        for group in self.groups:
            for thing in group.things:
                yield group, thing

    @cached_property
    def by_name(self) -> dict[str, Thing]:
        """Things by their nouns and other names, in small letters; of two of one name, the first."""
        found: dict[str, Thing] = {}
        for _, thing in self.members():
            found.setdefault(thing.noun.casefold(), thing)
        for _, thing in self.members():
            for name in thing.other:
                found.setdefault(name.casefold(), thing)
        return found


def read_knowledge(folder: Path) -> Knowledge | None:
    """What a model folder says of what the model knows; None where it says nothing.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    path = folder / KNOWS
    if not path.is_file():
        return None
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} should hold a JSON object, found {type(held).__name__}")
    if held.get("format") != _FORMAT:
        raise UserError(f"{path} has format {held.get('format')!r}, and this ldm reads {_FORMAT}")
    try:
        return Knowledge.checked(held)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_knowledge(knowledge: Knowledge, folder: Path) -> Path:
    """Write ``knows.json`` into a model folder that is there; what is empty is left out.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / KNOWS
    held = {"format": knowledge.format, **knowledge.model_dump(mode="json", exclude_defaults=True)}
    text = json.dumps(held, ensure_ascii=False, separators=(",", ":")) + "\n"
    with disk_trouble(str(path)):
        write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
    return path
