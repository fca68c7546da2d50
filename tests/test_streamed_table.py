"""Parquet files as streams, beside what ``datasets`` reads from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from file_server import Ranged, serving
from tar_shards import colour_of, picture

from ldm.data import shards
from ldm.data.example import BadExample
from ldm.data.split import thin_out
from ldm.data.streamed_table import StreamedTableConfig, StreamedTableSource
from ldm.errors import UserError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

COUNTS = [40, 7, 25]
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_tables(folder: Path, counts: Sequence[int] = COUNTS) -> Path:
    """``train-N.parquet`` as the hub has them, ten rows to a group."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"image": datasets.Image(decode=False), "text": datasets.Value("string")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=NAMES)})
    first = 0
    for file, count in enumerate(counts):
        rows = range(first, first + count)
        columns: dict[str, list[Any]] = {
            "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in rows],
            "text": [f"caption {n}" for n in rows],
            "label": [n % 3 for n in rows],
        }
        table = datasets.Dataset.from_dict(columns, features=features).data.table
        parquet.write_table(table, folder / f"train-{file}.parquet", row_group_size=10)
        first += count
    return folder


def opened(path: Path | str, **changes) -> StreamedTableSource:
    return StreamedTableSource(StreamedTableConfig(path=str(path), **changes))


def number(example) -> int:
    found = int(example.captions[0].split()[1])
    assert tuple(example.image[:, 0, 0].tolist()) == colour_of(found)
    assert example.label in (None, found % 3)
    return found


def test_rows_are_those_that_datasets_streams(tmp_path):
    folder = write_tables(tmp_path)
    found = opened(folder, label_column="label")
    files = sorted(map(str, folder.glob("*.parquet")))
    theirs = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert len(found) == 72
    assert found.num_classes == 3
    for (key, read), row in zip(found.scan(), theirs, strict=True):
        example = read()
        assert (example.captions, example.label, example.key) == ((row["text"],), row["label"], key)
        assert number(example) == int(row["text"].split()[1])
    assert key == "train-2.parquet/24"


def test_every_epoch_has_every_row_once_and_begins_anywhere(tmp_path):
    folder = write_tables(tmp_path)
    options = {"shuffle": 24, "processes": 2, "workers": 2}
    whole, begun = opened(folder, **options), opened(folder, **options)
    for found in (whole, begun):
        found.arrange(6, 3)
    series = [number(whole.read(k)) for k in range(144)]
    assert sorted(series[:72]) == sorted(series[72:]) == list(range(72))
    assert series[:72] != series[72:]
    for first in (3, 50, 100):
        assert [number(begun.read(k)) for k in range(first, first + 30)] == series[first : first + 30]


@pytest.mark.parametrize("shuffle", [1, 9])
def test_rows_that_nobody_asks_for_are_passed_over(tmp_path, shuffle):
    options = {"shuffle": shuffle, "processes": 1, "workers": 1}
    whole, gaps = (opened(write_tables(tmp_path), **options) for _ in range(2))
    assert [number(gaps.read(k)) for k in range(0, 72, 7)] == [number(whole.read(k)) for k in range(72)][::7]


