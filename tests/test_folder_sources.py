"""Folders of pictures in every layout, beside ``datasets``' own reading; and all that may be wrong in one."""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_folders import (
    SIZES,
    caption,
    caption_folder,
    class_folder,
    kohya_folder,
    metadata_folder,
    picture,
    plain_folder,
    put,
    write_metadata,
)

from ldm.data import size_index
from ldm.data.example import BadExample
from ldm.data.folder import FolderConfig, FolderSource
from ldm.errors import UserError

datasets = pytest.importorskip("datasets")
T = TypeVar("T")
SAME_FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def source(path: Path, **options: object) -> FolderSource:
    return FolderSource(FolderConfig.checked({"path": str(path), **options}))


def by_key(found: FolderSource) -> dict[str, int]:
    return {found.key(i): i for i in range(len(found))}


def heard(use: Callable[[], T]) -> tuple[T | None, str]:
    """What comes of something, or what its refusal says; any other exception goes on."""
    try:
        return use(), ""
    except UserError as error:
        return None, str(error)


def as_datasets_has_it(folder: Path, cache: Path) -> dict[str, dict[str, object]]:
    datasets.disable_progress_bars()
    table = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    paths = table.cast_column("image", datasets.Image(decode=False))["image"]
    keys = [Path(image["path"]).relative_to(folder).as_posix() for image in paths]
    return dict(zip(keys, table, strict=True))


# ---------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_as_datasets_reads_it(tmp_path: Path, kind: str) -> None:
    folder = metadata_folder(tmp_path / "pictures", 3, kind, below=("", "more/below"))
    theirs, ours = as_datasets_has_it(folder, tmp_path / "cache"), source(folder, label_column="label")
    assert set(by_key(ours)) == set(theirs)
    assert (ours.layout, ours.captioned, ours.num_classes, ours.stream) == ("metadata", True, 2, False)
    for key, index in by_key(ours).items():
        example, row = ours.read(index), theirs[key]
        assert (example.captions, example.label, example.key) == ((row["text"],), row["label"], key)
        assert np.array_equal(example.image.permute(1, 2, 0).numpy(), np.asarray(row["image"]))
        assert tuple(ours.sizes[index].tolist()) == example.original == example.image.shape[1:]


def test_several_captions(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 0)
    put(tmp_path / "b.png", 1)
    rows = [
        {"file_name": "a.png", "text": "one", "long": ["two", "three"]},
        {"file_name": "b.png", "text": "four", "long": None},
        {"file_name": "a.png", "text": " five ", "long": "one"},
    ]
    write_metadata(tmp_path / "metadata.jsonl", rows)
    found = source(tmp_path, caption_column=["text", "long"])
    assert [found.words(i).captions for i in range(2)] == [("one", "two", "three", "five"), ("four",)]


@pytest.mark.parametrize(
    ("classes", "expected"), [(None, [1, 0, 1]), (["zebra", "ant"], [0, 1, 0]), (["ant", "bee", "zebra"], [2, 0, 2])]
)
def test_classes_by_name(tmp_path: Path, classes: list[str] | None, expected: list[int]) -> None:
    names = ["zebra", "ant", "zebra"]
    for number, name in enumerate(names):
        put(tmp_path / f"{number}.png", number)
        with (tmp_path / "metadata.csv").open("a") as file:
            file.write(("file_name,kind\n" if number == 0 else "") + f"{number}.png,{name}\n")
    found = source(tmp_path, caption_column=None, label_column="kind", classes=classes)
    assert [found.words(i).label for i in range(3)] == expected
    assert found.num_classes == len(classes or ["ant", "zebra"])
    assert not found.captioned


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=3), st.booleans())
@SAME_FOLDER
def test_any_caption_comes_through(tmp_path: Path, captions: list[str], comma: bool) -> None:
    put(tmp_path / "a.png", 0)
    place = tmp_path / f"metadata.{'csv' if comma else 'jsonl'}"
    other = tmp_path / f"metadata.{'jsonl' if comma else 'csv'}"
    other.unlink(missing_ok=True)
    for number in range(len(captions)):
        put(tmp_path / f"{number}.png", number, (8, 8))
    write_metadata(place, [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(captions)])
    found = source(tmp_path)
    for number, text in enumerate(captions):
        index = by_key(found)[f"{number}.png"]
        if text.strip() and "\0" not in text:
            assert found.words(index).captions == (text.strip(),)
        else:
            with pytest.raises(BadExample, match=r"is empty|is missing|zero bytes"):
                found.words(index)


