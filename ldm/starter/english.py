"""Scenes in English.

A caption says nothing that is not so, and a picture has many captions. What goes unsaid is usual: a white background,
the middle, a middling size. A style goes unsaid in half of the captions, but glyphs are always said to be icons.
"""

from __future__ import annotations

from ldm.starter.draws import Draws
from ldm.starter.nouns import article_of, with_article
from ldm.starter.prepared import Prepared
from ldm.starter.scene import Item, Scene
from ldm.starter.styles import STYLES, Style
from ldm.starter.subjects import Subject

_PLACES = {
    "top left": ("in the top left corner", "at the top left"),
    "top": ("at the top", "at the top"),
    "top right": ("in the top right corner", "at the top right"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom": ("at the bottom", "at the bottom"),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
}
_TAGS = 3  # fewer than so many alone say too little
_SCALES = {"small": ("small", "small", "tiny", "little"), "large": ("large", "large", "big", "huge")}


def english(prepared: Prepared, scene: Scene, draws: Draws) -> str:
    """A caption of a scene."""
    styles = [STYLES[prepared.pictures[item.picture].style] for item in scene.items]
    subjects = [prepared.subjects[prepared.pictures[item.picture].subject] for item in scene.items]
    if scene.kind == "single" and draws.chance(0.25) and len(subjects[0].tags) >= _TAGS:
        return _of_tags(subjects[0], styles[0], draws)
    scale = draws.one(_SCALES[scene.scale]) if scene.scale else ""
    things = [
        _thing(item, subject, style, scale, draws)
        for item, subject, style in zip(scene.items, subjects, styles, strict=True)
    ]
    told = _arranged(scene, things, draws)
    said = styles[0].kind == "emoji" and draws.chance(0.5)
    before = said and draws.chance(0.4)
    if before:
        told = f"{styles[0].drawing} of {told}"
    if scene.kind == "single":
        told = _bare(told, subjects[0], draws) if not before else told
    elif scene.background != "white" or scene.kind == "colours":
        ground = f"{scene.background} background"
        told += draws.one((f" on a {ground}", f" on a {ground}", f" against a {ground}", f", {ground}")).replace(
            "a orange", "an orange"
        )
    return f"{told}, {styles[0].word} style" if said and not before else told


def _bare(told: str, subject: Subject, draws: Draws) -> str:
    """Sometimes without its article, or with words for it."""
    if draws.chance(0.2):
        return subject.noun
    if subject.tags and draws.chance(0.2):
        return ", ".join((told, *draws.some(subject.tags, 2)))
    return told


def _of_tags(subject: Subject, style: Style, draws: Draws) -> str:
    """Its tags alone, as people search."""
    words = draws.some(subject.tags, 2 + draws.chance(0.5))
    said = [f"{style.word} style"] if draws.chance(0.3) else []
    return ", ".join([*words, *said])


def _thing(item: Item, subject: Subject, style: Style, scale: str, draws: Draws) -> str:
    """One thing, with its article, size and colour."""
    noun, article = subject.noun, subject.article
    if subject.other and draws.chance(0.4):
        noun = draws.one(subject.other)
        article = article_of(noun)
    if style.kind == "glyph":
        return _glyph(f"{scale} {item.colour}".strip(), noun, article, draws)
    adjectives = [each for each in (scale, item.colour) if each]
    if not adjectives:
        return with_article(noun, article)
    whole = " ".join([*adjectives, noun])
    if not article and (scale or not noun[0].isupper()):
        return whole
    return with_article(whole, "the" if article == "the" else _a_or_an(whole))


def _glyph(adjectives: str, noun: str, article: str, draws: Draws) -> str:
    if draws.chance(0.6):
        return with_article(f"{adjectives} {noun} icon", _a_or_an(adjectives))
    kind = draws.one(("icon", "silhouette"))
    return f"{with_article(f'{adjectives} {kind}', _a_or_an(adjectives))} of {with_article(noun, article)}"


def _a_or_an(words: str) -> str:
    return "an" if words.startswith("orange") else "a"


def _arranged(scene: Scene, things: list[str], draws: Draws) -> str:
    if scene.arrangement == "alone":
        return f"{things[0]} {draws.one(_PLACES[scene.place])}" if scene.place else things[0]
    if scene.arrangement == "above two":
        top, left, right = things
        return draws.one((f"{top} above {left} and {right}", f"{left} and {right} below {top}"))
    if len(things) == 3:
        return _three(scene.arrangement, things, draws)
    first, second = things
    if scene.arrangement == "row":
        return draws.one(
            (
                f"{first} left of {second}",
                f"{first} to the left of {second}",
                f"{second} right of {first}",
                f"{second} to the right of {first}",
                f"{first} on the left and {second} on the right",
            )
        )
    return draws.one(
        (
            f"{first} above {second}",
            f"{second} below {first}",
            f"{second} under {first}",
            f"{first} at the top and {second} at the bottom",
        )
    )


def _three(arrangement: str, things: list[str], draws: Draws) -> str:
    first, second, third = things
    if arrangement == "row":
        return draws.one(
            (
                f"{second} between {first} and {third}",
                f"{first}, {second} and {third} from left to right",
                f"{first}, {second} and {third} in a row",
            )
        )
    return draws.one(
        (
            f"{first}, {second} and {third} from top to bottom",
            f"{first} above {second} above {third}",
        )
    )
