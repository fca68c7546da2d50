"""One axis of a table of pictures: ``NAME=VALUE,VALUE,...``, as people write it for AUTOMATIC1111's web UI.

steps=5,10,20                     numbers; ranges too, and both mixed
steps=1-5                         1, 2, 3, 4, 5
steps=1-10(+2), steps=10-1(-3)    1, 3, 5, 7, 9; 10, 7, 4, 1
cfg_scale=1-10[5]                 five numbers from 1 to 10, evenly; whole numbers are cut to whole ones
sampler="DPM++ 2M",euler          texts; quotes hold commas, and "" in quotes is a quote
guidance_interval="0,0.5","0,1"   pairs
prompt=cat,dog                    search and replace: the first value is replaced in the prompt by each
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ldm.diffusion.grid import SPACINGS
from ldm.diffusion.samplers import find_sampler
from ldm.drawing import Drawing, find_key
from ldm.errors import UserError, choose
from ldm.plans.job import LARGEST_SEED, MOST_PICTURES, NOTHING, shortened

_NUMBER = r"\s*([+-]?\s*(?:\d{1,20}(?:\.\d{0,9})?|\.\d{1,9}))\s*"  # no more digits than Decimal is exact in
_RANGE = re.compile(rf"{_NUMBER}-{_NUMBER}(?:\({_NUMBER}\)|\[\s*(\d{{1,20}})\s*\])?\s*", re.ASCII)
_WHOLE = re.compile(r"\+?\d{1,20}", re.ASCII)


@dataclass(frozen=True)
class Axis:
    """Values of one setting.

    Attributes:
        key: a field of ``Drawing``, ``seed`` or ``prompt``.
        values: at least one, each checked.
        labels: one for each.
    """

    key: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]


def parse_axis(text: str, flag: str) -> Axis:
    """Read ``NAME=VALUE,VALUE,...``.

    Args:
        text: what was typed.
        flag: behind which flag, for messages, such as ``--x``.

    Raises:
        UserError: the name is unknown, or a value is wrong for it.
    """
    name, equals, rest = text.partition("=")
    try:
        if not equals:
            raise UserError("should be NAME=VALUE,VALUE,..., as in steps=5,10,20")
        key = find_key(name, ("seed", "prompt"))
        items = _items(rest)
        kind = _kind(key)
        if kind in (int, float):
            items = [number for item in items for number in _numbers(item, whole=kind is int)]
        if len(items) > MOST_PICTURES:
            raise UserError(f"{len(items):,} values: {MOST_PICTURES:,} are the most")
        values = tuple(_value(key, kind, item) for item in items)
    except UserError as error:
        raise UserError(f"{flag} {shortened(text)!r}: {error}") from error
    shown = [item.strip() or NOTHING for item in items]
    plain = key == "prompt" or kind is str
    called = re.sub(r"[_-]+", " ", name.strip())
    return Axis(key, values, tuple(shown if plain else (f"{called} {item}" for item in shown)))


def _items(text: str) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(
            f'the quotes cannot be read ({error}); a comma is held by "a, b", and a quote by "a ""b"""'
        ) from error
    if len(rows) != 1:
        raise UserError("should be one line of values" if rows else "has no values")
    return [item.strip() for item in rows[0]]


def _kind(key: str) -> type:
    """``int``, ``float``, ``tuple`` or ``str``: how the values of a key are written."""
    if key in ("seed", "prompt"):
        return int if key == "seed" else str
    return _kind_of(Drawing.model_fields[key].annotation)


def _kind_of(annotation: Any) -> type:
    if get_origin(annotation) in (Union, UnionType):
        kinds = {_kind_of(one) for one in get_args(annotation) if one is not type(None)}
        return kinds.pop() if len(kinds) == 1 else str
    if get_origin(annotation) is Literal:
        return str
    return get_origin(annotation) or annotation


def _numbers(item: str, whole: bool) -> list[str]:
    """The numbers of a range; any other item as it is."""
    match = _RANGE.fullmatch(item)
    if match is None:
        return [item]
    start, end, step = (None if text is None else Decimal(text.replace(" ", "")) for text in match.groups()[:3])
    assert start is not None
    assert end is not None
    if whole and not all(_is_whole(number) for number in (start, end, step)):
        raise UserError(f"{item!r} should be a range of whole numbers")
    if match[4] is not None:
        return _evenly(start, end, int(match[4]), whole, item)
    toward = 1 if end >= start else -1
    step = Decimal(toward) if step is None else step
    if step * toward <= 0:
        raise UserError(
            f"{item!r} leads nowhere: a step from {start} towards {end} is {'above' if toward > 0 else 'below'} 0"
        )
    count = int((end - start) / step) + 1
    _check_count(count, item)
    return [_shown(start + k * step) for k in range(count)]


def _is_whole(number: Decimal | None) -> bool:
    return number is None or number == number.to_integral_value()


def _evenly(start: Decimal, end: Decimal, count: int, whole: bool, item: str) -> list[str]:
    _check_count(count, item)
    first, last = Fraction(start), Fraction(end)
    points = [first + (last - first) * k / max(1, count - 1) for k in range(count)]
    return [str(int(point)) if whole else f"{float(point):.10g}" for point in points]


def _check_count(count: int, item: str) -> None:
    if not 1 <= count <= MOST_PICTURES:
        raise UserError(f"{item!r} is {count:,} numbers: 1 to {MOST_PICTURES:,} can be drawn")


def _shown(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _value(key: str, kind: type, item: str) -> Any:
    """The checked value."""
    if key == "prompt":
        return item
    if key == "seed":
        return _seed(item)
    given: Any = item
    if kind is tuple:
        given = [part.strip() for part in item.split(",")]
        if len(given) != 2:
            raise UserError(f'{key} takes pairs in quotes, as in "0,0.5","0.2,1", got {item!r}')
    value = getattr(Drawing.checked({key: given}), key)
    if key == "sampler":
        find_sampler(value)
    if key == "spacing" and value is not None:
        choose(value, SPACINGS, "spacing")
    return value


def _seed(item: str) -> int:
    if not _WHOLE.fullmatch(item) or int(item) > LARGEST_SEED:
        raise UserError(f"seed should be a whole number from 0 to 2**64 - 1, got {item!r}")
    return int(item)
