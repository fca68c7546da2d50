"""torchmetrics and torch-fidelity without torchvision.

torch-fidelity's ``__init__`` imports all its networks, some of which need torchvision, and torchmetrics imports
torch-fidelity where that is installed. The parts in use need none of it. So they are imported from a package of the
same name and place whose ``__init__`` has not run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

from ldm.errors import UserError, need

_PACKAGE = "torch_fidelity"


def torchmetrics(module: str) -> ModuleType:
    """A module of torchmetrics, such as ``image.fid``.

    Raises:
        UserError: torchmetrics is not installed.
    """
    with _bare():
        return need(f"torchmetrics.{module}", "evaluate")


def torch_fidelity(module: str) -> ModuleType:
    """A module of torch-fidelity, such as ``feature_extractor_inceptionv3``.

    Raises:
        UserError: torch-fidelity is not installed, or the module is not in it.
    """
    with _bare():
        try:
            return importlib.import_module(f"{_PACKAGE}.{module}")
        except ImportError as error:
            told = "`pip install --no-deps torch-fidelity` installs it, without torchvision, which is not needed"
            raise UserError(f"torch-fidelity cannot be imported ({error}); {told}") from error


@contextlib.contextmanager
def _bare() -> Iterator[None]:
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    package = ModuleType(_PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = package
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]  # so that whoever imports the whole of it later gets it
