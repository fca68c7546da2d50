"""The base of every configuration class: frozen, and strict about unknown keys and types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ldm.errors import UserError

MOST_SHOWN = 5  # mistakes of one message
LONGEST = 80  # characters of a wrong value


class Settings(BaseModel):
    """A frozen pydantic model that refuses keys it does not know, and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    other_names: ClassVar[tuple[str, ...]] = ()  # to think of when a key is misspelt

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Validate flat values.

        Raises:
            UserError: with a line for every value that is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            allowed = [*cls.model_fields, *cls.other_names]
            found = [(item, _place(item["loc"], values), allowed) for item in error.errors()]
            lines = explain_all(_first_of_lists(found))
            more = f"; and {len(lines) - MOST_SHOWN:,} more mistakes" if len(lines) > MOST_SHOWN else ""
            raise UserError("; ".join(lines[:MOST_SHOWN]) + more) from error


# pydantic speaks of Python and of JSON; a configuration has neither.
_PLAIN = {
    "model_type": "should be a group of keys and values",
    "tuple_type": "should be a list",
    "path_type": "should be a path",
}


def _place(location: Sequence[Any], values: Any) -> str:
    """The dotted key of an error: pydantic also names the kind that it tried, which no key or index of ours is."""
    names = []
    for at, name in enumerate(location):
        held = values if isinstance(values, Mapping) else dict(enumerate(values)) if _is_list(values) else {}
        missing = isinstance(values, Mapping) and at == len(location) - 1
        if at == 0 or name in held or missing:
            names.append(str(name))
            values = held.get(name)
    return ".".join(names)


def _is_list(values: Any) -> bool:
    return isinstance(values, list | tuple)


def _first_of_lists(errors: list[tuple[Any, str, list[str]]]) -> list[tuple[Any, str, list[str]]]:
    """Of one mistake in several items of a list, the first."""
    first: dict[tuple[str, str], str] = {}
    kept = []
    for error, place, allowed in errors:
        same = (re.sub(r"\.\d+(?=\.|$)", ".", place), error["type"])
        if first.setdefault(same, place) == place:
            kept.append((error, place, allowed))
    return kept


def explain_all(errors: Sequence[tuple[Any, str, list[str]]]) -> list[str]:
    """One line for each place that is wrong.

    Args:
        errors: for each item of ``ValidationError.errors()``: itself, its dotted key, and the keys that there
            are beside that one. Where a value may be of several kinds, there is an item for each.
    """
    found: dict[str, dict[str, str]] = {}
    for error, place, allowed in errors:
        place, fault, given = _explain(error, place, allowed)
        found.setdefault(place, {})[fault] = given
    lines = []
    for place, faults in found.items():
        line = " or ".join(faults).replace(" or should be ", " or ") + next(iter(faults.values()))
        lines.append(f"{place}: {line}" if place else line)
    return lines


def _explain(error: Any, place: str, allowed: list[str]) -> tuple[str, str, str]:
    """The dotted key at fault; what would be right; what there is instead, where that helps."""
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        hint = _nearest(place.rpartition(".")[2], allowed)
        return place, f"unknown key{hint} (allowed: {', '.join(allowed)})", ""
    if kind == "missing":
        return place, "missing", ""
    if kind.startswith("union_tag"):
        key = context["discriminator"].strip("'")
        place = f"{place}.{key}" if place else key
        expected = context.get("expected_tags")
        if expected is None:
            return place, "missing", ""
        tag = str(context["tag"])
        return place, f"should be one of {expected}", f", got {tag!r}{_nearest(tag, _quoted(expected))}"
    message = _PLAIN.get(kind, str(error["msg"])).removeprefix("Value error, ").removeprefix("Input ")
    hint = _nearest(str(given), _quoted(context["expected"])) if kind == "literal_error" else ""
    # messages of our own name what is wrong in a list
    told = isinstance(given, dict) or (kind == "value_error" and _is_list(given))
    return place, message, "" if told else f", got {_short(given)}{hint}"


def _short(given: Any) -> str:
    """As Python shows it, on one line: an array fills a page."""
    shown = re.sub(r"\s*\n\s*", " ", repr(given))
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def _nearest(given: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)