GOOD = '{"file_name": "a.png", "text": "fine"}\n'
BAD_LINES = {
    '{"file_name": "b.png", "text": ': ("metadata.jsonl:2", "no JSON"),
    '["b.png", "text"]': ("metadata.jsonl:2", "should be an object"),
    '{"text": "a b"}': ("metadata.jsonl:2", "file_name is missing"),
    '{"file_name": "none.png", "text": "x"}': ("none.png", "there is no such file"),
    '{"file_name": "../a.png", "text": "x"}': ("../a.png", "should be a path in"),
    '{"file_name": "/etc/passwd", "text": "x"}': ("/etc/passwd", "should be a path in"),
    '{"file_name": "b.png", "text": ""}': ("b.png", "text is empty"),
    '{"file_name": "b.png", "text": " \\t"}': ("b.png", "text is empty"),
    '{"file_name": "b.png", "text": null}': ("b.png", "text is missing"),
    '{"file_name": "b.png"}': ("b.png", "text is missing"),
    '{"file_name": "b.png", "text": 7}': ("b.png", "is no text: 7"),
    '{"file_name": "b.png", "text": "\\ud800"}': ("b.png", "is not valid UTF-8"),
    '{"file_name": "b.png", "text": "\udcff"}': ("metadata.jsonl:2", "is not valid UTF-8"),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_used(tmp_path: Path, line: str) -> None:
    put(tmp_path / "a.png", 0)
    put(tmp_path / "b.png", 1)
    (tmp_path / "metadata.jsonl").write_text(GOOD + line + "\n", encoding="utf-8", errors="surrogateescape")
    found = source(tmp_path)
    key, told = BAD_LINES[line]
    index = by_key(found)[key]
    for use in (found.words, found.read):
        with pytest.raises(BadExample, match=told) as caught:
            use(index)
        assert caught.value.key == key
        assert f"{tmp_path}/metadata.jsonl:2" in str(caught.value)
    assert found.read(by_key(found)["a.png"]).captions == ("fine",)
    skip = tmp_path / "skip.list"
    skip.write_text(f"{key}\n")
    assert by_key(source(tmp_path, skip=str(skip))) == {"a.png": 0}


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a.png", "cat", "\ud800", "7"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
LINE = st.fixed_dictionaries(
    {}, optional={"file_name": st.just("a.png") | ANYTHING, "text": ANYTHING, "kind": ANYTHING}
)


@given(st.lists(LINE.map(lambda said: json.dumps(said).encode()) | st.binary(max_size=30), max_size=6), st.booleans())
@SAME_FOLDER
def test_any_list_is_used_or_refused(tmp_path: Path, lines: list[bytes], labelled: bool) -> None:
    put(tmp_path / "a.png", 0, (8, 8))
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join([*lines, GOOD.replace("fine", "x").encode()]))
    found, told = heard(lambda: source(tmp_path, label_column="kind" if labelled else None))
    if found is None:
        assert told.startswith(f"{tmp_path}/metadata.jsonl has no column 'kind'")
        return
    assert len(by_key(found)) == len(found)
    for index in range(len(found)):
        words, told = heard(lambda index=index: found.words(index))
        if words is None:
            assert told.startswith(f"{tmp_path}/metadata.jsonl:")
        else:
            assert words.captions
            assert all(text.strip() for text in words.captions)
            assert words.label in (range(found.num_classes) if labelled else [None])


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 0)
    put(tmp_path / "b.png", 1)
    text = b'\xef\xbb\xbffile_name,text\na.png,"two\nlines"\nb.png,one,two\nnone.png,x\nb.png,\xff\n'
    (tmp_path / "metadata.csv").write_bytes(text)
    found = source(tmp_path)
    assert found.words(0).captions == ("two\nlines",)
    for index, told in [(1, r"csv:4 has 3 fields"), (2, r"csv:5 names none"), (3, r"csv:6: text is not valid UTF-8")]:
        with pytest.raises(BadExample, match=told):
            found.words(index)


