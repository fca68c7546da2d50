"""Scenes by number: a pure function of (the prepared folder, split, kinds, seed, number).

A scene is drawn by chance from all that could be, and drawn again until it is on the right side of the split: for
``train`` nothing in it is held out; for ``held_out`` exactly one kind of thing is, the one that its kind of scene is to
measure, so that a failure has one cause.

| kind | what is held out of it |
|---|---|
| single | style and label |
| colours | colour and label: painted, or behind it |
| pairs, triples | object, relation, object |
| glyphs | colour and glyph |
| avatars | the avatar |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, combinations

from ldm.data.order import mix
from ldm.errors import UserError
from ldm.starter.colours import COLOURS, Rgb, distance, nearest
from ldm.starter.draws import Draws
from ldm.starter.held_out import (
    ABOVE,
    LEFT_OF,
    avatar_is_held_out,
    background_is_held_out,
    colour_is_held_out,
    relation_is_held_out,
    style_is_held_out,
)
from ldm.starter.prepared import Picture, Prepared
from ldm.starter.scene import KINDS, PLACES, Item, Scene
from ldm.starter.settings import Group, Kind
from ldm.starter.styles import STYLES

_MEASURED = {
    "single": {"style"},
    "colours": {"colour", "background"},
    "pairs": {"relation"},
    "triples": {"relation"},
    "glyphs": {"colour"},
    "avatars": {"avatar"},
}
_TRIES = 20_000
_CONTRAST, _GLYPH_CONTRAST = 150.0, 290.0  # as ``distance`` tells it, of a thing and what is behind it
_TRUE = 90.0  # how near to a named colour a colour is that may be called so
_GLYPH_PAIRS = 0.15
_PAINT = tuple(colour.name for colour in COLOURS.values() if colour.paint)
_INK = tuple(name for name in COLOURS if name != "beige")


class Scenes:
    """Scenes of one prepared folder.

    Args:
        prepared: the folder.
        split: ``train`` or ``held_out``.
        kinds: kind of scene -> its share.
        seed: any.
        groups: of the emoji that are in them; empty for all.
        least_styles: emoji in fewer are in none.

    Raises:
        UserError: a kind has no pictures in the folder.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        kinds: Mapping[Kind, float],
        seed: int,
        groups: Collection[Group] = (),
        least_styles: int = 1,
    ) -> None:
        self.prepared, self.split, self.seed = prepared, split, seed
        self._kinds: list[Kind] = [kind for kind in KINDS if kinds.get(kind, 0) > 0]
        self._kind_sums = list(accumulate(kinds[kind] for kind in self._kinds))
        self._styles_of: dict[int, set[str]] = {}
        for picture in prepared.pictures:
            self._styles_of.setdefault(picture.subject, set()).add(picture.style)
        among = {
            index
            for index, subject in enumerate(prepared.subjects)
            if subject.kind != "emoji"
            or ((not groups or subject.group in groups) and len(self._styles_of.get(index, ())) >= least_styles)
        }
        self._by_kind = {kind: _Pool(prepared, among, kind=kind) for kind in ("emoji", "glyph", "avatar")}
        self._by_style = [
            _Pool(prepared, among, style=name, placeable=True)
            for name, style in STYLES.items()
            if style.kind == "emoji"
        ]
        self._by_style = [pool for pool in self._by_style if len(pool.subjects) >= 3]
        self._style_sums = list(accumulate(len(pool.subjects) for pool in self._by_style))
        self._check()

    def _check(self) -> None:
        needs = {"single": "emoji", "colours": "emoji", "glyphs": "glyph", "avatars": "avatar"}
        for kind in self._kinds:
            enough = self._by_kind[needs[kind]].subjects if kind in needs else self._by_style
            if not enough:
                told = "of what groups and least_styles leave: leave it out of kinds"
                raise UserError(f"{self.prepared.folder} has no pictures for scenes of kind {kind}, {told}")

    def __call__(self, number: int) -> Scene:
        """Scene ``number``, 0 or more.

        Raises:
            UserError: the folder holds so little that no scene of this kind is on this side of the split.
        """
        draws = Draws(mix(self.seed, 11, number))
        kind = self._kinds[draws.weighed(self._kind_sums)]
        for _ in range(_TRIES):
            scene = self._any(kind, draws)
            if scene is not None and self._is_right(scene):
                return scene
        raise UserError(f"{self.prepared.folder} has no scenes of kind {kind} for the split {self.split}")

    def _is_right(self, scene: Scene) -> bool:
        held = self.held_out(scene)
        return bool(held) and held <= _MEASURED[scene.kind] if self.split == "held_out" else not held

    def held_out(self, scene: Scene) -> set[str]:
        """What of a scene is never trained on: ``style``, ``colour``, ``background``, ``relation``, ``avatar``."""
        found = set()
        for item in scene.items:
            picture = self.prepared.pictures[item.picture]
            name = self.prepared.subjects[picture.subject].name
            if style_is_held_out(picture.style, name, len(self._styles_of[picture.subject])):
                found.add("style")
            if item.painted and item.colour is not None and colour_is_held_out(item.colour, name):
                found.add("colour")
            if background_is_held_out(scene.background, name):
                found.add("background")
            if scene.kind == "avatars" and avatar_is_held_out(name):
                found.add("avatar")
        if any(relation_is_held_out(*relation) for relation in self.relations(scene)):
            found.add("relation")
        return found

    def relations(self, scene: Scene) -> list[tuple[str, str, str]]:
        """(subject, ``left of`` or ``above``, subject) of every two things in a scene, by their names."""
        names = [self.prepared.subjects[self.prepared.pictures[item.picture].subject].name for item in scene.items]
        if scene.arrangement == "above two":
            top, left, right = names
            return [(top, ABOVE, left), (top, ABOVE, right), (left, LEFT_OF, right)]
        how = ABOVE if scene.arrangement == "column" else LEFT_OF
        return [(first, how, second) for first, second in combinations(names, 2)]

    # ------------------------------------------------------------------------------- any scene, of either side

    def _any(self, kind: Kind, draws: Draws) -> Scene | None:
        if kind == "single":
            return self._single(draws)
        if kind == "colours":
            return self._coloured(draws)
        if kind == "glyphs":
            return self._glyph(draws)
        if kind == "avatars":
            return self._avatar(draws)
        return self._several(kind, draws)

    def _single(self, draws: Draws) -> Scene:
        picture = self._by_kind["emoji"].draw(draws)
        centre = (draws.between(0.48, 0.52), draws.between(0.48, 0.52))
        return Scene("single", (Item(picture, centre, draws.between(0.72, 0.88)),), "white")

    def _coloured(self, draws: Draws) -> Scene | None:
        picture = self._by_kind["emoji"].draw(draws)
        colour, painted = self._colour_of(picture, draws, 0.5)
        background = self._background([(picture, colour if painted else None)], tuple(COLOURS), draws)
        place, scale, centre, size = _placing(draws)
        item = Item(picture, centre, size, colour, painted)
        return None if background is None else Scene("colours", (item,), background, "alone", place, scale)

    def _glyph(self, draws: Draws) -> Scene | None:
        picture, colour = self._by_kind["glyph"].draw(draws), draws.one(_INK)
        far = [name for name in COLOURS if distance(COLOURS[name].rgb, COLOURS[colour].rgb) > _GLYPH_CONTRAST]
        background = "white" if "white" in far and draws.chance(0.35) else draws.one(far)
        place, scale, centre, size = _placing(draws) if draws.chance(0.4) else (None, None, (0.5, 0.5), 0.75)
        return Scene("glyphs", (Item(picture, centre, size, colour, True),), background, "alone", place, scale)

    def _avatar(self, draws: Draws) -> Scene | None:
        picture = self._by_kind["avatar"].draw(draws)
        noun = self.prepared.subjects[self.prepared.pictures[picture].subject].noun
        others = [name for name in COLOURS if name not in noun]
        background = "white" if draws.chance(0.4) else self._background([(picture, None)], others, draws)
        item = Item(picture, (0.5, 0.5), draws.between(0.8, 0.9))
        return None if background is None else Scene("avatars", (item,), background)

    def _several(self, kind: Kind, draws: Draws) -> Scene | None:
        count = 2 if kind == "pairs" else 3
        of_glyphs = bool(self._by_kind["glyph"].subjects) and draws.chance(_GLYPH_PAIRS)
        pool = self._by_kind["glyph"] if of_glyphs else self._by_style[draws.weighed(self._style_sums)]
        pictures = [pool.draw(draws) for _ in range(count)]
        if len({self.prepared.pictures[picture].subject for picture in pictures}) < count:
            return None
        if of_glyphs:
            colours = [(draws.one(_INK), True) for _ in pictures]
        else:
            colours = [self._colour_of(picture, draws, 0.3) for picture in pictures]
        seen = [
            (picture, colour if painted else None) for picture, (colour, painted) in zip(pictures, colours, strict=True)
        ]
        background = self._background(seen, ("white",) if draws.chance(0.5) else tuple(COLOURS), draws)
        if background is None:
            return None
        arrangement = draws.one(("row", "column") if count == 2 else ("row", "row", "column", "above two"))
        places = _arranged(arrangement, count, draws)
        items = tuple(
            Item(picture, centre, size, colour, painted)
            for picture, (centre, size), (colour, painted) in zip(pictures, places, colours, strict=True)
        )
        return Scene(kind, items, background, arrangement)

    def _colour_of(self, index: int, draws: Draws, paint: float) -> tuple[str | None, bool]:
        """A colour to name, and whether the picture is to be painted in it."""
        picture = self.prepared.pictures[index]
        if picture.hue is None or not self.prepared.subjects[picture.subject].colourable:
            return None, False
        if draws.chance(paint):
            return draws.one(_PAINT), True
        own = nearest(picture.hue)
        told = distance(picture.hue, COLOURS[own].rgb) < _TRUE and draws.chance(0.4)
        return (own, False) if told else (None, False)

    def _background(self, seen: Sequence[tuple[int, str | None]], among: Sequence[str], draws: Draws) -> str | None:
        """A background that all things stand out from; None where there is none."""
        shown = [COLOURS[colour].rgb if colour else self._mean(picture) for picture, colour in seen]
        glyphs = any(STYLES[self.prepared.pictures[picture].style].kind == "glyph" for picture, _ in seen)
        least = _GLYPH_CONTRAST if glyphs else _CONTRAST
        fits = [name for name in among if all(distance(COLOURS[name].rgb, rgb) > least for rgb in shown)]
        return draws.one(fits) if fits else None

    def _mean(self, index: int) -> Rgb:
        return self.prepared.pictures[index].mean


