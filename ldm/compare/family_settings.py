"""What a comparison of generative families may say: autoencoders, adversarial networks and diffusion, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from ldm.compare.settings import Judging
from ldm.data.sources import SourceConfig
from ldm.errors import UserError
from ldm.schema import Settings


class FamilyDrawing(Settings):
    """How a diffusion model draws: the settings of that name in ``ldm generate``."""

    sampler: str
    steps: int = Field(ge=1)


class FamilyRow(Settings):
    """One way to make pictures.

    Attributes:
        name: of the row.
        train: configurations of ``ldm train`` in order, as paths beside the comparison's own file. The last draws; it
            begins from those before it, by the ``output`` that they name. Rows may share them: each is trained once.
        draw: how a diffusion model draws; None is its own way. An autoencoder draws from its prior and a GAN from its
            vectors, in one step: for them there is nothing to say.
    """

    name: str = Field(min_length=1)
    train: tuple[Path, ...] = Field(min_length=1)
    draw: FamilyDrawing | None = None


class FamilyQuality(Judging):
    """How what families draw is measured.

    Attributes:
        diverged: a seed whose distance is more than so many times the median over the seeds of its row counts as
            diverged, as one does whose loss was not finite.
    """

    diverged: float = Field(default=2.0, gt=1)


class FamilyComparison(Settings):
    """One data set; the kind of generative model differs from row to row.

    Attributes:
        compare: the kind.
        output: the folder of all that is made.
        data: training pictures, all of one size; they take the place of those that the rows' configurations name.
        held_out: other pictures of the same kind, to compare with; or how many of ``data`` are held out.
        quality: how what is drawn is measured.
        rows: in the order of the table.
    """

    compare: Literal["families"]
    output: Path
    data: SourceConfig
    held_out: SourceConfig | Annotated[int, Field(ge=1)]
    quality: FamilyQuality
    rows: tuple[FamilyRow, ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _named_apart(cls, rows: tuple[FamilyRow, ...]) -> tuple[FamilyRow, ...]:
        names = [row.name for row in rows]
        twice = [name for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise UserError(f"two rows are named {twice[0]!r}")
        return rows

    def beside(self, file: Path) -> Self:
        """The same, with paths of configurations that do not depend on where ``file``, which holds it, lies."""
        rows = [row.model_copy(update={"train": tuple(file.parent / path for path in row.train)}) for row in self.rows]
        return self.model_copy(update={"rows": tuple(rows)})
