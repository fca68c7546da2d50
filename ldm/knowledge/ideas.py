"""Prompts made up from what a model knows, in the manner of its captions.

Only what the model was trained on comes: the kinds of scenes that it knows, and one style for all things of a picture,
in which each of them comes. Of things, those come that have short names, and flags and signs do not: they make dull
pictures. The same seed gives the same prompts.
"""

from __future__ import annotations

from random import Random

from ldm.errors import UserError
from ldm.knowledge.file import Colour, Knowledge, Language, SceneKind, Style, Thing

_Styled = tuple[Thing, set[str]]
MOST = 1000  # prompts at a time
_TRIES = 10  # for each prompt: some turn out as one before
_WEIGHTS: dict[SceneKind, int] = {"single": 3, "colours": 3, "pairs": 4, "triples": 1, "glyphs": 1, "avatars": 1}
_SEVERAL: tuple[SceneKind, ...] = ("pairs", "triples")
_LEAST_TOGETHER = 3  # things that come in a style, for several of them to be drawn in it
_LONGEST = 2  # words of a name
_GREY = 60  # span of red, green and blue up to which nobody asks for a thing in a colour
_CONTRAST = 150.0  # as far as a colour and what is behind it are apart, at least, in sRGB


def ideas(knowledge: Knowledge, count: int, seed: int, language: Language = "en") -> list[str]:
    """So many different prompts, or fewer where the model knows too little for them.

    Raises:
        UserError: ``count`` is no number of prompts, or the model knows nothing by a name in the language.
    """
    if not 1 <= count <= MOST:
        raise UserError(f"count should be from 1 to {MOST:,}, got {count}")
    maker = (_English if language == "en" else _Korean)(knowledge, Random(seed))
    if not maker.kinds:
        raise UserError(f"this model knows no names in {'English' if language == 'en' else 'Korean'}")
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(found) < count:
            found.setdefault(maker.prompt())
    return list(found)


class _Maker:
    """Prompts in a language.

    Attributes:
        kinds: of scenes that there are things for.
    """

    def __init__(self, knowledge: Knowledge, random: Random) -> None:
        self.knowledge, self.random = knowledge, random
        self._pictured = [style for style in knowledge.styles if style.kind == "picture"]
        icons = {style.word for style in knowledge.styles if style.kind == "icon"}
        named = [(thing, {*group.styles_of(thing)}) for group, thing in knowledge.members() if self.name(thing)]
        pictured = [(thing, styles) for thing, styles in named if any(each.word in styles for each in self._pictured)]
        self._pools: dict[SceneKind, list[_Styled]] = {
            "single": self._pleasant(pictured),
            "glyphs": self._pleasant([(thing, styles) for thing, styles in named if icons & styles]),
            "avatars": [(thing, styles) for thing, styles in named if not styles],
        }
        self._pools["colours"] = self._pools["single"]
        placeable = [(thing, styles) for thing, styles in self._pools["single"] if thing.placeable]
        by_style = [(style, [thing for thing, styles in placeable if style.word in styles]) for style in self._pictured]
        self._together = [(style, things) for style, things in by_style if len(things) >= _LEAST_TOGETHER]
        self.kinds: list[SceneKind] = []
        for kind in knowledge.scenes:
            if self._together if kind in _SEVERAL else self._pools[kind]:
                self.kinds.extend(kind for _ in range(_WEIGHTS[kind]))

    def _pleasant(self, named: list[_Styled]) -> list[_Styled]:
        placeable = [each for each in named if each[0].placeable] or named
        return [each for each in placeable if _is_short(self.name(each[0]))] or placeable

    def name(self, thing: Thing) -> str:
        """What a thing is called; empty where it has no name in the language."""
        raise NotImplementedError

    def scene(self, kind: SceneKind, things: list[Thing], style: Style | None) -> str:
        """A prompt for things of a kind of scene; its style is said where one is given."""
        raise NotImplementedError

    def prompt(self) -> str:
        kind = self.random.choice(self.kinds)
        if kind in _SEVERAL:
            style, can = self.random.choice(self._together)
            things = self.random.sample(can, 2 if kind == "pairs" else 3)
            return self.scene(kind, things, style if self.random.random() < 0.6 else None)
        thing, words = self.random.choice(self._pools[kind])
        styles = [style for style in self._pictured if style.word in words]
        said = kind in ("single", "colours") and self.random.random() < 0.5
        return self.scene(kind, [thing], self.random.choice(styles) if said else None)

    def paint(self, thing: Thing, chance: float = 0.5) -> Colour | None:
        """A colour that a thing is asked for in; None where it has its own."""
        if not thing.paintable or self.random.random() > chance:
            return None
        bright = [colour for colour in self.knowledge.colours if max(colour.rgb) - min(colour.rgb) > _GREY]
        return self.random.choice(bright) if bright else None

    def background(self, chance: float, told: str, *paints: Colour | None) -> Colour | None:
        """A colour that stands out from these and is not in what is told; None for white, which goes unsaid."""
        far = [
            colour
            for colour in self.knowledge.colours
            if colour.name not in f"white {told}"
            and (not colour.korean or colour.korean not in told)
            and all(paint is None or _distance(colour, paint) > _CONTRAST for paint in paints)
        ]
        return self.random.choice(far) if far and self.random.random() < chance else None


