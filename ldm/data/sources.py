"""Which sources of training data there are.

To add one: a module with its settings and a class that satisfies ``Source``; here a row in ``SOURCES``, and
its settings in ``SourceConfig``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ldm.data.example import Source
from ldm.data.fashion_mnist import FashionMnistConfig, FashionMnistSource
from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.indexed_tars import IndexedTarSource
from ldm.data.mixture import Mixture
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.data.split import hold_out
from ldm.data.streamed_table import StreamedTableConfig
from ldm.data.table import HubConfig, HubSource, ParquetConfig, ParquetSource
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.errors import UserError, choose
from ldm.schema import Settings
from ldm.starter.settings import StarterConfig


class MixedSource(Settings):
    """One of the sources of a mixture.

    Attributes:
        data: its settings.
        weight: its share of the samples, in proportion to the others' weights; without weights, every picture of
            every source comes equally often. A mixture divides its share among its own sources.
    """

    data: SourceConfig
    weight: float | None = Field(default=None, gt=0)


class MixConfig(Settings):
    """Several sources as one.

    Attributes:
        sources: at least two.
        skip_bad: so many examples that cannot be used are replaced by others; one more, and training stops.
    """

    source: Literal["mix"]
    sources: tuple[MixedSource, ...] = Field(min_length=2)
    skip_bad: int = Field(default=0, ge=0)

    @field_validator("sources")
    @classmethod
    def _check(cls, sources: tuple[MixedSource, ...]) -> tuple[MixedSource, ...]:
        if len({source.weight is None for source in sources}) > 1:
            raise UserError("some sources have a weight and some have none: give it to all of them or to none")
        if any(getattr(source.data, "skip_bad", 0) for source in sources):
            raise UserError("skip_bad of one of the sources does nothing: set it beside `sources`, for all of them")
        return sources


class SplitConfig(Settings):
    """A part of a source: what is left of it once some pictures, chosen by chance, are held out, or those alone.

    Attributes:
        of: the whole.
        hold_out: so many pictures are held out.
        part: which of the two this is.
        seed: of the choice.
    """

    source: Literal["split"]
    of: SourceConfig
    hold_out: int = Field(ge=1)
    part: Literal["train", "held_out"]
    seed: int = Field(default=0, ge=0)

    @property
    def skip_bad(self) -> int:
        """Of the whole."""
        return getattr(self.of, "skip_bad", 0)


SourceConfig = Annotated[
    MnistConfig
    | FashionMnistConfig
    | FolderConfig
    | ParquetConfig
    | HubConfig
    | WebDatasetConfig
    | StreamedTableConfig
    | MixConfig
    | SplitConfig
    | StarterConfig,
    Field(discriminator="source"),
]
MixedSource.model_rebuild()
SplitConfig.model_rebuild()


def _mixed(config: MixConfig) -> Mixture:
    parts = [open_source(each.data) for each in config.sources]
    return Mixture(parts, [each.weight or len(part) for each, part in zip(config.sources, parts, strict=True)])


def _split(config: SplitConfig) -> Source:
    train, held_out = hold_out(open_source(config.of), config.hold_out, config.seed, "data.hold_out")
    part = train if config.part == "train" else held_out
    part.name += ", held out" if part is held_out else f", but for {config.hold_out:,} held out"
    return part


def _tars(config: WebDatasetConfig) -> Source:
    return IndexedTarSource(config) if config.indexed else WebDatasetSource(config)


def _streamed(config: StreamedTableConfig) -> Source:
    from ldm.data.streamed_table import StreamedTableSource

    return StreamedTableSource(config)


def _starter(config: StarterConfig) -> Source:
    from ldm.starter.source import StarterSource

    return StarterSource(config)


SOURCES: dict[str, Callable[[Any], Source]] = {
    "mnist": MnistSource,
    "fashion_mnist": FashionMnistSource,
    "folder": FolderSource,
    "parquet": ParquetSource,
    "hub": HubSource,
    "webdataset": _tars,
    "stream": _streamed,
    "mix": _mixed,
    "split": _split,
    "starter": _starter,
}


def open_source(config: Any) -> Source:
    """Open the source that the settings, one of ``SourceConfig``, describe.

    Raises:
        UserError: its files or the package that carries them are missing or damaged.
    """
    return SOURCES[choose(config.source, SOURCES, "data source")](config)
