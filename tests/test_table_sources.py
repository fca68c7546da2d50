"""Parquet files and data sets of the hub, beside what ``datasets`` itself decodes; and places to sources."""

from __future__ import annotations

import io
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_folders import (
    caption,
    caption_folder,
    class_folder,
    metadata_folder,
    parquet_file,
    picture,
    plain_folder,
    put,
)
from PIL import Image

from ldm.data.example import BadExample
from ldm.data.folder import FolderConfig
from ldm.data.guess import guess
from ldm.data.table import HubConfig, HubSource, ParquetConfig, ParquetSource
from ldm.data.webdataset import WebDatasetConfig
from ldm.errors import UserError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def png(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def written(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("raw", [False, True])
def test_parquet(tmp_path: Path, cache: str, raw: bool) -> None:
    path = parquet_file(tmp_path / "a.parquet", 5, raw)
    found = ParquetSource(ParquetConfig(path=str(path), label_column="label", cache_dir=Path(cache)))
    assert (len(found), found.channels, found.num_classes, found.captioned, found.stream) == (5, 3, 2, True, False)
    for number in range(5):
        example = found.read(number)
        assert np.array_equal(pixels(example.image), np.asarray(picture(number)))
        assert found.words(number) == (number % 2, (caption(number),)) == (example.label, example.captions)
        assert tuple(found.sizes[number].tolist()) == example.original
        assert found.key(number) == example.key == str(number)


def test_several_files(tmp_path: Path, cache: str) -> None:
    for name in "ba":
        parquet_file(tmp_path / "shards" / f"{name}.parquet", 2)
    (tmp_path / "shards" / "README.md").write_text("x")
    folder = str(tmp_path / "shards")
    for path in (folder, f"{folder}/*.parquet", (f"{folder}/a.parquet", f"{folder}/b.parquet")):
        found = ParquetSource(ParquetConfig(path=path, cache_dir=Path(cache)))
        assert [found.words(i).captions[0] for i in range(4)] == [caption(n) for n in (0, 1, 0, 1)]


def test_a_jpeg_in_a_table_is_decoded_smaller(tmp_path: Path, cache: str) -> None:
    file = io.BytesIO()
    picture(0, (64, 48)).save(file, "JPEG")
    path = written(tmp_path / "a.parquet", image=[file.getvalue()])
    found = ParquetSource(ParquetConfig(path=str(path), caption_column=None, cache_dir=Path(cache)))
    example = found.read(0, (20, 20))
    assert (example.image.shape, example.original) == ((3, 24, 32), (48, 64))


def test_what_is_wrong_with_a_row_is_named(tmp_path: Path, cache: str) -> None:
    images = [{"bytes": png(n), "path": None} for n in range(8)]
    images[1] = {"bytes": png(1)[:-30], "path": "1.png"}
    images[2] = {"bytes": None, "path": None}
    images[3] = None
    images[4] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    texts = [["a"], ["b"], ["c"], ["d"], ["e"], ["f", " "], [], ["h", "i"]]
    kinds = ["x", "y", "x", "x", "x", "x", "x", None]
    path = written(tmp_path / "a.parquet", image=images, said=texts, kind=kinds)
    found = ParquetSource(ParquetConfig(path=str(path), caption_column="said", label_column="kind", cache_dir=cache))
    told = {
        1: "row 1 cannot be read",
        2: "row 2: image is missing",
        3: "row 3: image is missing",
        4: "there is no file .*gone.png",
        5: "row 5: said is empty",
        6: "row 6: said is missing",
        7: "row 7: kind is missing",
    }
    assert found.read(0).captions == ("a",)
    for row, message in told.items():
        with pytest.raises(BadExample, match=message) as caught:
            found.read(row)
        assert caught.value.key == str(row)
    assert found.sized.tolist() == [True, True, False, False, False, True, True, True]
    (tmp_path / "skip.txt").write_text("".join(f"{row}\n" for row in told))
    only = ParquetSource(
        ParquetConfig(
            path=str(path), caption_column="said", label_column="kind", skip=tmp_path / "skip.txt", cache_dir=cache
        )
    )
    assert [only.key(i) for i in range(len(only))] == ["0"]


def test_text_that_is_not_utf_8(tmp_path: Path, cache: str) -> None:
    texts = pa.array([b"fine", b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)
    path = written(tmp_path / "a.parquet", image=[png(0), png(1)], text=texts)
    found = ParquetSource(ParquetConfig(path=str(path), cache_dir=Path(cache)))
    assert found.words(0).captions == ("fine",)
    with pytest.raises(BadExample, match=r"row 1: text is not valid UTF-8"):
        found.words(1)


def test_a_stamp_is_of_the_data(tmp_path: Path, cache: str) -> None:
    path = parquet_file(tmp_path / "a.parquet", 4)

    def stamp(index: int = 0, **options: object) -> str:
        found = ParquetSource(ParquetConfig.checked({"path": str(path), "cache_dir": cache, **options}))
        return found.stamp(index)

    first = stamp()
    assert stamp() == first
    assert stamp(cache_dir=f"{cache}2") == first
    assert len({first, stamp(1), stamp(colours="grey")}) == 3
    parquet_file(path, 5)
    assert stamp() != first


# --------------------------------------------------------------------------------------------- the hub


def test_a_data_set_with_pictures_in_files(tmp_path: Path, cache: str) -> None:
    folder = metadata_folder(tmp_path / "pictures")
    found = HubSource(HubConfig(path=str(folder), label_column="label", cache_dir=Path(cache)))
    theirs = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    for number, row in enumerate(theirs):
        example = found.read(number)
        assert np.array_equal(pixels(example.image), np.asarray(row["image"]))
        assert (example.captions, example.label) == ((row["text"],), row["label"])


def test_named_classes_keep_their_order(tmp_path: Path, cache: str) -> None:
    folder = class_folder(tmp_path / "pictures")
    found = HubSource(HubConfig(path=str(folder), caption_column=None, label_column="label", cache_dir=Path(cache)))
    assert (found.num_classes, found.classes, found.captioned) == (2, ("cat", "dog"), False)
    assert [found.words(i).label for i in range(4)] == [0, 0, 1, 1]
    other = HubConfig(
        path=str(folder), caption_column=None, label_column="label", classes=("dog", "cat"), cache_dir=Path(cache)
    )
    assert [HubSource(other).words(i).label for i in range(4)] == [1, 1, 0, 0]


def test_what_a_data_set_saved_as_is_opened_too(tmp_path: Path, cache: str) -> None:
    """``push_to_hub`` writes the type of the column into the parquet file."""
    rows = {"image": [picture(n) for n in range(3)], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / "train.parquet")
    for found in (
        HubSource(HubConfig(path=str(tmp_path / "data"), cache_dir=Path(cache))),
        ParquetSource(ParquetConfig(path=str(tmp_path / "data"), cache_dir=Path(cache))),
    ):
        assert np.array_equal(pixels(found.read(2).image), np.asarray(picture(2)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": "tset"}, r"tset \(hub\) cannot be read: Unknown split"),
        ({"name": "large"}, r"cannot be read: BuilderConfig 'large' not found"),
        ({"image_column": "img"}, r"no column 'img' \(it has 'image', 'text', 'label'\)"),
        ({"caption_column": ["text", "long"]}, r"no column 'long' .*caption_column: null for none"),
        ({"image_column": "text"}, r"text holds Value\('string'\), and should hold pictures as bytes"),
        ({"classes": ["a"]}, r"classes does nothing without a label_column"),
        ({"classes": ["a", "a"], "label_column": "label"}, r"should name each class once"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, cache: str, options: dict[str, object], told: str) -> None:
    metadata_folder(tmp_path / "pictures", kind="parquet")
    parquet_file(tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match=told):
        HubSource(HubConfig.checked({"path": str(tmp_path / "data"), "cache_dir": cache, **options}))


def test_files_that_are_none(tmp_path: Path, cache: str) -> None:
    with pytest.raises(UserError, match=r"none\.parquet is no file, and no pattern of files"):
        ParquetSource(ParquetConfig(path=str(tmp_path / "none.parquet")))
    with pytest.raises(UserError, match=r"holds no file that ends in \.parquet"):
        ParquetSource(ParquetConfig(path=str(tmp_path)))
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet \(parquet\) cannot be read"):
        ParquetSource(ParquetConfig(path=str(path), cache_dir=Path(cache)))


def test_a_name_without_a_network(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing train \(hub\) is not here, and the hub cannot be reached"):
        HubSource(HubConfig(path="nobody/nothing", cache_dir=Path(cache)))


# ----------------------------------------------------------------------------------------------- guess


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (caption_folder, class_folder, plain_folder):
        make(Path("pictures"))
        assert guess("pictures") == FolderConfig(path=Path("pictures"))
    metadata_folder(Path("listed"), column="caption")
    assert guess("listed") == FolderConfig(path=Path("listed"), caption_column="caption")
    for i in range(5):
        put(Path(f"listed/0{i}.png"), i)
    monkeypatch.setattr("ldm.data.guess._MOST", 3)  # a list is seen before the pictures beside it, however many
    assert guess("listed") == FolderConfig(path=Path("listed"), caption_column="caption")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    metadata_folder(Path("csv/below"), kind="csv", column="x")
    assert guess("csv") == FolderConfig(path=Path("csv"), caption_column=None)
    parquet_file(Path("rows/a.parquet"))
    assert guess("rows") == ParquetConfig(path="rows")
    assert guess("rows/*.parquet") == ParquetConfig(path="rows/*.parquet")
    written(Path("rows/a.parquet"), image=[png(0)])
    assert guess("rows/a.parquet") == ParquetConfig(path="rows/a.parquet", caption_column=None)
    Path("shards").mkdir()
    Path("shards/0.tar").write_bytes(b"")
    for place in ("shards", "shards/0.tar", "shards/*.tar", "shards/{00..99}.tar", "https://host/{0..9}.tar"):
        assert guess(place) == WebDatasetConfig(path=place)
    assert guess("lambdalabs/pokemon") == HubConfig(path="lambdalabs/pokemon")


def test_places_that_are_none(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", 0)
    with pytest.raises(UserError, match=r"a\.png is no source of pictures"):
        guess(str(path))
    with pytest.raises(UserError, match=r"there is no .*/none, and it is no name on the hub"):
        guess(str(tmp_path / "none"))
    assert Image.open(path).size
