"""Which sources of training data there are.

To add one: a module with its settings and a class that satisfies ``Source``; here a row in ``SOURCES``, and
its settings in ``SourceConfig``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldm.data.example import Source
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.errors import choose

SOURCES: dict[str, Callable[[Any], Source]] = {"mnist": MnistSource}

# With a second source: Annotated[MnistConfig | MineConfig, Field(discriminator="source")]
SourceConfig = MnistConfig


def open_source(config: SourceConfig) -> Source:
    """Open the source that the settings describe.

    Raises:
        UserError: its files or the package that carries them are missing or damaged.
    """
    return SOURCES[choose(config.source, SOURCES, "data source")](config)
