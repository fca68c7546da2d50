"""Avatars of DiceBear, whose options are chosen here and told in words.

Only styles under CC0 and CC BY are used. An option that is told has words in both languages; what is not told is left
to the style, by a seed. So a caption says what there is, and no two avatars of one name need look the same.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from ldm.data.order import mix
from ldm.errors import UserError, need
from ldm.starter.avatar_styles import AVATAR_STYLES, AvatarStyle
from ldm.starter.colours import COLOURS
from ldm.starter.draws import Draws
from ldm.starter.icon_sets import Drawing
from ldm.starter.nouns import article_of, with_article
from ldm.starter.subjects import Subject


def avatar_drawings(count: int) -> tuple[dict[str, list[Drawing]], dict[str, Subject]]:
    """Avatars of every style.

    Args:
        count: of each style.

    Returns:
        (style -> drawings, key of a drawing -> what it shows); avatars told in the same words are one subject.

    Raises:
        UserError: dicebear-core or dicebear-styles is missing, or of a version that lacks one of the styles.
    """
    need("dicebear", "starter")
    need("dicebear_styles", "starter")
    drawings: dict[str, list[Drawing]] = {}
    subjects: dict[str, Subject] = {}
    for place, style in enumerate(AVATAR_STYLES):
        definition = _definition(style.name)
        drawings[style.name] = []
        for number in range(count):
            slug = f"{style.name}-{number:04d}"
            options, subject = _chosen(style, slug, Draws(mix(number, 21, place)))
            drawing = Drawing(style.name, slug, _svg(definition, options, slug))
            drawings[style.name].append(drawing)
            subjects[drawing.key] = subject
    return drawings, subjects


def avatar_licence(name: str) -> str:
    """The attribution that a style asks for, in one line."""
    held = json.loads(_text(name))["meta"]["license"]
    return " ".join(held["text"].split())


def _chosen(style: AvatarStyle, slug: str, draws: Draws) -> tuple[dict[str, Any], Subject]:
    """Options for DiceBear, and what they show."""
    colour = draws.one(style.among)
    slot, words = style.coloured
    named = (words[0].format(colour), words[1].format(COLOURS[colour].korean))
    options: dict[str, Any] = {"seed": slug, f"{slot}Color": [_hex(colour)], "backgroundColor": ["#ffffff00"]}
    told: list[tuple[str, str]] = []
    for part in style.parts:
        there = draws.chance(part.chance)
        variant = draws.one(list(part.words))
        options |= {f"{part.option}Variant": [variant], f"{part.option}Probability": 100 if there else 0}
        part_words = part.words[variant]
        if there and part_words:
            told.append(part_words)
    if named[0].endswith(" "):
        return options, _subject(style, told, named)
    with_it = (with_article(named[0], article_of(named[0])), named[1])
    return options, _subject(style, [*told, with_it], ("", ""))


def _subject(style: AvatarStyle, told: list[tuple[str, str]], before: tuple[str, str]) -> Subject:
    heads = [before[k] + style.head[k].format(told[0][k]) for k in (0, 1)]
    rest = told[1:] if "{0}" in style.head[0] else told
    english, korean = [words[0] for words in rest], [words[1] for words in rest]
    listed = english[0] if len(english) == 1 else ", ".join(english[:-1]) + f" and {english[-1]}"
    noun = f"{heads[0]} with {listed}"
    korean_tags = ("아바타", *korean)
    name = f"avatar {style.name} {noun}"
    in_korean = f"{', '.join(korean)}의 {heads[1]}"
    return Subject(
        name, "avatar", noun, article_of(noun), ("avatar", *english), in_korean, korean_tags, (), "", "", 1.0
    )


def _hex(colour: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[colour].rgb)


def _svg(definition: Any, options: dict[str, Any], slug: str) -> bytes:
    import dicebear

    try:
        return dicebear.Avatar(definition, options).to_string().encode()
    except dicebear.ValidationError as error:
        raise UserError(
            f"DiceBear refuses the options of {slug}: {error}; another version of dicebear-styles?"
        ) from error


@functools.cache  # checking it against its schema takes most of a second
def _definition(name: str) -> Any:
    import dicebear

    return dicebear.Style.from_json(_text(name))


def _text(name: str) -> str:
    file = resources.files("dicebear_styles").joinpath(f"{name}.json")
    if not file.is_file():
        raise UserError(f"dicebear-styles has no style {name}: pip install 'ldm[starter]' installs a version that does")
    return file.read_text(encoding="utf-8")
