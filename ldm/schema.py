"""The base of every configuration class: frozen, and strict about unknown keys and types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ldm.errors import UserError


class Settings(BaseModel):
    """A frozen pydantic model that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Self:
        """Validate flat values.

        Raises:
            UserError: with a line for every value that is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            lines = [explain(item, ".".join(map(str, item["loc"])), list(cls.model_fields)) for item in error.errors()]
            raise UserError("; ".join(lines)) from error


def explain(error: Any, place: str, allowed: list[str]) -> str:
    """One pydantic error as a line: the place, what is wrong, what would be right.

    Args:
        error: an item of ``ValidationError.errors()``.
        place: the dotted key.
        allowed: the keys that there are beside ``place``.
    """
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place.rpartition(".")[2], allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{place}: unknown key{hint} (allowed: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{place}: missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    return f"{place}: {message}" + ("" if isinstance(given, dict) else f", got {given!r}")
