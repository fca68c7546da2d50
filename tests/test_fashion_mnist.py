"""The garments of Fashion-MNIST from made-up IDX files, and what a bare folder of such files is taken for."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from test_data_sources import idx_bytes

from ldm.data import fashion_mnist
from ldm.data.fashion_mnist import DEBIAN_FOLDER, GARMENTS, FashionMnistConfig, FashionMnistSource
from ldm.data.guess import guess
from ldm.data.mnist import MnistConfig
from ldm.data.sources import open_source
from ldm.errors import UserError

LABELS = {"train": np.arange(30, dtype=np.uint8) % 10, "t10k": np.arange(20, dtype=np.uint8)[::-1] % 10}
PICTURES = {
    name: np.random.default_rng(7).integers(0, 256, (len(labels), 28, 28), np.uint8) for name, labels in LABELS.items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for prefix, labels in LABELS.items():
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(PICTURES[prefix])))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path


def test_a_folder_of_garments(folder: Path) -> None:
    source = open_source(FashionMnistConfig(path=folder, split="test", size=32, limit=12, captions=True))
    assert isinstance(source, FashionMnistSource)
    assert (len(source), source.channels, source.num_classes, source.captioned) == (12, 1, 10, True)
    np.testing.assert_array_equal(source.images[:, 0, 2:30, 2:30], PICTURES["t10k"][:12])
    assert source.images.sum() == PICTURES["t10k"][:12].sum()  # black on all sides
    assert source.labels.tolist() == LABELS["t10k"][:12].tolist()
    assert "a photo of an ankle boot" in source.words(0).captions
    assert not open_source(FashionMnistConfig(path=folder)).words(3).captions


def test_a_caption_names_the_garment_and_no_other() -> None:
    labels = torch.arange(10)
    captions = fashion_mnist.garment_captions(torch.zeros(10, 28, 28, dtype=torch.uint8), labels)
    names = [set(name.replace("/", " ").split()) - {"ankle"} for name in GARMENTS]
    for label, own in enumerate(captions):
        assert GARMENTS[label] in own
        assert len(set(own)) == len(own) > 5
        for caption in own:
            words = {word.rstrip("s") if word == "trousers" else word for word in caption.replace("/", " ").split()}
            assert [k for k in range(10) if names[k] & words] == [label], caption
    assert "a photo of a trouser" in captions[1]


def test_debian_s_folder_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder)
    assert FashionMnistSource(FashionMnistConfig()).labels.tolist() == LABELS["train"].tolist()
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", folder / "nowhere")
    with pytest.raises(UserError, match=r"nowhere is not there.* apt install .*give `path`.*origin: hub"):
        FashionMnistSource(FashionMnistConfig())


@pytest.mark.parametrize("changes", [{"origin": "folder"}, {"origin": "hub", "path": "a"}, {"origin": "mlxtend"}])
def test_contradictory_settings_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"no other origin takes one|'debian', 'folder' or 'hub'"):
        FashionMnistConfig.model_validate(changes)


def test_the_table_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `datasets` takes a folder of this name in place of the hub's repository.
    repository = tmp_path / "zalando-datasets" / "fashion_mnist"
    repository.mkdir(parents=True)
    table = {"image": [Image.fromarray(x) for x in PICTURES["train"]], "label": LABELS["train"].tolist()}
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    datasets.Dataset.from_dict(table, features=columns).to_parquet(repository / "train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = FashionMnistSource(FashionMnistConfig(origin="hub"))
    np.testing.assert_array_equal(source.images[:, 0], PICTURES["train"])
    assert source.labels.tolist() == table["label"]


def test_a_bare_folder_is_told_by_its_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guess(str(folder)) == MnistConfig(path=folder, captions=True)
    assert f"{folder} is read as digits" in capsys.readouterr().err
    known = hashlib.sha256(LABELS["train"].tobytes()).hexdigest()[:16]
    monkeypatch.setattr("ldm.data.guess._GARMENT_LABELS", (known,))
    assert guess(str(folder)) == FashionMnistConfig(path=folder, captions=True)
    assert not capsys.readouterr().err
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr("ldm.data.guess._DIGIT_LABELS", (hashlib.sha256(LABELS["t10k"].tobytes()).hexdigest()[:16],))
    assert guess(str(folder)) == MnistConfig(path=folder, split="test", captions=True)
    assert not capsys.readouterr().err


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_garments(split: str) -> None:
    source = open_source(FashionMnistConfig(split=split))
    assert isinstance(source, FashionMnistSource)
    assert source.labels.bincount().tolist() == [len(source) // 10] * 10
    assert guess(str(DEBIAN_FOLDER)) == FashionMnistConfig(path=DEBIAN_FOLDER, captions=True)