def test_a_server_gives_the_rows_of_the_disk(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    folder = write_tables(tmp_path)
    handler = type("Handler", (Ranged,), {"asked": [], "breaks": 0})
    with serving(folder, handler) as url:
        there = opened(f"{url}/train-{{0..2}}.parquet", shuffle=8)
        here = opened(folder, shuffle=8)
        assert [there.read(k).key for k in range(40)] == [here.read(k).key for k in range(40)]
        monkeypatch.setattr(shards, "_WAITS", (0,))
        handler.breaks = 10**6
        with pytest.raises(UserError, match="cannot be read") as raised:
            there.read(71)
        assert not isinstance(raised.value, BadExample)  # the network is no fault of the rows


def test_a_data_set_is_found_by_its_name(tmp_path):
    """A folder stands for a name on the hub, which ``datasets`` finds the files of in the same way."""
    write_tables(tmp_path / "birds" / "data")
    found = StreamedTableSource(StreamedTableConfig(hub=str(tmp_path / "birds")))
    assert sorted(number(found.read(k)) for k in range(72)) == list(range(72))
    with pytest.raises(UserError, match=r"limit takes a part.*: say `source: hub` and `path: .*birds`"):
        thin_out(found, 3)
    with pytest.raises(UserError, match=r"limit takes a part.*: say `source: parquet` in place of `source: stream`"):
        thin_out(opened(tmp_path / "birds" / "data"), 3)
    with pytest.raises(UserError, match="has no split 'test'"):
        StreamedTableSource(StreamedTableConfig(hub=str(tmp_path / "birds"), split="test"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"train\.csv is no parquet file\. For tars there is source: webdataset"):
        StreamedTableSource(StreamedTableConfig(hub=str(tmp_path / "texts")))


def write_rows(path: Path, rows: list[dict]) -> None:
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def test_bad_rows_are_named(tmp_path):
    good = {"image": picture(1), "text": ["caption 1", "one"], "label": "cat"}
    rows = [
        good,
        {**good, "image": None},
        {**good, "image": picture(1)[:30]},
        {**good, "text": None},
        {**good, "text": [" "]},
        {**good, "label": "cow"},
    ]
    write_rows(tmp_path / "0.parquet", rows)
    found = opened(tmp_path, label_column="label", classes=("cat", "dog"))
    messages = []
    for _, read in found.scan():
        try:
            assert read().captions == ("caption 1", "one")
        except BadExample as error:
            messages.append(str(error))
    assert len(messages) == 5
    assert messages[0] == "0.parquet/1: image is missing"
    assert "0.parquet/2" in messages[1]
    assert messages[2:4] == ["0.parquet/3: text is missing", "0.parquet/4: text is empty"]
    assert messages[4] == "0.parquet/5: label is 'cow', and should be one of cat, dog"


def test_text_that_is_no_utf8_is_named(tmp_path):
    buffers = [None, arrow.array([0, 4, 5], arrow.int32()).buffers()[1], arrow.py_buffer(b"fine\xff")]
    texts = arrow.Array.from_buffers(arrow.string(), 2, buffers)
    parquet.write_table(arrow.table({"image": [picture(1)] * 2, "text": texts}), tmp_path / "0.parquet")
    (_, first), (_, second) = opened(tmp_path).scan()
    assert first().captions == ("fine",)
    with pytest.raises(BadExample, match="text is not valid UTF-8"):
        second()


def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path):
    folder = write_tables(tmp_path, [40, 40])
    path = folder / "train-1.parquet"
    content = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
    start = start or parquet.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    found = opened(folder)
    seen, lost = [], {}
    for k in range(80):
        try:
            seen.append(number(found.read(k)))
        except BadExample as error:
            lost[error.key] = str(error)
    assert sorted(seen) == [*range(60), *range(70, 80)]
    assert sorted(lost) == [f"train-1.parquet/{row}" for row in range(20, 30)]
    assert all(f"{path} is damaged in rows 20 to 29: " in message for message in lost.values())
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"train-1\.parquet is no parquet file, or is damaged"):
        opened(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_column": "picture"}, "has no column 'picture' .it has 'image', 'text', 'label'"),
        ({"image_column": "text"}, "text holds string, and should hold pictures as bytes"),
        ({"caption_column": None, "label_column": "text"}, "give their number, or their names, as classes"),
        ({"classes": 3}, "classes does nothing without a label_column"),
        ({"split": "test"}, "are for a hub data set"),
        ({"hub": "owner/name"}, "exactly one of path and hub"),
    ],
)
def test_wrong_settings_are_told(tmp_path, changes, message):
    folder = write_tables(tmp_path, [3])
    with pytest.raises(UserError, match=message):
        StreamedTableSource(StreamedTableConfig.checked({"path": str(folder), **changes}))
