"""Emoji by code point, with their English and Korean names and tags, from the package emojibase-data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ldm.starter.nouns import english_noun, korean_noun
from ldm.starter.packages import read_members
from ldm.starter.settings import Group

GROUPS: tuple[Group, ...] = get_args(Group)  # in the order of their numbers
_SKINS, _COMPONENTS = range(0x1F3FB, 0x1F400), 2
# in the order in which they are trusted
_SHORTCODES = tuple(f"en/shortcodes/{name}.json" for name in ("cldr", "emojibase", "joypixels", "iamcal", "github"))
_FILES = ("en/data.json", "ko/data.json", "meta/groups.json", "meta/unicode-names.json", *_SHORTCODES)


@dataclass(frozen=True)
class Emoji:
    """What is known of one emoji, without skin tone.

    Attributes:
        code: its code points in lower-case hexadecimal, joined by hyphens, without the variation selector.
        label: its English name as emojibase has it.
        noun: the same as a noun phrase that a sentence can hold, without an article, such as ``woman with curly hair``.
        article: what comes before ``noun``: ``a``, ``an``, ``the`` or nothing.
        tags: English words for it.
        korean, korean_tags: the Korean name as a noun phrase, and Korean words.
        group, subgroup: of the Unicode consortium, such as ``animals-nature`` and ``animal-bird``.
    """

    code: str
    label: str
    noun: str
    article: str
    tags: tuple[str, ...]
    korean: str
    korean_tags: tuple[str, ...]
    group: str
    subgroup: str


class EmojiNames:
    """All emoji, found by code point or by the names that icon sets give them.

    Args:
        tarball: of emojibase-data, verified.
    """

    def __init__(self, tarball: Path) -> None:
        files = {name: json.loads(held) for name, held in read_members(tarball, _FILES).items()}
        korean = {row["hexcode"]: row for row in files["ko/data.json"]}
        subgroups = files["meta/groups.json"]["subgroups"]
        rows = [row for row in files["en/data.json"] if row.get("group") not in (None, _COMPONENTS)]
        found = [_emoji(row, korean[row["hexcode"]], subgroups[str(row["subgroup"])]) for row in rows]
        self.by_code = {each.code: each for each in found}
        self._by_slug: dict[str, str] = {}
        self._learn((squeezed(each.label), each.code) for each in found)
        self._learn((squeezed(name), plain_code(code)) for code, name in files["meta/unicode-names.json"].items())
        for shortcodes in _SHORTCODES:
            for code, names in files[shortcodes].items():
                each = [names] if isinstance(names, str) else names
                self._learn((squeezed(name), plain_code(code)) for name in each)

    def _learn(self, names: Iterable[tuple[str, str]]) -> None:
        for slug, code in names:
            if code in self.by_code:
                self._by_slug.setdefault(slug, code)

    def of_code(self, code: str) -> Emoji | None:
        """The emoji of a code point sequence as icon sets write it; None for skin tones and what is unknown."""
        return self.by_code.get(plain_code(code))

    def of_slug(self, slug: str) -> Emoji | None:
        """The emoji that an icon set calls ``slug``: by its label, its Unicode name or a shortcode."""
        numberless = re.sub(r"-\d$", "", slug)  # several drawings of one emoji
        for name in (slug, numberless):
            for start, instead in (("", ""), ("flag-for-", "flag-"), ("flag-for-flag-", "flag-")):
                code = self._by_slug.get(squeezed(instead + name.removeprefix(start))) if name.startswith(start) else ""
                if code:
                    return self.by_code[code]
        return None


def plain_code(code: str) -> str:
    """A code point sequence in lower case, without variation selectors."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def has_skin_tone(code: str) -> bool:
    """Whether a code point sequence has a skin tone in it."""
    return any(int(part, 16) in _SKINS for part in code.split("-"))


def squeezed(name: str) -> str:
    """A name's letters and digits alone, in lower case: icon sets differ in what else they keep."""
    return re.sub(r"[^a-z0-9]+", "", name.lower().replace("&", "and"))


def _emoji(row: dict[str, Any], korean: dict[str, Any], subgroup: str) -> Emoji:
    noun, article = english_noun(row["label"], subgroup)
    return Emoji(
        plain_code(row["hexcode"]),
        row["label"],
        noun,
        article,
        _tags(row.get("tags", ()), r"[a-z][a-z' -]+"),
        korean_noun(korean["label"]),
        _tags(korean.get("tags", ()), r"[가-힣][가-힣 ]*"),
        GROUPS[row["group"]],
        subgroup,
    )


def _tags(tags: Iterable[str], allowed: str) -> tuple[str, ...]:
    """Tags that are words: no smileys typed in punctuation, no country codes."""
    plain = (tag.replace("’", "'").strip() for tag in tags)
    return tuple(dict.fromkeys(tag for tag in plain if re.fullmatch(allowed, tag)))
