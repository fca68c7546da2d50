"""The page of ``ldm data check``: what it shows, and that captions and names cannot do anything in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from picture_folders import caption_folder, picture, put
from PIL import Image

from ldm.data.check.looking import Examples
from ldm.data.check.page import page
from ldm.data.check.report import Report, Wishes, check_parts
from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.framing import FrameConfig

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</td></table><h1>mine</h1><!--",
    "&lt;b&gt; &#60;i&#62; ]]> <![CDATA[",
    "javascript:alert(1) \u202e reversed \x1b[31m",
)
ALONE = {"meta", "img", "br"}  # elements without an end


class Reader(HTMLParser):
    """Reads a page, and refuses elements that are not closed in the order they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.remarks: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1], data))

    def handle_comment(self, data: str) -> None:
        self.remarks.append(data)

    def images(self, kind: str) -> list[bytes]:
        """The files of a type that are in the page."""
        start = f"data:image/{kind};base64,"
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source[len(start) :], validate=True) for source in sources if source.startswith(start)]


def page_of(folder: Path, side: int = 32) -> tuple[Report, str]:
    parts = [FolderSource(FolderConfig(path=folder))]
    report = check_parts(parts, Wishes(lambda caption: len(caption.split()), 75, FrameConfig(resolution=side, step=8)))
    return report, page(report, Examples(parts))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str]:
    """Thirty pictures, some with hostile captions, copies, near copies, damages, and a hostile name."""
    folder = caption_folder(tmp_path_factory.mktemp("pictures"), 30)
    for number, words in enumerate(HOSTILE):
        (folder / f"{number}.txt").write_text(words)
    shutil.copy(folder / "10.png", folder / "11.png")
    shutil.copy(folder / "10.png", folder / "12.png")
    picture(13, (80, 64)).save(folder / "13.png")
    picture(13, (81, 64)).save(folder / "14.png")
    (folder / "15.png").write_bytes(b"none")
    (folder / "<b onclick=x>16'.png").write_bytes(b"none")
    (folder / "<b onclick=x>16'.txt").write_text("word " * 80)
    (folder / "17.txt").write_text("word " * 80)
    put(folder / "18.png", 18, (8, 8))
    return page_of(folder)


def test_the_page_is_whole_and_shows_everything(told: tuple[Report, str]) -> None:
    report, text = told
    read = Reader(text)
    shown = " ".join(words for _, words in read.words)
    for found in report.problems.values():
        for problem in found:
            assert problem.message.replace("\x1b", "\\x1b") in shown
    headings = [words for tag, words in read.words if tag == "h2"]
    assert headings == ["Problems", "Exact copies", "Pictures that look nearly alike", "A sample"]
    assert report.same == [[report.same[0][0] + i for i in range(3)]]
    assert len(read.images("svg+xml")) == 4
    for plot in read.images("svg+xml"):
        assert ElementTree.fromstring(plot).tag.endswith("svg")
    # 24 in the sample, 3 + 2 copies, one too small, one with a long caption
    unusable = {p.number for found in report.problems.values() for p in found}
    assert len(read.images("jpeg")) == len(report.names) - len(unusable) + 3 + 2 + 1 + 1
    for small in read.images("jpeg"):
        assert max(Image.open(io.BytesIO(small)).size) <= 112


def test_hostile_words_are_words(told: tuple[Report, str]) -> None:
    _, text = told
    read = Reader(text)
    captions = [words for tag, words in read.words if tag == "figcaption"]
    for words in HOSTILE[:-1]:
        assert words in captions
    assert "javascript:alert(1) \\u202e reversed \\x1b[31m" in captions
    assert not read.remarks
    layout = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "strong",
        "pre",
        "div",
        "span",
        "br",
    }
    assert {tag for tag, _ in read.tags} <= layout | {"img", "table", "tr", "td", "figure", "figcaption"}
    names = {name for _, attributes in read.tags for name in attributes}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "colspan"}
    assert all((attributes.get("src") or "data:image/").startswith("data:image/") for _, attributes in read.tags)
    assert "http:" not in re.sub(r"base64,[^\"]*", "", text)


def test_the_page_forbids_scripts_and_loading(told: tuple[Report, str]) -> None:
    read = Reader(told[1])
    (policy,) = [tag["content"] for name, tag in read.tags if name == "meta" and "http-equiv" in tag]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_small_picture_shows_the_picture(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text("one")
    put(tmp_path / "0.png", 5, (300, 150))
    read = Reader(page_of(tmp_path)[1])
    (small,) = read.images("jpeg")
    shown = Image.open(io.BytesIO(small))
    assert shown.size == (112, 56)
    expected = picture(5, (300, 150)).resize((112, 56), Image.Resampling.BOX)
    assert np.abs(np.asarray(shown, np.int16) - np.asarray(expected)).mean() < 4


def test_the_page_is_bounded(tmp_path: Path) -> None:
    caption_folder(tmp_path, 4)
    for number in range(10, 460):
        (tmp_path / f"{number}.png").write_bytes(b"none")
        (tmp_path / f"{number}.txt").write_text("a caption")
        (tmp_path / f"lone {number}.txt").write_text("a caption")
    report, text = page_of(tmp_path)
    assert len(report.problems["unreadable"]) == len(report.problems["orphan"]) == 450
    read = Reader(text)
    assert sum(tag == "tr" for tag, _ in read.tags) == 800
    assert sum(words == "384 more" for tag, words in read.words if tag == "summary") == 2
    assert sum("and 50 more of this kind" in words for _, words in read.words) == 2


def test_nothing_that_can_be_used_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    report, text = page_of(tmp_path)
    assert report.usable == 0
    assert not Reader(text).images("svg+xml")
