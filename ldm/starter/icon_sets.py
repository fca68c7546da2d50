"""The pictures of the packages before they are rendered, each with the emoji or the name that it shows.

Iconify's JSON holds the insides of an SVG for each icon, in a box of its own or of the set; an alias is another name,
or an icon that is mirrored or turned. ``chars.json`` of a set, where it has one, tells the code points of its icons.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.starter.emoji import Emoji, EmojiNames, has_skin_tone, plain_code
from ldm.starter.packages import read_members

_WEBP_FOLDER = "assets/"
_TURNS = ("hFlip", "vFlip", "rotate")
_MISNAMED = {  # (style, slug): the code point of what is drawn; None: nothing that has a name
    ("streamline", "pistol"): None,  # a gun, where the emoji of today is a water pistol
    ("fxemoji", "pistol"): None,
    ("fxemoji", "sunglasses"): "1f60e",
    ("fxemoji", "pouting"): "1f621",
}


@dataclass(frozen=True)
class Drawing:
    """One picture to render.

    Attributes:
        style: name of its set.
        slug: its name there.
        content: an SVG document, or a WebP file.
        emoji: what it shows; None for icons that are no emoji, whose name is all there is.
    """

    style: str
    slug: str
    content: bytes
    emoji: Emoji | None = None

    @property
    def key(self) -> str:
        """A name that no other drawing has."""
        return f"{self.style}/{self.slug}"


def emoji_drawings(style: str, tarball: Path, names: EmojiNames) -> tuple[list[Drawing], list[str]]:
    """The pictures of a set that show an emoji without skin tone, at most one for each name of the set.

    Args:
        style: name of the set.
        tarball: its package, verified.
        names: of all emoji.

    Returns:
        (the drawings by their slugs, slugs of icons that no name matched).

    Raises:
        UserError: the tarball lacks what it should hold.
    """
    if style == "fluent-3d":
        return _webp_drawings(style, tarball, names)
    icons, chars = _icons(tarball)
    codes: dict[str, list[str]] = defaultdict(list)
    for code, slug in chars.items():
        codes[slug].append(plain_code(code))
    found, missed = [], []
    for slug, icon in _shown(icons, codes):
        if "skin-tone" in slug or any(has_skin_tone(code) for code in codes[slug]):
            continue
        if (style, slug) in _MISNAMED:
            emoji = names.of_code(_MISNAMED[style, slug] or "")
        else:
            emoji = _emoji_of(slug, codes[slug], icon["names"], names)
        if emoji is None:
            missed.append(slug)
        else:
            found.append(Drawing(style, slug, svg_of(icon), emoji))
    return found, missed


def glyph_drawings(style: str, tarball: Path) -> list[Drawing]:
    """The pictures of a set of one-colour icons, by their slugs."""
    icons, _ = _icons(tarball)
    shown = sorted((slug, icon) for slug, icon in icons["icons"].items() if not icon.get("hidden"))
    return [Drawing(style, slug, svg_of(_boxed(icons, icon))) for slug, icon in shown]


def glyph_noun(slug: str) -> str:
    """A name such as ``thrown-spear`` in words."""
    return re.sub(r"\s+", " ", slug.replace("-", " ")).strip()


def svg_of(icon: dict[str, Any]) -> bytes:
    """An icon as an SVG document in a square, black where its colour is left open."""
    left, top, width, height = icon["left"], icon["top"], icon["width"], icon["height"]
    side = max(width, height)
    moves = []
    middle = (left + width / 2, top + height / 2)
    if icon.get("hFlip"):
        moves.append(f"translate({2 * middle[0]} 0) scale(-1 1)")
    if icon.get("vFlip"):
        moves.append(f"translate(0 {2 * middle[1]}) scale(1 -1)")
    if icon.get("rotate"):
        moves.append(f"rotate({90 * icon['rotate']} {middle[0]} {middle[1]})")
    body = f'<g transform="{" ".join(moves)}">{icon["body"]}</g>' if moves else icon["body"]
    box = f"{middle[0] - side / 2:g} {middle[1] - side / 2:g} {side:g} {side:g}"
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000000"'
    return f'<svg {head} viewBox="{box}" width="{side:g}" height="{side:g}">{body}</svg>'.encode()


def _webp_drawings(style: str, tarball: Path, names: EmojiNames) -> tuple[list[Drawing], list[str]]:
    found, missed = [], []
    for path, content in sorted(read_members(tarball, ending=".webp").items()):
        slug = path.removeprefix(_WEBP_FOLDER).removesuffix(".webp")
        emoji = names.of_code(slug)
        if emoji is not None:
            found.append(Drawing(style, slug, content, emoji))
        elif not has_skin_tone(slug):
            missed.append(slug)
    return found, missed


def _icons(tarball: Path) -> tuple[dict[str, Any], dict[str, str]]:
    held = read_members(tarball, ("icons.json", "chars.json"))
    try:
        icons, chars = (json.loads(held[name]) for name in ("icons.json", "chars.json"))
        return {**icons, "icons": dict(icons["icons"])}, dict(chars)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{tarball} holds no icon set of Iconify: {error}") from error


def _shown(icons: dict[str, Any], codes: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(slug, icon in its box with all its ``names``) of every icon, and of every alias that looks different."""
    names: dict[str, list[str]] = defaultdict(list)
    turned = {}
    for alias, entry in sorted(icons.get("aliases", {}).items()):
        if any(entry.get(turn) for turn in _TURNS):
            turned[alias] = entry
        else:
            names[entry["parent"]].append(alias)
            codes[entry["parent"]] += codes.get(alias, [])
    for slug, icon in sorted(icons["icons"].items()):
        if not icon.get("hidden"):
            yield slug, {**_boxed(icons, icon), "names": names[slug]}
    for slug, entry in turned.items():
        parent = icons["icons"].get(entry["parent"])
        if parent is not None:
            yield slug, {**_boxed(icons, {**parent, **entry}), "names": []}


def _boxed(icons: dict[str, Any], icon: dict[str, Any]) -> dict[str, Any]:
    """An icon with its box, which is that of the set where it has none of its own."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16}
    return {**box, **{key: icons[key] for key in box if key in icons}, **icon}


def _emoji_of(slug: str, codes: list[str], aliases: list[str], names: EmojiNames) -> Emoji | None:
    by_code = (names.of_code(code) for code in codes)
    by_slug = (names.of_slug(each) for each in (slug, *aliases))
    return next((emoji for emoji in (*by_code, *by_slug) if emoji is not None), None)
