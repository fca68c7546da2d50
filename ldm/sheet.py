"""Pictures in rows and columns on white, with a label above each column and left of each row.

No picture is scaled. Letters grow with the pictures, from 13 to 40 pixels, and columns of tiny pictures are as wide as
their labels need. The font is DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Hebrew, Arabic. Where
a label has other characters, a font of the system that has them draws it, and what no font has is written as an
escape such as \\ud55c, never as an empty box.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image, ImageDraw

from ldm.errors import UserError
from ldm.lettering import Text, lettered, natural_width, widest_word

_PAPER, _INK, _FAINT, _RULE = "#ffffff", "#1f2328", "#57606a", "#d8dee4"
_MOST_PIXELS = 400_000_000  # 1.2 GB while it is drawn
_LABEL_EMS, _TITLE_EMS = 11, 24  # how wide labels and title may be where the pictures are less wide
_LINES = 4  # that a label should fill at most, where it may still be wider


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels.

    Attributes:
        width, height: of the whole.
        corners: left and top of each picture.
        title, columns, rows: the labels, broken into lines; rows and columns are empty where none has a text.
        lefts, tops: of the columns' and the rows' cells.
        cell: their width and height.
        margin: around all.
        gap: between cells.
    """

    width: int
    height: int
    corners: tuple[tuple[int, int], ...]
    title: Text
    columns: tuple[Text, ...]
    rows: tuple[Text, ...]
    lefts: tuple[int, ...]
    tops: tuple[int, ...]
    cell: tuple[int, int]
    margin: int
    gap: int


def labelled_sheet(
    images: Sequence[Image.Image],
    columns: int,
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    title: str | None = None,
) -> Image.Image:
    """Lay pictures out row by row, with labels.

    Args:
        images: of mode L or RGB, of any sizes; smaller ones stand in the middle of their cells.
        columns: pictures in a row.
        column_labels: one for each column, or none.
        row_labels: one for each row, or none.
        title: above all.

    Returns:
        An RGB picture in which every picture's pixels are as they were.

    Raises:
        UserError: the sheet would have more than 400 million pixels.
        ValueError: the numbers of pictures, labels and columns do not fit.
    """
    layout = arrange([image.size for image in images], columns, column_labels, row_labels, title)
    sheet = Image.new("RGB", (layout.width, layout.height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    layout.title.draw(pen, layout.margin, layout.margin, "left", _INK)
    _draw_labels(pen, layout)
    for image, corner in zip(images, layout.corners, strict=True):
        sheet.paste(image.convert("RGB"), corner)
    return sheet


def arrange(
    sizes: Sequence[tuple[int, int]],
    columns: int,
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    title: str | None = None,
) -> Layout:
    """Compute the sheet of pictures of these sizes (width, height); see ``labelled_sheet``."""
    rows = _count_rows(len(sizes), columns, column_labels, row_labels)
    cell = [max(size[side] for size in sizes) for side in (0, 1)]
    letters = round(min(40, max(13, statistics.median(max(size) for size in sizes) / 20)))
    gap, margin = max(3, letters // 3), max(8, letters)

    sides = _labels(row_labels, letters, max(_LABEL_EMS * letters, cell[0] // 2))
    headers = _labels(column_labels, letters, max(cell[0], _readable_width(column_labels, letters)))
    if _widest(headers) > cell[0]:
        cell[0] = _widest(headers) + letters // 2  # so that neighbours do not read as one
    # A picture lower than its label would let the labels of neighbours run into each other.
    cell[1] = max(cell[1], *_heights(sides))

    left = margin + (_widest(sides) + margin if sides else 0)
    width = left + columns * (cell[0] + gap) - gap
    heading = lettered(title or "", round(letters * 1.2), max(width - margin, _TITLE_EMS * letters))
    width = max(width, margin + heading.width) + margin
    top = margin + (heading.height + margin if heading.lines else 0)
    top += max(_heights(headers)) + (margin if headers else 0)
    height = top + rows * (cell[1] + gap) - gap + margin
    _check_size(width, height)

    lefts = tuple(accumulate([cell[0] + gap] * (columns - 1), initial=left))
    tops = tuple(accumulate([cell[1] + gap] * (rows - 1), initial=top))
    corners = tuple(
        (lefts[k % columns] + (cell[0] - w) // 2, tops[k // columns] + (cell[1] - h) // 2)
        for k, (w, h) in enumerate(sizes)
    )
    return Layout(width, height, corners, heading, headers, sides, lefts, tops, (cell[0], cell[1]), margin, gap)


def _count_rows(count: int, columns: int, column_labels: Sequence[str], row_labels: Sequence[str]) -> int:
    if count < 1 or columns < 1:
        raise ValueError(f"{count} pictures in {columns} columns make no sheet")
    rows = -(-count // columns)
    if len(column_labels) not in (0, columns):
        raise ValueError(f"{len(column_labels)} labels for {columns} columns")
    if len(row_labels) not in (0, rows):
        raise ValueError(f"{len(row_labels)} labels for {rows} rows")
    return rows


def _labels(labels: Sequence[str], letters: int, width: int) -> tuple[Text, ...]:
    """The labels broken into lines of at most ``width``; none if all are blank."""
    if not any(label.strip() for label in labels):
        return ()
    return tuple(lettered(label, letters, width) for label in labels)


def _readable_width(labels: Sequence[str], letters: int) -> int:
    """A width at which no word is broken and no label is high, up to a limit."""
    wanted = (max(widest_word(label, letters), natural_width(label, letters) // _LINES) for label in labels)
    return min(max(wanted, default=0), _LABEL_EMS * letters)


def _widest(texts: Sequence[Text]) -> int:
    return max((text.width for text in texts), default=0)


def _heights(texts: Sequence[Text]) -> list[int]:
    return [text.height for text in texts] or [0]


def _check_size(width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise UserError(
            f"the sheet would have {width} x {height} pixels, and {_MOST_PIXELS:,} are the most: "
            "draw fewer or smaller pictures"
        )


def _draw_labels(pen: ImageDraw.ImageDraw, layout: Layout) -> None:
    """Labels with a thin rule between them and the pictures that they name."""
    (wide, high), apart = layout.cell, layout.margin // 2
    left, top = layout.lefts[0], layout.tops[0]
    if layout.columns:
        pen.line((left, top - apart, layout.lefts[-1] + wide - 1, top - apart), fill=_RULE)
    if layout.rows:
        pen.line((left - apart, top, left - apart, layout.tops[-1] + high - 1), fill=_RULE)
    for text, x in zip(layout.columns, layout.lefts, strict=False):
        text.draw(pen, x + wide // 2, top - 2 * apart - text.height, "centre", _FAINT)
    for text, y in zip(layout.rows, layout.tops, strict=False):
        text.draw(pen, left - 2 * apart, y + (high - text.height) // 2, "right", _FAINT)


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other, on white."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), _PAPER)
    for sheet, top in zip(sheets, accumulate((sheet.height for sheet in sheets), initial=0), strict=False):
        whole.paste(sheet, (0, top))
    return whole