class _Pool:
    """Pictures to draw from: a subject by its weight, then one of its pictures."""

    def __init__(
        self, prepared: Prepared, among: Collection[int], kind: str = "", style: str = "", placeable: bool = False
    ) -> None:
        found: dict[int, list[int]] = {}
        for index, picture in enumerate(prepared.pictures):
            if picture.subject in among and self._fits(prepared, picture, kind, style, placeable):
                found.setdefault(picture.subject, []).append(index)
        self.subjects = list(found)
        self._pictures = list(found.values())
        self._sums = list(accumulate(prepared.subjects[subject].weight for subject in self.subjects))

    @staticmethod
    def _fits(prepared: Prepared, picture: Picture, kind: str, style: str, placeable: bool) -> bool:
        subject = prepared.subjects[picture.subject]
        return kind in ("", subject.kind) and style in ("", picture.style) and (subject.placeable or not placeable)

    def draw(self, draws: Draws) -> int:
        """The index of a picture."""
        return draws.one(self._pictures[draws.weighed(self._sums)])


def _placing(draws: Draws) -> tuple[str | None, str | None, tuple[float, float], float]:
    """Where a thing alone is, and how large: (place, scale, centre, size)."""
    if draws.chance(0.45):
        place = draws.one([name for name in PLACES if name != "middle"])
        across, down = PLACES[place]
        centre = (across + draws.between(-0.02, 0.02), down + draws.between(-0.02, 0.02))
        return place, "small" if draws.chance(0.5) else None, centre, draws.between(0.26, 0.34)
    scale, low, high = draws.one((("small", 0.26, 0.34), ("large", 0.82, 0.92), (None, 0.5, 0.66)))
    return None, scale, (draws.between(0.48, 0.52), draws.between(0.48, 0.52)), draws.between(low, high)


def _arranged(arrangement: str, count: int, draws: Draws) -> list[tuple[tuple[float, float], float]]:
    """Centres and sizes of several things, which do not touch."""
    size = draws.between(0.36, 0.44) if count == 2 else draws.between(0.26, 0.3)
    if arrangement == "above two":
        size = draws.between(0.34, 0.4)
        spots = [(0.5, 0.27), (0.27, 0.74), (0.73, 0.74)]
    else:
        along = [0.27, 0.73] if count == 2 else [0.18, 0.5, 0.82]
        spots = [(at, 0.5) if arrangement == "row" else (0.5, at) for at in along]
    return [((x + draws.between(-0.015, 0.015), y + draws.between(-0.015, 0.015)), size) for x, y in spots]
