"""A function called in a process of its own, whose peak of memory is then that of the call."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ldm.errors import UserError

T = TypeVar("T")


def in_own_process(title: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module, in a fresh process that begins without what this one holds.

    Args:
        title: what is being done, for messages.
        function: to be called; it, its arguments and its result are sent.
        arguments: of it.

    Raises:
        UserError: the function's own; or its process was killed, as where memory runs out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            found, fault = pool.submit(_call, function, arguments).result()
        except BrokenProcessPool as error:
            raise UserError(f"{title}: the process was killed, as where memory runs out") from error
    if fault is not None:
        raise UserError(f"{title}: {fault}")
    return found  # pyright: ignore[reportReturnType]


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, None] | tuple[None, str]:
    """What a function returns, or its user's mistake as text, which can always be sent."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)
