"""``ldm compare CONFIG``: what a codec saves, or what families of models give, measured side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ldm.compare.codecs import compare_codecs, count_codecs
from ldm.compare.families import compare_families, count_families
from ldm.compare.family_report import report as family_report
from ldm.compare.family_settings import FamilyComparison
from ldm.compare.report import report_of
from ldm.compare.settings import CodecComparison
from ldm.compare.stages import Found
from ldm.compare.writing import Report, markdown, write_report
from ldm.config import read_tree, validate
from ldm.errors import UserError
from ldm.images import check_folder

Comparison = CodecComparison | FamilyComparison
AnyComparison = Annotated[Comparison, Field(discriminator="compare")]


class _Kind(NamedTuple):
    """A kind of comparison: what it counts, all that it finds, and its report, given its folder once all is found."""

    count: Callable[[Any], Found]
    find: Callable[[Any], Found]
    report: Callable[[Found, Path | None], Report]


KINDS = {
    "codecs": _Kind(count_codecs, compare_codecs, report_of),
    "families": _Kind(count_families, compare_families, family_report),
}


def read_comparison(config: Path, overrides: list[str]) -> Comparison:
    """Read the configuration of a comparison.

    Args:
        config: a YAML file, such as ``configs/compare/mnist.yaml``.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        UserError: it is missing, or says what it may not.
    """
    tree = read_tree(config, overrides)
    if "task" in tree:
        raise UserError(f"{config} is a run, for `ldm train`; a comparison says `compare: {' or '.join(KINDS)}`")
    told: Comparison = validate(tree, str(config), AnyComparison)
    return told.beside(config) if isinstance(told, FamilyComparison) else told


def compare_file(config: Path, overrides: list[str], dry_run: bool = False) -> Report:
    """Do what is left of a comparison, write its report into its folder, and print it.

    Args:
        config, overrides: see :func:`read_comparison`.
        dry_run: count only; nothing is trained or written.

    Raises:
        UserError: anything the user can mend.
        Stopped: a signal asked for it; the same command goes on from there.
    """
    told = read_comparison(config, overrides)
    kind = KINDS[told.compare]
    if dry_run:
        report = kind.report(kind.count(told), None)
        print(_without_pictures(report))
        return report
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "ldm compare works in one process, as it takes the time of what it does: start it without torchrun"
        )
    _check_output(told.output)
    found = kind.find(told)
    report = kind.report(found, told.output)
    write_report(told.output, report, found)
    print(_without_pictures(report))
    print(f"\n{told.output / 'report.html'}: all of it, with plots and pictures; results.json has every number")
    return report


def _without_pictures(report: Report) -> str:
    lines = markdown(report).splitlines()
    return "\n".join(line for line in lines if not line.startswith("![")).rstrip()


def _check_output(folder: Path) -> None:
    """Refuse to work in a folder of something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "stages").is_dir():
        raise UserError(f"{folder} holds something that is no comparison: choose another `output`")
    check_folder(folder)