def _is_short(name: str) -> bool:
    return len(name.split()) <= _LONGEST and name.replace(" ", "").isalpha()


def _distance(first: Colour, second: Colour) -> float:
    return sum((a - b) ** 2 for a, b in zip(first.rgb, second.rgb, strict=True)) ** 0.5


class _English(_Maker):
    def name(self, thing: Thing) -> str:
        return next((name for name in thing.other if _takes_article(name, thing.noun)), thing.noun)

    def scene(self, kind: SceneKind, things: list[Thing], style: Style | None) -> str:
        if kind == "avatars":
            return self._avatar(things[0])
        if kind == "single":
            return _in_style(self._called(things[0], ""), style, self.random.random() < 0.4)
        if kind == "glyphs":
            ink = self.paint(things[0], 1.0)
            words = f"{ink.name if ink else 'black'} {things[0].noun} icon"
            return f"{_a(words)} {words}" + _on(self.background(0.5, words, ink))
        paints = [self.paint(thing, 0.4) for thing in things]
        size = self.random.choice(["", "", "small", "large"]) if kind == "colours" else ""
        called = [
            self._called(thing, f"{size} {paint.name if paint else ''}".strip())
            for thing, paint in zip(things, paints, strict=True)
        ]
        told = self._arranged(called, kind, size)
        ground = self.background(1.0 if kind == "colours" and not any(paints) else 0.4, told, *paints)
        return _in_style(told + _on(ground), style, self.random.random() < 0.2)

    def _called(self, thing: Thing, adjectives: str) -> str:
        name = self.name(thing)
        article = thing.article if name == thing.noun else _a(name)
        if adjectives:
            name = f"{adjectives} {name}"
            article = _a(name) if article in ("a", "an") else article
        return f"{article} {name}".strip()

    def _arranged(self, called: list[str], kind: SceneKind, size: str) -> str:
        if kind == "colours":
            corner = self.random.choice(["top left corner", "top right corner", "bottom left corner"])
            return f"{called[0]} in the {corner}" if size == "small" else called[0]
        if kind == "pairs":
            relation = self.random.choice(["left of", "right of", "above", "below"])
            return f"{called[0]} {relation} {called[1]}"
        first, second, third = called
        row = self.random.choice(["in a row", "from left to right", "from top to bottom"])
        return self.random.choice([f"{first}, {second} and {third} {row}", f"{first} between {second} and {third}"])

    def _avatar(self, thing: Thing) -> str:
        colours = [tag for tag in thing.tags if any(tag == colour.name for colour in self.knowledge.colours)]
        told = [tag for tag in thing.tags if tag.startswith(("a ", "an ")) or tag.endswith(("s", " hair"))]
        head = f"{self.random.choice(colours)} {thing.noun}" if colours else thing.noun
        return f"{_a(head)} {head}" + (f" with {self.random.choice(told)}" if told else "")


def _takes_article(other: str, noun: str) -> bool:
    """Whether ``_a`` is right for another name: not for an SUV or a UFO, nor for corn, of which an ear is a piece."""
    is_part = other in noun and (" of " in noun or not noun.endswith(other))
    return other.islower() and not is_part


def _a(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _on(ground: Colour | None) -> str:
    return f" on {_a(ground.name)} {ground.name} background" if ground else ""


def _in_style(told: str, style: Style | None, before: bool) -> str:
    if style is None:
        return told
    return f"{style.drawing} of {told}" if before and style.drawing else f"{told}, {style.word} style"


class _Korean(_Maker):
    def name(self, thing: Thing) -> str:
        return thing.korean

    def scene(self, kind: SceneKind, things: list[Thing], style: Style | None) -> str:
        paints = [None if kind in ("single", "avatars") else self.paint(thing, 0.4) for thing in things]
        if kind == "glyphs":
            paints = [self.paint(things[0], 1.0)]
        names = [
            f"{paint.korean if paint else ''} {self.name(thing)}".strip()
            for thing, paint in zip(things, paints, strict=True)
        ]
        told = self._arranged(names, kind)
        ground = None if kind in ("single", "avatars") else self.background(0.6, told, *paints)
        told = f"{ground.korean} 배경에 {told}" if ground else told
        return f"{told}, {style.korean} 스타일" if style and style.korean else told

    def _arranged(self, names: list[str], kind: SceneKind) -> str:
        if kind == "glyphs":
            return f"{names[0]} 아이콘"
        if kind == "colours":
            return f"{self.random.choice(['', '작은 ', '큰 '])}{names[0]}"
        if kind == "pairs":
            relation = self.random.choice(["왼쪽에", "오른쪽에", "위에", "아래에"])
            return f"{names[1]} {relation} 있는 {names[0]}"
        return f"{self.random.choice(['왼쪽부터', '위에서부터'])} {', '.join(names)}" if kind == "triples" else names[0]
