"""A function called in a process of its own, whose peak of memory is then that of the call."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from ldm.errors import UserError

T = TypeVar("T")
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, from Linux's prctl.h


def in_own_process(title: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of a module, in a fresh process that begins without what this one holds.

    Args:
        title: what is being done, for messages.
        function: to be called; it, its arguments and its result are sent.
        arguments: of it.

    Raises:
        UserError: the function's own; or memory ran out, or its process was killed, as where it ran out.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            found, fault = pool.submit(_call, function, arguments).result()
        except BrokenProcessPool as error:
            raise UserError(f"{title}: the process was killed, as where memory runs out") from error
    if fault is not None:
        raise UserError(f"{title}: {fault}")
    return found  # pyright: ignore[reportReturnType]


def _end_with_parent() -> None:
    """Have Linux end this process where the other one is killed: it would work on beside the next attempt."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, None] | tuple[None, str]:
    """What a function returns, or its user's mistake as text, which can always be sent."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)
    except torch.OutOfMemoryError:
        return None, "it does not fit into the memory of the device: take a smaller batch_size"
