"""Values that JSON gives back exactly as they went in.

Python's JSON does so for integers, for floats (written in their shortest exact form), and for strings: escapes hold
every code point, NUL and lone surrogates too. Tuples are made lists here. What would not come back is refused: infinite
numbers, keys that are no strings, and the two halves of a surrogate pair side by side, which JSON reads as one
character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr

DEEPEST = 16  # groups within groups
LONGEST_INTEGER = 4096  # bits; Python refuses to write out integers of more than 4300 digits
_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# What moves a terminal's cursor, breaks its lines, or turns the direction of its text
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text from a file, safe to print: control characters and lone surrogates as escapes."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _storable(text: str) -> str:
    if _SPLIT_PAIR.search(text):
        raise ValueError("holds the two halves of one character (a surrogate pair) as two: write the character")
    return text


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """``value`` made of JSON's types alone: dict with str keys, list, str, bool, int, finite float, None."""
    if depth > DEEPEST:
        raise ValueError(f"{place}: more than {DEEPEST} groups within groups")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{place}: the key {key!r} is no string")
        return {_storable(key): _plain(item, _inside(place, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, _inside(place, k), depth + 1) for k, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    return _plain_scalar(value, place)


def _inside(place: str, key: str | int) -> str:
    return f"{place}.{key}" if place else str(key)


def _plain_scalar(value: Any, place: str) -> str | int | float:
    if isinstance(value, str):
        return _storable(str(value))
    if isinstance(value, int) and value.bit_length() <= LONGEST_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, int | float):
        raise ValueError(f"{place}: this number cannot be stored, because it is infinite, not a number, or enormous")
    raise ValueError(f"{place}: {type(value).__name__} cannot be stored; text, numbers, lists and groups can")


def _plain_group(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("should be a group of keys and values")
    return _plain(value, "")


def _condition(value: Any) -> Any:
    if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
        raise ValueError("should be text, the number of a class, or nothing")
    return value if value is None else _plain_scalar(value, "it")


Text = Annotated[StrictStr, AfterValidator(_storable)]
Group = Annotated[dict[str, Any], BeforeValidator(_plain_group)]
Sha256 = Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]
Asked = Annotated[str | int | None, BeforeValidator(_condition)]
