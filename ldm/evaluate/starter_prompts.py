"""What a model of composed pictures is asked for to be measured, and what its pictures should show.

Every prompt asks for one kind of thing to be right. Combinations are those that training never saw, by the hash that
holds them out (``ldm.starter.held_out``); things are those that the judge knows; words are as in the captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ldm.data.order import mix
from ldm.errors import UserError
from ldm.models.picture_judge import PictureJudgeConfig
from ldm.starter.colours import COLOURS, distance
from ldm.starter.draws import Draws
from ldm.starter.held_out import (
    ABOVE,
    LEFT_OF,
    background_is_held_out,
    colour_is_held_out,
    relation_is_held_out,
    style_is_held_out,
)
from ldm.starter.nouns import with_article
from ldm.starter.prepared import Prepared
from ldm.starter.styles import STYLES
from ldm.starter.subjects import Subject

T = TypeVar("T")
_CONTRAST, _INK_CONTRAST = 150.0, 290.0  # of things, and of glyphs, and their grounds: as in the training scenes


@dataclass(frozen=True)
class Asked:
    """A prompt and what is right.

    Attributes:
        prompt: in words.
        things: classes of the judge, in the order of the relation; empty where no thing is judged.
        style: class of the judge.
        colour: name of a colour, of the ground or of the glyph.
        relation: of two things, ``left of`` or ``above``.
    """

    prompt: str
    things: tuple[int, ...] = ()
    style: int | None = None
    colour: str | None = None
    relation: str | None = None


class Prompts:
    """Prompts for one judge and one prepared folder.

    Args:
        prepared: the folder.
        judge: what the judge tells apart.

    Raises:
        UserError: the judge knows things that the folder does not have.
    """

    def __init__(self, prepared: Prepared, judge: PictureJudgeConfig) -> None:
        self._prepared, self._judge = prepared, judge
        subjects = {subject.name: k for k, subject in enumerate(prepared.subjects)}
        missing = [name for name in judge.things if name not in subjects]
        if missing:
            raise UserError(f"{prepared.folder} has no {missing[0]}, which the judge knows: train one for this folder")
        self._of_class = [subjects[name] for name in judge.things]
        wanted = set(self._of_class)
        self._pictures: dict[int, dict[str, int]] = {}
        for index, picture in enumerate(prepared.pictures):
            if picture.subject in wanted:
                self._pictures.setdefault(picture.subject, {}).setdefault(picture.style, index)

    def single(self, count: int, seed: int, language: str = "en") -> list[Asked]:
        """One thing, of which nothing else is said. The same things in both languages, all before any comes again."""
        order = Draws(mix(seed, 41)).some(range(len(self._of_class)), len(self._of_class))
        told = [(k, self._subject(k)) for k in order]
        named = [(k, subject) for k, subject in told if subject.korean]
        chosen = (named * -(-count // max(1, len(named))))[:count]
        return [Asked(_said(subject) if language == "en" else subject.korean, (k,)) for k, subject in chosen]

    def styles(self, count: int, seed: int) -> list[Asked]:
        """A thing in a style that it was never trained in."""
        found = [
            Asked(f"{_said(self._subject(k))}, {STYLES[style].word} style", (k,), self._judge.styles.index(style))
            for k, subject in enumerate(self._of_class)
            for style in self._pictures[subject]
            if style in self._judge.styles
            and style_is_held_out(style, self._judge.things[k], len(self._pictures[subject]))
        ]
        return _some(found, count, mix(seed, 42), "style and label")

    def grounds(self, count: int, seed: int) -> list[Asked]:
        """A thing on a colour that it never stood on in training, and that all its pictures stand out from."""
        found = []
        for k, subject in enumerate(self._of_class):
            means = [self._prepared.pictures[index].mean for index in self._pictures[subject].values()]
            for name, colour in COLOURS.items():
                told = f"{_said(self._subject(k))} on {with_article(f'{name} background', _article(name))}"
                if background_is_held_out(name, self._judge.things[k]) and all(
                    distance(colour.rgb, mean) > _CONTRAST for mean in means
                ):
                    found.append(Asked(told, (k,), colour=name))
        return _some(found, count, mix(seed, 43), "background and label")

    def inks(self, count: int, seed: int) -> list[Asked]:
        """A glyph in a colour that it was never trained in, on white."""
        subjects = [s for s in self._prepared.subjects if s.kind == "glyph"]
        inks = [name for name, c in COLOURS.items() if distance(c.rgb, COLOURS["white"].rgb) > _INK_CONTRAST]
        found = [
            Asked(with_article(f"{name} {subject.noun} icon", _article(name)), colour=name)
            for subject in subjects
            for name in inks
            if colour_is_held_out(name, subject.name)
        ]
        return _some(found, count, mix(seed, 44), "colour and glyph")

    def relations(self, count: int, seed: int) -> list[Asked]:
        """Two things that never stood so in training."""
        things = [k for k, subject in enumerate(self._of_class) if self._prepared.subjects[subject].placeable]
        draws, found = Draws(mix(seed, 45)), dict[str, Asked]()
        for _ in range(200 * count):
            if len(found) == count or len(things) < 2:
                break
            first, second = draws.some(things, 2)
            how = draws.one((LEFT_OF, ABOVE))
            if relation_is_held_out(self._judge.things[first], how, self._judge.things[second]):
                prompt = f"{_said(self._subject(first))} {how} {_said(self._subject(second))}"
                found[prompt] = Asked(prompt, (first, second), relation=how)
        return _enough(list(found.values()), "object, relation, object")

    def _subject(self, k: int) -> Subject:
        return self._prepared.subjects[self._of_class[k]]


KINDS: dict[str, Callable[[Prompts, int, int], list[Asked]]] = {
    "single": Prompts.single,
    "korean": lambda prompts, count, seed: prompts.single(count, seed, "ko"),
    "style": Prompts.styles,
    "ground": Prompts.grounds,
    "ink": Prompts.inks,
    "relation": Prompts.relations,
}


def _said(subject: Subject) -> str:
    return with_article(subject.noun, subject.article)


def _article(colour: str) -> str:
    return "an" if colour == "orange" else "a"


def _some(found: Sequence[Asked], count: int, seed: int, what: str) -> list[Asked]:
    return Draws(seed).some(_enough(found, what), count)


def _enough(found: Sequence[T], what: str) -> list[T]:
    if not found:
        raise UserError(f"no held-out combination of {what} has things that the judge knows")
    return list(found)
