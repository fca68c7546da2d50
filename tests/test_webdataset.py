"""WebDataset tars: what is in them, how many they are, where they may be, and what is said of what is wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tar_shards import members_of, picture, write_shards, write_tar

from ldm.data import tars
from ldm.data.example import BadExample
from ldm.data.shards import expand_braces, find_shards, short_names
from ldm.data.tar_members import Member
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ldm" / "shards"


def opened(path: Path | str, **changes) -> WebDatasetSource:
    return WebDatasetSource(WebDatasetConfig(path=str(path), **changes))


def scanned(path: Path | str, **changes) -> dict:
    """By key, the example, or why it cannot be used."""

    def read(one):
        try:
            return one()
        except BadExample as error:
            return str(error)

    return {key: read(one) for key, one in opened(path, **changes).scan()}


# ----------------------------------------------------------- what is in a tar


def test_samples_are_those_that_datasets_reads(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_shards(tmp_path, [9, 4])
    files = sorted(map(str, tmp_path.glob("*.tar")))
    theirs = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    ours = scanned(tmp_path, label_key="json:label", classes=7)
    assert len(ours) == len(theirs) == 13
    for (key, example), row in zip(ours.items(), theirs, strict=True):
        assert key == f"{Path(row['__url__']).name}/{row['__key__']}.png"
        assert example.captions == (row["txt"],) == (row["json"]["caption"],)
        assert example.label == row["json"]["label"]
        assert example.image.permute(1, 2, 0).tolist() == [[list(p) for p in line] for line in pixels(row["png"])]
        assert example.original == (8, 8)


def pixels(image: Image.Image) -> list[list[tuple[int, int, int]]]:
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]  # type: ignore[misc]


def test_pictures_are_brought_to_one_kind(tmp_path):
    clear = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(turned, "JPEG", exif=exif)
    write_tar(tmp_path / "0.tar", [("a", {"png": clear.getvalue(), "txt": b"a"}), ("b", {"jpg": turned.getvalue()})])
    found = opened(tmp_path, caption_key=None, background=(10, 20, 30))
    first, second = (one() for _, one in found.scan())
    assert first.image[:, 0, 0].tolist() == [10, 20, 30]
    assert first.captions == ()
    assert not found.captioned
    assert second.original == tuple(second.image.shape[1:]) == (400, 200)
    found.arrange(1, 0)
    assert {tuple(found.read(k, (100, 50)).image.shape[1:]) for k in range(2)} == {(4, 4), (100, 50)}
    grey = opened(tmp_path, caption_key=None, colours="grey")
    assert grey.channels == 1
    assert {one().image.shape[0] for _, one in grey.scan()} == {1}


def test_words_come_from_where_the_settings_say(tmp_path):
    words = {"caption": "from json", "more": ["one", "two"], "kind": "cat"}
    write_tar(
        tmp_path / "0.tar", [("a", {"png": picture(1), "txt": b" from txt\n", "json": json.dumps(words).encode()})]
    )
    [(_, both)] = scanned(
        tmp_path, caption_key=("txt", "json:more"), label_key="json:kind", classes=("dog", "cat")
    ).items()
    assert both.captions == ("from txt", "one", "two")
    assert both.label == 1
    [(_, alone)] = scanned(tmp_path, caption_key="json:caption").items()
    assert (alone.captions, alone.label) == (("from json",), None)


BAD = {
    "no picture": ({"txt": b"a"}, "has no picture: no .jpg or .jpeg or .png or .webp file"),
    "no caption": ({"png": picture(1)}, ".txt is missing"),
    "empty caption": ({"png": picture(1), "txt": b" \n"}, ".txt is empty"),
    "caption of bytes": ({"png": picture(1), "txt": b"\xff\xfe"}, ".txt is not valid UTF-8"),
    "no picture in it": ({"png": b"nothing", "txt": b"a"}, "is no picture, or its beginning is damaged"),
    "two of one name": ({"png": picture(1), "PNG": picture(2), "txt": b"a"}, "has several .png files"),
    "cut off picture": ({"png": picture(1, (64, 64))[:-60], "txt": b"a"}, "cut off"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sample_is_named_and_the_others_are_read(tmp_path, case):
    files, message = BAD[case]
    write_tar(tmp_path / "0.tar", [("a", members_of(1)), ("b", files), ("c", members_of(2))])
    (_, first), (key, bad), (_, last) = scanned(tmp_path).items()
    assert (first.captions, last.captions) == (("caption 1",), ("caption 2",))
    assert key == ("0.tar/b" if case == "no picture" else "0.tar/b.png")
    assert message in bad
    assert "0.tar/b" in bad


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "0.tar/b.json holds no keys and values in JSON"),
        (b"[1]", "0.tar/b.json holds no keys and values in JSON"),
        (b'{"caption": null, "label": 1}', "caption in 0.tar/b.json is missing"),
        (b'{"caption": 7, "label": 1}', "caption in 0.tar/b.json is no text: 7"),
        (b'{"caption": "a", "label": 5}', "label in 0.tar/b.json is 5, and should be one of 0, 1, 2"),
        (b'{"caption": "a"}', "label in 0.tar/b.json is missing"),
    ],
)
def test_bad_metadata_is_named(tmp_path, document, message):
    samples = [("a", members_of(1)), ("b", {"json": document, "png": picture(1)})]
    write_tar(tmp_path / "0.tar", samples)
    (_, first), (_, bad) = scanned(tmp_path, caption_key="json:caption", label_key="json:label", classes=3).items()
    assert first.label == 1
    assert bad == message


def test_tars_of_other_programs(tmp_path):
    """Long names in both ways, folders, links, hidden files of macOS, files without a sample."""
    long = "x" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / f"{form}.tar", "w", format=form) as tar:
            names = ["./._a.png", "./README", "./sub/a.png", "./sub/a.txt", f"./{long}/b.png", f"./{long}/b.txt"]
            folder = tarfile.TarInfo("./sub")
            folder.type = tarfile.DIRTYPE
            link = tarfile.TarInfo("./sub/a.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            for member in (folder, link):
                tar.addfile(member)
            for name in names:
                content = picture(5) if name.endswith(".png") else b"words"
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    found = scanned(tmp_path)
    assert list(found) == [f"{form}.tar/./{name}.png" for form in (1, 2) for name in ("sub/a", f"{long}/b")]
    assert all(example.captions == ("words",) for example in found.values())


def test_a_member_is_read_as_tarfile_reads_it():
    """The short way through a header, beside the long one, on headers of all kinds and with every byte changed."""
    plain, huge = tarfile.TarInfo("sub/000012.jpg"), tarfile.TarInfo("big.jpg")
    plain.size, plain.mtime, plain.uname, huge.size = 123456, 1_700_000_000, "somebody", 2**40
    headers = [plain.tobuf(tarfile.USTAR_FORMAT), plain.tobuf(tarfile.GNU_FORMAT), huge.tobuf(tarfile.GNU_FORMAT)]
    kinds = [header[:at] + bytes([header[at] ^ 1]) + header[at + 1 :] for header in headers for at in range(512)]
    for buffer in (*headers, *kinds, bytes(512), b"", headers[0][:100]):
        assert outcome(Member, buffer) == outcome(tarfile.TarInfo, buffer)


def outcome(kind: type[tarfile.TarInfo], buffer: bytes) -> object:
    try:
        found = kind.frombuf(buffer, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        return type(error)
    return found.name, found.size, found.type, found.isreg()


# ---------------------------------------------------------- how many there are


def test_counts_are_those_beside_the_tars_or_counted_once(tmp_path, cache, monkeypatch):
    counted = []
    count = tars._count
    monkeypatch.setattr(tars, "_count", lambda place: counted.append(Path(place).name) or count(place))
    folder = tmp_path / "data"
    write_shards(folder, [5, 8, 3])
    assert len(opened(folder)) == 16
    assert counted == []
    (folder / "00001_stats.json").unlink()
    assert len(opened(folder)) == 16
    assert len(opened(folder)) == 16
    assert counted == ["00001.tar"]
    write_tar(folder / "00001.tar", [(f"{n}", members_of(n)) for n in range(2)])
    assert len(opened(folder)) == 10
    assert counted == ["00001.tar"] * 2
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert len(opened(folder)) == 10
    assert counted == ["00001.tar"] * 3


def test_a_number_that_does_not_fit_is_told(tmp_path):
    write_shards(tmp_path, [5, 5])
    beside = tmp_path / "00000_stats.json"
    beside.write_text('{"successes": 4}')
    with pytest.raises(UserError, match=r"00000.tar has more samples than 4, .*00000_stats.json.*: delete that file"):
        scanned(tmp_path)
    beside.write_text('{"successes": 7}')
    found = scanned(tmp_path)
    assert sum(isinstance(one, str) for one in found.values()) == 2
    assert found["00000.tar/#6"].endswith("00000.tar ends after 5 of 7 samples")
    beside.write_text('{"successes": "many"}')
    with pytest.raises(UserError, match=r"00000_stats.json has no number of `successes`"):
        opened(tmp_path)


# ------------------------------------------------------------ where they may be


def test_places(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_shards(a, [2, 2, 2])
    write_shards(b, [2])
    names = lambda *paths: [str(Path(one).relative_to(tmp_path)) for one in find_shards([*map(str, paths)], ".tar")]  # noqa: E731
    assert names(a) == ["a/00000.tar", "a/00001.tar", "a/00002.tar"]
    assert names(a / "0000{1..2}.tar", b) == ["a/00001.tar", "a/00002.tar", "b/00000.tar"]
    assert names(tmp_path / "{b,a}" / "*0.tar") == ["b/00000.tar", "a/00000.tar"]
    assert names(tmp_path / "**" / "*.tar")[-1] == "b/00000.tar"
    assert expand_braces("s3://x/{08..11}.tar") == [f"s3://x/{i:02}.tar" for i in (8, 9, 10, 11)]
    assert short_names(["/x/a/0.tar", "/x/b/0.tar"]) == ["a/0.tar", "b/0.tar"]
    assert short_names(["/x/a/0.tar"]) == ["0.tar"]
    assert find_shards("https://x/0.tar?download=true", ".tar") == ["https://x/0.tar?download=true"]
    keys = [key for key, _ in WebDatasetSource(WebDatasetConfig(path=(str(a), str(b)))).scan()]
    assert len(set(keys)) == len(keys) == 8


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("none", {}, "there is no file .*none"),
        ("data/{0..2}.tar", {}, "there is no file .*data/0.tar"),
        ("empty", {}, "empty holds no .tar files"),
        (
            "data",
            {"extensions": ("bmp",)},
            "extensions: the first samples of .* have no .bmp files, but .json, .png",
        ),
        ("data", {"caption_key": "caption"}, "caption: the first samples of .* have no .caption files, but .json"),
        ("data", {"caption_key": "json:text"}, "json:text: the .json files of .* have no 'text', but caption, height"),
    ],
)
def test_wrong_settings_are_told_at_once(tmp_path, path, changes, message):
    write_shards(tmp_path / "data", [3])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message.replace("caption, height", "caption")):
        opened(tmp_path / path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_key": "cls"}, "label_key and classes go together"),
        ({"path": ()}, "path should name at least one"),
        ({"shuffle": 0}, "greater than or equal to 1"),
        ({"classes": 0, "label_key": "cls"}, "greater than or equal to 1"),
        ({"caption": "txt"}, "unknown key"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        WebDatasetConfig.checked({"path": "x", **changes})


def test_braces_that_fall_name_no_file():
    with pytest.raises(UserError, match=r"x\{10\.\.2\}\.tar names no file"):
        find_shards("x{10..2}.tar", ".tar")


def test_json_of_endless_depth_is_a_bad_sample(tmp_path):
    deep = {**members_of(1), "json": b"[" * 200_000}
    write_tar(tmp_path / "a.tar", [("0", members_of(0)), ("1", deep), ("2", members_of(2))])
    first, bad, last = scanned(tmp_path, caption_key="json:caption").values()
    assert (first.captions, last.captions) == (("caption 0",), ("caption 2",))
    assert bad == "a.tar/1.json holds no keys and values in JSON"


def test_counts_that_were_damaged_are_taken_again(tmp_path, cache):
    write_shards(tmp_path / "data", [23], statistics=False)
    assert len(opened(tmp_path / "data")) == 23
    (held,) = cache.glob("*.json")
    held.write_bytes(held.read_bytes().replace(b"23]", b"13]"))
    assert len(opened(tmp_path / "data")) == 23
