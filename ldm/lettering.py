"""Labels in pictures: which font has the characters, and where a line breaks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont
# Fonts of systems that have what DejaVu Sans lacks: Chinese, Japanese, Korean
_OF_SYSTEMS = ("NotoSansCJK-Regular.ttc", "NanumGothic.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc", "msyh.ttc")
_NO_CHARACTER = "\U0010ffff"  # no font draws it, so it looks as everything does that a font lacks
_MOST_LINES = 12


@dataclass(frozen=True)
class Text:
    """Lines of text in one font.

    Attributes:
        lines: none where there is nothing to say.
        font: in its size.
        width, height: of all lines, in pixels.
    """

    lines: tuple[str, ...]
    font: Font
    width: int
    height: int

    def draw(
        self, pen: ImageDraw.ImageDraw, x: int, top: int, align: Literal["left", "centre", "right"], colour: str
    ) -> None:
        """Draw with the left edge, the middle or the right edge of every line at ``x``."""
        ascent = self.font.getmetrics()[0]
        for k, line in enumerate(self.lines):
            length = _length(self.font, line)
            left = x - {"left": 0, "centre": length // 2, "right": length}[align]
            pen.text((left, top + k * _pitch(self.font) + ascent), line, font=self.font, fill=colour, anchor="ls")


def lettered(label: str, size: int, width: int) -> Text:
    """Break a label into lines of at most ``width`` pixels, between words where that is possible.

    At most 12 lines; an ellipsis stands for the rest.
    """
    font, text = _font_for(label, size)
    lines = [line for paragraph in text.splitlines() for line in _broken(paragraph.split(), font, width)]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], "…" if _has(font, "…") else "..."]
    ascent, descent = font.getmetrics()
    height = (len(lines) - 1) * _pitch(font) + ascent + descent if lines else 0
    return Text(tuple(lines), font, max((_length(font, line) for line in lines), default=0), height)


def natural_width(label: str, size: int) -> int:
    """Pixels that a label fills on a single line."""
    font, text = _font_for(label, size)
    return _length(font, " ".join(text.split()))


def widest_word(label: str, size: int) -> int:
    """Pixels that the longest word of a label fills."""
    font, text = _font_for(label, size)
    return max((_length(font, word) for word in text.split()), default=0)


def _broken(words: list[str], font: Font, width: int) -> Iterator[str]:
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if _length(font, longer) <= width:
            line = longer
            continue
        if line:
            yield line
        *full, line = _cut(word, font, width)
        yield from full
    if line:
        yield line


def _cut(word: str, font: Font, width: int) -> Iterator[str]:
    """Pieces of a word that fit; at least one character each."""
    piece = ""
    for character in word:
        if piece and _length(font, piece + character) > width:
            yield piece
            piece = ""
        piece += character
    yield piece


def _length(font: Font, line: str) -> int:
    return -int(-font.getlength(line) // 1)


def _pitch(font: Font) -> int:
    """From one line to the next."""
    return round(font.size * 1.25)


def _font_for(label: str, size: int) -> tuple[Font, str]:
    """The first font that has every character, and the label; or the best one, and escapes for what it lacks."""
    needed = {character for character in label if not character.isspace()}
    lacking: dict[Font, set[str]] = {}
    for font in _fonts(size):
        lacking[font] = {character for character in needed if not _has(font, character)}
        if not lacking[font]:
            return font, label
    best = min(lacking, key=lambda font: len(lacking[font]))
    written = {ord(character): _escape(character) for character in lacking[best]}
    return best, label.translate(written)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _fonts(size: int) -> Iterator[Font]:
    """The fonts that are here, those first that are the same everywhere."""
    spec = importlib.util.find_spec("matplotlib")  # finds its folder, and imports nothing
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    for name in (str(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), *_OF_SYSTEMS):
        font = _load(name, size)
        if font is not None:
            yield font
    yield _of_pillow(size)


@cache
def _load(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def _of_pillow(size: int) -> Font:
    font = ImageFont.load_default(size)  # ASCII and little else
    assert isinstance(font, Font)
    return font


@cache
def _has(font: Font, character: str) -> bool:
    return _drawn(font, character) != _drawn(font, _NO_CHARACTER)


def _drawn(font: Font, character: str) -> bytes:
    image = Image.new("L", (2 * round(font.size), 2 * round(font.size)))
    ImageDraw.Draw(image).text((0, 0), character, font=font, fill=255)
    return image.tobytes()
