"""Combinations that are never trained on, to measure whether a model composes.

Whether a combination is held out is a function of its names alone, by a hash: it does not depend on which pictures
there are, on their order, or on a seed. The shares are small, so that every part of a held-out combination is trained
on in many others.

| what | share |
|---|---|
| style and label | 1 in 20, of labels that come in three styles or more |
| colour and label (painted, or behind it), colour and glyph | 1 in 12 |
| object, relation, object | 1 in 10 |
| avatar | 1 in 20 |
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

LEFT_OF, ABOVE = "left of", "above"
_SHARES = {"style": 20, "background": 12, "colour": 12, "relation": 10, "avatar": 20}
_LEAST_STYLES = 3


@lru_cache(maxsize=1 << 18)
def _chosen(what: str, *names: str) -> bool:
    digest = hashlib.blake2b("\0".join((what, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SHARES[what] == 0


def style_is_held_out(style: str, subject: str, styles: int) -> bool:
    """Whether a subject is never drawn in a style.

    Args:
        style, subject: their names.
        styles: in how many the subject comes.
    """
    return styles >= _LEAST_STYLES and _chosen("style", style, subject)


def background_is_held_out(colour: str, subject: str) -> bool:
    """Whether a subject never stands on a colour. White, which goes unnamed, is never held out."""
    return colour != "white" and _chosen("background", colour, subject)


def colour_is_held_out(colour: str, subject: str) -> bool:
    """Whether a glyph, or a thing that can be painted, never has a colour."""
    return _chosen("colour", colour, subject)


def relation_is_held_out(first: str, relation: str, second: str) -> bool:
    """Whether two subjects never stand so: ``first`` left of, or above, ``second``."""
    return _chosen("relation", first, relation, second)


def avatar_is_held_out(avatar: str) -> bool:
    """Whether an avatar, whose name tells its options, is never drawn."""
    return _chosen("avatar", avatar)