def test_a_missing_column_is_told_with_those_there(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path, column="caption")
    with pytest.raises(
        UserError, match=r"metadata.jsonl has no column 'text' \(it has 'file_name', 'caption', 'label'\)"
    ):
        source(folder)
    assert source(folder, caption_column="caption").words(0).captions == (caption(0),)


def test_pictures_that_no_list_names(tmp_path: Path) -> None:
    folder = metadata_folder(tmp_path)
    put(folder / "extra.png", 9)
    found = source(folder)
    assert found.orphans == (f"{folder}/extra.png is in no metadata file",)
    assert len(found) == 4


# --------------------------------------------------------------------------------------- caption files


@given(st.binary(max_size=40))
@SAME_FOLDER
def test_any_bytes_beside_a_picture(tmp_path: Path, held: bytes) -> None:
    put(tmp_path / "a.png", 0, (8, 8))
    (tmp_path / "a.txt").write_bytes(held)
    found = source(tmp_path)
    try:
        expected = held.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        expected = ""
    if expected and "\0" not in expected:
        assert found.read(0).captions == (expected,)
    else:
        with pytest.raises(BadExample, match=r"a\.txt (is empty|is not valid UTF-8|holds zero bytes)"):
            found.read(0)


def test_caption_files(tmp_path: Path) -> None:
    caption_folder(tmp_path)
    (tmp_path / "0.caption").write_text("another\nof two lines\n")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\n")
    (tmp_path / "2.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "3.txt").unlink()
    (tmp_path / "lone.txt").write_text("of nothing")
    found = source(tmp_path)
    assert found.words(0).captions == (caption(0), "another\nof two lines")
    assert found.words(1).captions == ("with a mark",)
    with pytest.raises(BadExample, match=r"2\.txt is not valid UTF-8: it begins as UTF-16 does"):
        found.words(2)
    with pytest.raises(BadExample, match=r"3\.png has no caption: looked for 3\.txt or 3\.caption beside it"):
        found.read(3)
    assert found.orphans == (f"{tmp_path}/lone.txt is a caption without a picture",)
    only = source(tmp_path, caption_extension="caption")
    assert only.words(0).captions == ("another\nof two lines",)


def test_kohya_folders(tmp_path: Path) -> None:
    found = source(kohya_folder(tmp_path))
    assert found.layout == "kohya"
    expected = {
        "3_sks dog/0.png": (3, "sks dog"),
        "3_sks dog/1.png": (3, "a dog that sits"),
        "1_cat/2.png": (1, "cat"),
        "more/3.png": (1, "something else"),
    }
    counted = Counter(found.key(i) for i in range(len(found)))
    assert counted == {key: times for key, (times, _) in expected.items()}
    for index in range(len(found)):
        example = found.read(index)
        assert example.captions == (expected[example.key][1],)
        assert example.key == found.key(index)
        assert tuple(found.sizes[index].tolist()) == example.original
    (tmp_path / "more" / "3.txt").unlink()
    again = source(tmp_path)
    with pytest.raises(BadExample, match=r"more/3\.png has no caption"):
        again.words(by_key(again)["more/3.png"])
    (tmp_path / "1_cat").rename(tmp_path / "0_cat")
    with pytest.raises(UserError, match=r"0_cat: its pictures would come 0 times"):
        source(tmp_path)
    (tmp_path / "0_cat").rename(tmp_path / "20230101_cat")
    with pytest.raises(UserError, match=r"20230101_cat: its pictures would come 20,230,101 times; set layout"):
        source(tmp_path)
    assert len(source(tmp_path, layout="captions"))


# ------------------------------------------------------------------------------- classes, and no words


def test_class_folders_as_datasets_reads_them(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "pictures", ("b", "c", "a"))
    theirs, ours = as_datasets_has_it(folder, tmp_path / "cache"), source(folder)
    assert ours.layout == "classes"
    assert {key: ours.read(i).label for key, i in by_key(ours).items()} == {
        k: row["label"] for k, row in theirs.items()
    }
    assert (ours.num_classes, ours.classes, ours.captioned) == (3, ("a", "b", "c"), False)
    told = source(folder, classes=["c", "b", "a", "none yet"], caption="a photo of a {label}")
    assert {told.words(i) for i in range(6)} == {
        (0, ("a photo of a c",)),
        (1, ("a photo of a b",)),
        (2, ("a photo of a a",)),
    }
    assert told.num_classes == 4
    fewer = source(folder, classes=["a", "b"])
    with pytest.raises(BadExample, match=r"c/0\.png is in the folder c, which is none of classes"):
        fewer.read(by_key(fewer)["c/0.png"])


@pytest.mark.parametrize("captioned", [False, True])
def test_a_project_of_kohya_is_not_taken_for_something_else(tmp_path: Path, captioned: bool) -> None:
    folder = tmp_path / "img" / "10_zork thing"
    folder.mkdir(parents=True)
    put(folder / "a.png", 1)
    if captioned:
        (folder / "a.txt").write_text("a zork")
    with pytest.raises(UserError, match=r"one level down, such as 10_zork thing: give .*img as path, or set layout"):
        source(tmp_path)
    assert len(source(tmp_path / "img")) == 10
    assert len(source(tmp_path, layout="plain")) == 1


def test_plain_pictures(tmp_path: Path) -> None:
    found = source(plain_folder(tmp_path))
    assert (found.layout, found.captioned, found.num_classes, len(found)) == ("plain", False, None, 4)
    assert found.read(1).captions == ()
    assert source(tmp_path, caption="a photo of sks dog").words(3).captions == ("a photo of sks dog",)


# ------------------------------------------------------------------------------------- what is refused


def lone_words(folder: Path) -> None:
    (folder / "notes.md").write_text("x")
    (folder / "a.txt").write_text("x")


def two_lists(folder: Path) -> None:
    metadata_folder(folder)
    metadata_folder(folder, kind="csv")


def numbered_classes(folder: Path) -> None:
    class_folder(folder, ("1_cat", "2_dog", "3_owl"))


def splits(folder: Path) -> None:
    for name in ("test", "train"):
        metadata_folder(folder / name)


def other_paths(folder: Path) -> None:
    metadata_folder(folder)
    (folder / "images").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "images" / path.name)


