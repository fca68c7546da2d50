"""The models that come with the package, by names that hold wherever it is installed: ``ldm:mnist_text``."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import UserError
from ldm.weights.parts import INDEX

_ASSETS = Path(__file__).parents[1] / "assets"
_PREFIX = "ldm:"
DEFAULT = f"{_PREFIX}mnist_text"


def is_embedded(place: str | Path) -> bool:
    """Whether a place is the name of such a model."""
    return str(place).startswith(_PREFIX)


def as_path(place: str | Path) -> Path:
    """A place as a path; of the name of a model that comes with the package, its folder.

    Raises:
        UserError: no such model comes with it.
    """
    if not is_embedded(place):
        return Path(place)
    known = {f"{_PREFIX}{folder.name}": folder for folder in _ASSETS.iterdir() if (folder / INDEX).is_file()}
    if str(place) not in known:
        raise UserError(f"{place}: no such model comes with ldm, but {' and '.join(sorted(known))}")
    return known[str(place)]
