"""Reading the ``config.json`` of a diffusers model: what we cannot honour is an error, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ldm.errors import UserError


def refuse_unsupported(
    config: Mapping[str, Any],
    name: str,
    read: Collection[str],
    fixed: Mapping[str, Any],
    hints: Collection[str],
) -> None:
    """Raise unless every key of ``config`` is understood.

    Args:
        config: the parsed ``config.json``; keys that begin with an underscore are remarks.
        name: what to call the file's model in messages.
        read: keys that the caller translates.
        fixed: keys that we support with one value only.
        hints: keys that change no weight and no function, only how another program runs the model.

    Raises:
        UserError: naming every key at fault, its value, and the value that would be supported.
    """
    faults = []
    for key, value in config.items():
        if key.startswith("_") or key in read or key in hints:
            continue
        if key not in fixed:
            faults.append(f"{key} = {value!r} (unknown key)")
        elif value != fixed[key]:
            faults.append(f"{key} = {value!r} (supported: {fixed[key]!r})")
    if faults:
        raise UserError(f"the {name} config.json asks for what is not supported: {'; '.join(faults)}")


def uniform(value: Any, key: str, name: str) -> Any:
    """Return a setting that diffusers allows per level and we do not; of a list of equal values, the value.

    Raises:
        UserError: the levels differ.
    """
    if not isinstance(value, (list, tuple)):
        return value
    if any(entry != value[0] for entry in value):
        raise UserError(f"the {name} config.json has {key} = {value!r}: levels that differ are not supported")
    return value[0]