def nothing_usable(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("no json\n")


REFUSED: list[tuple[Callable[[Path], object], dict[str, object], str]] = [
    (lambda folder: None, {}, r"none of what was looked for, pictures .* metadata\.parquet: found no file"),
    (lone_words, {}, r"found 1 with \.md \(notes\.md\); 1 with \.txt \(a\.txt\)"),
    (
        plain_folder,
        {"layout": "metadata"},
        r"no metadata\.jsonl, .* found 4 with \.png \(0\.png, 1\.png, 2\.png, \.\.\.\)",
    ),
    (
        plain_folder,
        {"layout": "captions"},
        r"none of 4 pictures has a caption: .*0\.png has no caption: looked for 0\.txt",
    ),
    (class_folder, {"layout": "kohya"}, r"no folder .* is named as 10_name \(with pictures: cat, dog\)"),
    (plain_folder, {"layout": "classes"}, r"no folder .* holds pictures"),
    (two_lists, {}, r"metadata\.jsonl stands beside metadata\.csv"),
    (splits, {}, r"holds the splits test, train: give one of them as path, such as .*/train"),
    (nothing_usable, {}, r"no line that can be used: .*metadata\.jsonl:1 is no JSON"),
    (
        other_paths,
        {},
        r"jsonl:1 names 0\.png, and there is no such file; no line .* found 4 with \.png \(images/0",
    ),
    (plain_folder, {"caption": "a {label}"}, r"has no classes"),
    (plain_folder, {"label_column": "x"}, r"label_column does nothing for a folder with layout plain"),
    (caption_folder, {"caption": "x"}, r"caption does nothing .* layout captions \(only with classes or plain\)"),
    (
        lambda folder: class_folder(folder, ("1_cat", "2_dog", "3_owl")),
        {},
        r"numbered 1_ to 3_, and no captions: whether",
    ),
    (class_folder, {"classes": ["cat", "cat"]}, r"should name each class once"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_is_no_source(tmp_path: Path, case: int) -> None:
    make, options, told = REFUSED[case]
    folder = tmp_path / "pictures"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=told):
        source(folder, **options)


def test_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        source(tmp_path / "none")
    with pytest.raises(UserError, match="is a file, and should be a folder"):
        source(put(tmp_path / "a.png", 0))


def test_lists_of_what_to_skip(tmp_path: Path) -> None:
    folder, skip = plain_folder(tmp_path / "pictures"), tmp_path / "skip.txt"
    skip.write_text("1.png\r\ngone since.png\n\n")
    assert list(by_key(source(folder, skip=str(skip)))) == ["0.png", "2.png", "3.png"]
    skip.write_text("of/other/data.png\n")
    with pytest.raises(UserError, match=r"no line of .*skip\.txt is the key of an example of .*'of/other/data\.png'"):
        source(folder, skip=str(skip))
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        source(folder, skip=str(tmp_path / "none.txt"))


# ----------------------------------------------------------------------------------------- odd files


def test_what_is_passed_over_and_what_is_not(tmp_path: Path) -> None:
    plain_folder(tmp_path, 2)
    put(tmp_path / ".thumbnails" / "a.png", 0)
    put(tmp_path / "__MACOSX" / "a.png", 0)
    (tmp_path / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "around").symlink_to(tmp_path)
    (tmp_path / "deep" / "lost.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    put(tmp_path / "LOUD.JPG", 3)
    strange = os.fsdecode(b"caf\xe9\n.png")
    put(tmp_path / strange, 4)
    found = source(tmp_path)
    assert list(by_key(found)) == ["0.png", "1.png", "LOUD.JPG", "caf\\xe9\\x0a.png", "deep/lost.png", "photo.heic"]
    assert found.read(3).image.shape == (3, *reversed(SIZES[4 % 3]))
    for index, told in [(4, "there is no file"), (5, "but a HEIC file, .*readable: PNG, JPEG.*save it as")]:
        with pytest.raises(BadExample, match=told):
            found.read(index)


def test_colours(tmp_path: Path) -> None:
    clear = picture(0)
    clear.putalpha(0)
    clear.save(tmp_path / "a.png")
    assert (source(tmp_path, background=[10, 20, 30]).read(0).image == torch.tensor([10, 20, 30])[:, None, None]).all()
    grey = source(tmp_path, colours="grey")
    assert grey.channels == grey.read(0).image.shape[0] == 1


# ---------------------------------------------------------------------------------- sizes, and stamps


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sizes of few pictures, too, are kept in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(size_index, "_WORTH_KEEPING", 1)
    return tmp_path / "cache" / "ldm" / "sizes"


def test_sizes_are_remembered_until_a_picture_changes(tmp_path: Path, remembered: Path) -> None:
    folder = plain_folder(tmp_path / "pictures")
    sizes = source(folder).sizes
    assert sizes.tolist() == [list(reversed(SIZES[n % 3])) for n in range(4)]
    path, status = folder / "1.png", (folder / "1.png").stat()
    path.write_bytes(bytes(status.st_size))  # now no picture, but with the state that is remembered
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    known = source(folder)
    assert known.sized.all()
    assert torch.equal(known.sizes, sizes)
    os.utime(path, ns=(0, status.st_mtime_ns + 1))
    changed = source(folder)
    assert changed.sized.tolist() == [True, False, True, True]
    assert changed.sizes[1].tolist() == sizes[0].tolist()  # the commonest
    (index,) = remembered.iterdir()
    held = bytearray(index.read_bytes())
    held[40] ^= 1
    index.write_bytes(held)
    put(path, 1)
    assert torch.equal(source(folder).sizes, sizes)


def test_a_stamp_changes_when_the_picture_does(tmp_path: Path) -> None:
    folder = caption_folder(tmp_path / "pictures")
    seen = {source(folder).stamp(0)}
    (folder / "0.txt").write_text("other words")
    put(folder / "5.png", 5)
    assert source(folder).stamp(0) in seen
    changes: list[Callable[[], dict[str, object]]] = [
        lambda: {"background": [0, 0, 0]},
        lambda: {"colours": "grey"},
        lambda: os.utime(folder / "0.png", ns=(1, 1)) or {},
        lambda: put(folder / "0.png", 5) and {},
    ]
    for change in changes:
        stamp = source(folder, **change()).stamp(0)
        assert stamp not in seen
        seen.add(stamp)


# ---------------------------------------------------------------------------------------------- damage


def damage(rng: np.random.Generator, held: bytes) -> bytes:
    kind, data = rng.integers(7), bytearray(held)
    if kind == 0:
        return held[: rng.integers(len(held))]
    if kind == 1:
        return bytes(len(held))
    if kind == 2:
        for place in rng.integers(0, len(held) * 8, rng.integers(1, 40)):
            data[place // 8] ^= 1 << place % 8
        return bytes(data)
    if kind == 3:
        start = rng.integers(len(held))
        data[start : start + 64] = rng.bytes(min(64, len(held) - start))
        return bytes(data)
    if kind == 4:
        return b""
    if kind == 5:
        return rng.bytes(200)
    return held + held


def damaged_folder(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(count)
    kinds = ["jpg", "png", "webp", "gif", "bmp", "tif"]
    for number in range(count):
        ending, wrong = (kinds[i] for i in rng.integers(0, len(kinds), 2))
        path = put(folder / f"{number}.{ending}", number, (64, 48))
        (folder / f"{number}.txt").write_bytes(caption(number).encode())
        hurt = path if number % 4 else path.with_suffix(".txt")
        hurt.write_bytes(damage(rng, hurt.read_bytes()))
        if number % 5 == 0:
            path.rename(folder / f"{number}.{wrong}")
    return folder


def read_all(found: FolderSource) -> tuple[int, int]:
    """How many can be read, and how many are refused with their names; any other exception goes on."""
    good, bad = 0, 0
    for index in range(len(found)):
        key = found.key(index)
        try:
            example = found.read(index, (16, 16))
        except BadExample as error:
            named = error.key == key and f"{Path(key).stem}." in str(error)
            bad += named
        else:
            assert example.image.dtype == torch.uint8
            assert example.image.shape[0] == 3
            assert len(example.captions) == 1
            assert example.captions[0].strip()
            good += 1
    return good, bad


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:RuntimeWarning")
def test_damaged_pictures_and_captions(tmp_path: Path) -> None:
    good, bad = read_all(source(damaged_folder(tmp_path, 60)))
    assert good + bad == 60
    assert bad > 30


@pytest.mark.slow  # half a minute of damaged files
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:RuntimeWarning")
def test_five_hundred_damaged_ones_in_flat_memory(tmp_path: Path) -> None:
    found = source(damaged_folder(tmp_path, 500))
    read_all(found)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        good, bad = read_all(found)
    assert good + bad == 500
    assert bad > 250
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} KiB more than after the first pass"
