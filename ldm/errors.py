"""What a user may do wrong, told once and clearly.

A ``UserError`` reaches the terminal as one message and exit code 2, never as a traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake the user can mend: the message says what is wrong, where, and what would be right."""


class NotFinite(UserError):
    """A training whose loss or gradient is no number."""


class IdleError(UserError):
    """A setting that would do nothing beside the others.

    Attributes:
        setting: its name.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


def need(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: name of the module, such as ``"xformers.ops"``.
        extra: the extra of this package that installs it, such as ``"xformers"``.

    Raises:
        UserError: the module is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(f"{package} cannot be imported ({error}); pip install 'ldm[{extra}]' installs it") from error


def choose(value: str, allowed: Iterable[str], what: str) -> str:
    """Return ``value`` when it is one of ``allowed``.

    Raises:
        UserError: it is not; the message lists what is allowed and the nearest name.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {what} {value!r}{hint} (one of: {', '.join(allowed)})")
