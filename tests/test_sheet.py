"""Labelled sheets: every picture is there unchanged, and every label can be read."""

from __future__ import annotations

import importlib.util
import itertools
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ldm import lettering
from ldm.errors import UserError
from ldm.lettering import lettered, natural_width, widest_word
from ldm.sheet import Layout, arrange, labelled_sheet

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))
LABELS = st.text(string.ascii_letters + "  \n한é\\,:", max_size=60)
LONG = "a horse, brown, galloping over the wide meadows of the north in the early morning light of a day in May"


def noise(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def ink(sheet: Image.Image, layout: Layout, images: list[Image.Image]) -> np.ndarray:
    """Where something is drawn that is no picture: True at (y, x)."""
    pixels = np.asarray(sheet).copy()
    for image, (left, top) in zip(images, layout.corners, strict=True):
        pixels[top : top + image.height, left : left + image.width] = 255
    return (pixels != 255).any(-1)


def read(text: str, size: int, height: int = 60) -> np.ndarray:
    """How Pillow draws a line of text by itself, cut out."""
    font = lettered("x", size, 100).font
    image = Image.new("RGB", (900, height), "#ffffff")
    ImageDraw.Draw(image).text((10, height // 2), text, font=font, fill="#57606a", anchor="ls")
    dark = (np.asarray(image) != 255).any(-1)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return np.asarray(image)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def occurs(pattern: np.ndarray, sheet: Image.Image) -> bool:
    """Whether ``pattern`` is somewhere in the sheet; its top row is sought first, as bytes."""
    pixels, (height, width) = np.asarray(sheet), pattern.shape[:2]
    sought = pattern[0].tobytes()
    for y in range(sheet.height - height + 1):
        row = pixels[y].tobytes()
        at = row.find(sought)
        while at >= 0:
            x = at // 3
            if np.array_equal(pixels[y : y + height, x : x + width], pattern):
                return True
            at = row.find(sought, at + 1)
    return False


# ----------------------------------------------------------------------- where everything is


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_picture_is_unchanged_in_its_place_and_no_label_touches_it(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(SIZES, min_size=1, max_size=8))
    columns = data.draw(st.integers(1, 4))
    rows = -(-len(sizes) // columns)
    labels = [data.draw(st.just([]) | st.lists(LABELS, min_size=n, max_size=n)) for n in (columns, rows)]
    title = data.draw(st.none() | LABELS)
    images = [noise(size, k, "L" if k % 2 else "RGB") for k, size in enumerate(sizes)]
    sheet, layout = labelled_sheet(images, columns, *labels, title), arrange(sizes, columns, *labels, title)
    assert (sheet.mode, sheet.size) == ("RGB", (layout.width, layout.height))

    bare = labelled_sheet([Image.new("L", size, 255) for size in sizes], columns, *labels, title)
    for k, (image, (left, top)) in enumerate(zip(images, layout.corners, strict=True)):
        box = (left, top, left + image.width, top + image.height)
        assert np.array_equal(np.asarray(sheet.crop(box)), np.asarray(image.convert("RGB")))
        assert (np.asarray(bare.crop(box)) == 255).all()
        column, row = k % columns, k // columns
        assert 0 <= left - layout.lefts[column] <= layout.cell[0] - image.width
        assert 0 <= top - layout.tops[row] <= layout.cell[1] - image.height
    for starts, size, whole in (
        (layout.lefts, layout.cell[0], sheet.width),
        (layout.tops, layout.cell[1], sheet.height),
    ):
        assert all(later - earlier > size for earlier, later in itertools.pairwise(starts))
        assert starts[0] > 0
        assert starts[-1] + size < whole

    edge = np.asarray(bare).copy()
    edge[4:-4, 4:-4] = 255  # letters may overhang their advance by a pixel or two, and never reach the edge
    assert (edge == 255).all()


@pytest.mark.parametrize(("side", "letters"), [(28, 13), (64, 13), (256, 13), (512, 26), (1024, 40)])
def test_labels_can_be_read_at_any_size(side: int, letters: int) -> None:
    images = [noise((side, side), k) for k in range(4)]
    sheet = labelled_sheet(images, 2, ["euler", "ddim"], ["steps", "LONG"], "title")
    for label in ("euler", "ddim", "steps", "LONG"):
        assert occurs(read(label, letters), sheet)
    assert not occurs(read("plms", letters), sheet)


def test_labels_stand_by_what_they_name() -> None:
    images = [Image.new("RGB", (128, 96), "#ff0000") for _ in range(6)]
    across, down = ["first", "", ""], ["", "second"]
    layout = arrange([i.size for i in images], 3, across, down)
    dark = ink(labelled_sheet(images, 3, across, down), layout, images)
    apart = layout.margin // 2
    header = np.argwhere(dark[: layout.tops[0] - apart - 1])
    assert abs(header[:, 1].mean() - (layout.lefts[0] + 64)) < 6
    side = np.argwhere(dark[:, : layout.lefts[0] - apart - 1])
    assert abs(side[:, 0].mean() - (layout.tops[1] + 48)) < 6
    assert layout.lefts[0] - 2 * apart - 3 <= side[:, 1].max() < layout.lefts[0]


def test_no_labels_cost_no_room() -> None:
    sizes = [(64, 64)] * 4
    plain = arrange(sizes, 2, [], [])
    assert plain == arrange(sizes, 2, ["", " "], ["", ""], "")
    assert (plain.width, plain.height) == (2 * 64 + plain.gap + 2 * plain.margin,) * 2


def test_mistakes_are_named() -> None:
    for sizes, columns, across, down, told in [
        ([], 1, [], [], "0 pictures in 1 columns"),
        ([(8, 8)], 0, [], [], "1 pictures in 0 columns"),
        ([(8, 8)] * 3, 2, ["a"], [], "1 labels for 2 columns"),
        ([(8, 8)] * 3, 2, [], ["a"], "1 labels for 2 rows"),
    ]:
        with pytest.raises(ValueError, match=told):
            arrange(sizes, columns, across, down)
    with pytest.raises(UserError, match="draw fewer or smaller pictures"):
        arrange([(1024, 1024)] * 1000, 30, [], [])


# ----------------------------------------------------------------------- letters and lines


@given(st.text(string.ascii_letters + " \n", max_size=120), st.integers(8, 30), st.integers(1, 300))
def test_lines_hold_every_letter_and_fit(label: str, size: int, width: int) -> None:
    text = lettered(label, size, width)
    if text.lines[-1:] == ("…",):
        assert len(text.lines) == 12
        assert "".join(label.split()).startswith("".join("".join(text.lines[:-1]).split()))
    else:
        assert "".join("".join(text.lines).split()) == "".join(label.split())
    assert all(text.font.getlength(line) <= width or len(line) == 1 for line in text.lines if line != "…")
    if widest_word(label, size) <= width and "…" not in text.lines:
        assert " ".join(text.lines).split() == label.split()


def test_a_line_is_broken_no_sooner_than_it_must() -> None:
    assert lettered(LONG, 16, natural_width(LONG, 16)).lines == (LONG,)
    assert len(lettered(LONG, 16, natural_width(LONG, 16) - 1).lines) == 2
    text = lettered(LONG, 16, 200)
    words = LONG.split()
    for line, following in itertools.pairwise(text.lines):
        assert text.font.getlength(f"{line} {following.split()[0]}") > 200
    assert " ".join(text.lines).split() == words


def test_a_label_stays_within_its_height() -> None:
    for label in ("Ågjpqy|", LONG):
        text = lettered(label, 20, 150)
        image = Image.new("L", (200, text.height + 40), 0)
        text.draw(ImageDraw.Draw(image), 20, 20, "left", "#ffffff")
        box = image.getbbox()
        assert box is not None
        assert box[1] >= 20
        assert box[3] <= 20 + text.height


def without_system_fonts(monkeypatch: pytest.MonkeyPatch, *instead: str) -> None:
    monkeypatch.setattr(lettering, "_OF_SYSTEMS", instead)


def test_a_character_that_no_font_has_is_escaped_and_never_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    without_system_fonts(monkeypatch)
    assert lettered("é Ж λ – …", 16, 900).lines == ("é Ж λ – …",)
    assert lettered("a 한국 \x07 cat", 16, 900).lines == (r"a \ud55c\uad6d \x07 cat",)
    assert lettered("\U00020000", 16, 900).lines == (r"\U00020000",)


def test_a_font_of_the_system_draws_what_ours_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    stix = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "STIXGeneral.ttf"
    letter = "\u1d81"  # d with a palatal hook
    assert ImageFont.truetype(stix, 16).getmask(letter).getbbox() is not None
    without_system_fonts(monkeypatch)
    assert lettered(letter, 16, 900).lines == (r"\u1d81",)
    without_system_fonts(monkeypatch, "no-such-font.ttf", str(stix))
    text = lettered(letter, 16, 900)
    assert (text.lines, text.font.getname()[0]) == ((letter,), "STIXGeneral")
    assert lettered("a", 16, 900).font.getname()[0] == "DejaVu Sans"
