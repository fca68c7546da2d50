"""WebDataset tars at random access: the samples of the stream, wherever they are, and all that needs that."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import Ranged, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tar_shards import colour_of, members_of, picture, write_shards, write_tar
from test_cache import latent_run
from test_webdataset import BAD
from tiny_runs import command, config_file, differences, log_of, trained
from torch.utils.data import DataLoader

from ldm.data import shards, size_index, tar_lists, tars
from ldm.data.example import BadExample, Example
from ldm.data.framing import FrameConfig
from ldm.data.indexed_tars import IndexedTarSource
from ldm.data.samples import TrainingSamples, collate
from ldm.data.sources import open_source
from ldm.data.split import hold_out, thin_out
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ldm"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that were listed, in any order."""
    found: list[str] = []
    make = tar_lists._list
    monkeypatch.setattr(tar_lists, "_list", lambda tar, how: found.append(Path(tar.place).name) or make(tar, how))
    return found


def opened(path: Path | str, **changes: Any) -> IndexedTarSource:
    found = open_source(WebDatasetConfig(path=str(path), indexed=True, **changes))
    assert isinstance(found, IndexedTarSource)
    return found


def told(read: Callable[[], Example]) -> Example | str:
    """An example, or why it cannot be used."""
    try:
        return read()
    except BadExample as error:
        return f"{error.key}: {error}"


def all_of(found: IndexedTarSource) -> list[tuple[str, Example | str]]:
    return [(found.key(i), told(lambda i=i: found.read(i))) for i in range(len(found))]


def streamed(path: Path | str, **changes: Any) -> list[tuple[str, Example | str]]:
    return [(key, told(read)) for key, read in WebDatasetSource(WebDatasetConfig(path=str(path), **changes)).scan()]


def plain(found: list[tuple[str, Example | str]]) -> list[tuple[object, ...]]:
    """What two readings are compared by, to the bit."""
    return [
        (key, one)
        if isinstance(one, str)
        else (key, one.key, one.label, one.captions, one.original, one.image.tolist())
        for key, one in found
    ]


# ------------------------------------------------------------------------------------ the samples of the stream


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_samples_are_those_of_the_stream_whatever_is_in_the_tars(tmp_path_factory, seed):
    folder, chance = tmp_path_factory.mktemp("tars"), random.Random(seed)
    for tar in range(3):
        samples = []
        for n in range(chance.randrange(8)):
            files = dict(
                chance.choice([members_of(n, picture(n, (chance.randrange(1, 40), 9))), BAD[chance.choice([*BAD])][0]])
            )
            samples.append(
                (f"{chance.choice(['', 'sub/', './'])}{n:03}", dict(chance.sample([*files.items()], len(files))))
            )
        samples.append(("last", members_of(99)))
        path = write_tar(folder / f"{tar}.tar", samples)
        if chance.random() < 0.5:
            held = bytearray(path.read_bytes())
            if chance.random() < 0.5:
                del held[chance.randrange(len(held)) :]
            else:
                held[chance.randrange(len(held))] ^= 1 << chance.randrange(8)
            path.write_bytes(held)
    if isinstance(expected := told_or_refused(lambda: plain(streamed(folder))), str):
        assert told_or_refused(lambda: plain(all_of(opened(folder)))) == expected
        return
    found = opened(folder)
    assert plain(all_of(found)) == expected
    assert plain(all_of(opened(folder))) == expected  # from the lists that were kept
    for i, (_, one) in enumerate(all_of(found)):
        if isinstance(one, Example):
            assert found.sized[i]
            assert found.sizes is not None
            assert tuple(found.sizes[i].tolist()) == one.original


def told_or_refused(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        return str(error)


def test_samples_are_those_that_tarfile_reads(tmp_path):
    long = "x" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / f"{form}.tar", "w", format=form) as tar:
            for n, name in enumerate(["./sub/a", f"./{long}/b", "c"]):
                for ending, content in {
                    "txt": b"words %d" % n,
                    "PNG": picture(n, (n + 1, 5)),
                    "cls": b"%d" % n,
                }.items():
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    found = opened(tmp_path, label_key="cls", classes=3)
    assert (len(found), found.num_classes, found.captioned, found.stream) == (6, 3, True, False)
    expected = {}
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            held = {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
        for name in held:
            if name.endswith(".PNG"):
                image = Image.open(io.BytesIO(held[name]))
                expected[f"{path.name}/{name[:-4]}.png"] = (
                    [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)],
                    held[f"{name[:-4]}.txt"].decode(),
                    int(held[f"{name[:-4]}.cls"]),
                )
    for i in range(6):
        example = found.read(i)
        pixels = [[tuple(pixel) for pixel in line] for line in example.image.permute(1, 2, 0).tolist()]
        assert (pixels, *example.captions, example.label) == expected.pop(found.key(i))
        assert found.words(i) == (example.label, example.captions)
    assert not expected


def test_what_follows_a_damage_is_one_bad_sample(tmp_path):
    """Even where img2dataset's numbers say how many were lost: nobody reads those."""
    paths = write_shards(tmp_path, [5, 6, 4])
    whole = paths[1].read_bytes()
    start = whole.index(b"000000008.json")
    paths[1].write_bytes(whole[: start + 130] + b"?" + whole[start + 131 :])
    found = dict(all_of(opened(tmp_path)))
    assert len(found) == 5 + 3 + 1 + 4
    bad = found.pop("00001.tar/#4")
    assert isinstance(bad, str)
    assert f"{paths[1]} is damaged behind its first 3 samples: " in bad
    assert all(isinstance(one, Example) for one in found.values())


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
    ("size", "told"),
    [
        (b"-0000001000\0", "is damaged behind its first 3 samples"),  # tarfile would go backwards for ever
        (b"\xff" * 10 + b"\0\0", "is damaged behind its first 3 samples"),
        (b"\x80\x7f" + b"\xff" * 10, "is damaged behind its first 3 samples"),
        (b"\x80" + b"\0" * 5 + b"\x01" + b"\0" * 5, "is cut off in the middle of 000000002.png"),  # a tebibyte
    ],
)
def test_sizes_that_no_file_has(size, told, indexed, tmp_path):
    (path,) = write_shards(tmp_path, [4], statistics=False)
    held = bytearray(path.read_bytes())
    header = held.index(b"000000002.png")
    held[header + 124 : header + 136] = size
    held[header + 148 : header + 156] = b" " * 8
    held[header + 148 : header + 156] = b"%06o\0 " % sum(held[header : header + 512])
    path.write_bytes(held)
    found = [one for _, one in (all_of(opened(tmp_path)) if indexed else streamed(tmp_path))]
    assert [isinstance(one, Example) for one in found[:2]] == [True, True]
    assert all(isinstance(one, str) for one in found[2:])
    assert any(told in str(one) for one in found[2:])


def test_messages_name_the_tar_as_the_settings_do(tmp_path, listed):
    """A list is of the tar, by whatever path and beside whatever others it was made."""
    write_tar(tmp_path / "0.tar", [("a", members_of(1)), ("b", {"png": picture(2), "txt": b" "})])
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes().rstrip(b"\0"))
    assert dict(plain(all_of(opened(tmp_path / "0.tar")))[1:])["0.tar/b.png"] == "0.tar/b.png: 0.tar/b.txt is empty"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "other.tar").symlink_to(tmp_path / "0.tar")
    write_shards(tmp_path / "more", [2])
    again = opened("{" + f"{tmp_path}/linked,{tmp_path}/more" + "}")
    assert listed == ["0.tar", "00000.tar"]
    bad = dict(all_of(again))
    assert bad["linked/other.tar/b.png"] == "linked/other.tar/b.png: linked/other.tar/b.txt is empty"
    assert f"{tmp_path}/linked/other.tar is damaged behind its first 2 samples" in bad["linked/other.tar/#3"]


def test_pictures_are_brought_to_one_kind_and_their_sizes_are_upright(tmp_path):
    clear, turned = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (4, 6), (0, 0, 0, 0)).save(clear, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(turned, "JPEG", exif=exif)
    broken = {"png": clear.getvalue()[:30]}
    samples = [("a", {"png": clear.getvalue()}), ("b", {"jpg": turned.getvalue()}), ("c", broken), ("d", {"txt": b""})]
    write_tar(tmp_path / "0.tar", samples)
    found = opened(tmp_path, caption_key=None, background=(10, 20, 30))
    assert not found.captioned
    assert found.sizes is not None
    assert found.sizes[:2].tolist() == [[6, 4], [400, 200]]
    assert found.sized.tolist() == [True, True, False, False]
    assert found.sizes[2].tolist() in found.sizes[:2].tolist()
    assert found.read(0).image[:, 0, 0].tolist() == [10, 20, 30]
    assert tuple(found.read(1, (100, 50)).image.shape) == (3, 100, 50)
    assert opened(tmp_path, caption_key=None, colours="grey").read(0).image.shape[0] == 1
    with pytest.raises(BadExample, match=r"0\.tar/d has no picture"):  # also where only the picture is asked for
        found.picture(3)
    stamps = {opened(tmp_path, caption_key=None, background=(n, 0, 0)).stamp(0) for n in range(2)}
    assert len(stamps) == 2


# ----------------------------------------------------------------------------------- what random access is for


def noise(height: int, width: int, seed: int = 0) -> bytes:
    draws = torch.Generator().manual_seed(seed)
    file = io.BytesIO()
    Image.fromarray(torch.randint(256, (height, width), generator=draws, dtype=torch.uint8).numpy()).save(file, "PNG")
    return file.getvalue()


def varied(folder: Path, count: int = 24, tars: int = 3) -> Path:
    """Pictures of noise in several shapes."""
    folder.mkdir()
    each = count // tars
    for tar in range(tars):
        samples = []
        for n in range(tar * each, tar * each + each):
            height, width = [(40, 40), (32, 64), (64, 32)][n % 3]
            samples.append((f"{n:09}", members_of(n, noise(height, width, n))))
        write_tar(folder / f"{tar:05}.tar", samples)
    return folder


def test_buckets_shuffling_and_workers(tmp_path):
    source = opened(varied(tmp_path / "data"), colours="grey")
    samples = TrainingSamples(source, 5, frame=FrameConfig(resolution=32, step=8))
    samples.begin(4)
    assert len(samples.plan.shapes) > 2
    loader = DataLoader(
        pickle.loads(pickle.dumps(samples)),
        batch_sampler=[list(range(n, n + 4)) for n in range(0, 24, 4)],
        collate_fn=collate,
        num_workers=2,
    )
    source.read(0)  # opens a tar in this process, too
    seen = []
    for step, batch in enumerate(loader):
        assert torch.equal(batch.images, collate(samples.__getitems__(list(range(4 * step, 4 * step + 4)))).images)
        seen += batch.keys
    assert len(seen) == 24
    assert len({key.split("/")[0] for key in seen[:4]}) > 1  # not tar by tar


def read_many(found: IndexedTarSource, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(500):
        number = chance.randrange(len(found))
        example = found.read(number)
        assert example.captions == (f"caption {number}",)
        assert tuple(example.image[:, 0, 0].tolist()) == colour_of(number)
    os._exit(0)


def test_forks_do_not_move_each_others_places(tmp_path):
    write_shards(tmp_path, [60])
    found = opened(tmp_path)
    found.read(0)  # the tar is open when they fork
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=read_many, args=(found, seed)) for seed in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_parts_are_held_out_and_thinned(tmp_path):
    write_shards(tmp_path, [9, 9])
    kept, held = hold_out(opened(tmp_path), 5, seed=1)
    keys = [{part.key(i) for i in range(len(part))} for part in (kept, held)]
    assert (len(keys[0]), len(keys[1]), len(keys[0] | keys[1])) == (13, 5, 18)
    assert len(thin_out(opened(tmp_path), 3)) == 3


def tar_run(whole: dict[str, Path], folder: Path, **changes: Any) -> dict[str, Any]:
    """Changes of the tiny latent run."""
    data = {"source": "webdataset", "path": str(folder), "indexed": True, "colours": "grey", **changes}
    frame = {"resolution": 32, "step": 8}
    validation = {"count": 4, "times": 1, "every": 2}
    return {**latent_run(whole), "data": data, "frame": frame, "validation": validation}


def test_a_run_on_tars_with_a_cache_is_the_run_without_to_the_bit(tmp_path, whole):
    changes = tar_run(whole, varied(tmp_path / "data"))
    bare = trained("latent", tmp_path / "bare", **changes)
    cached = trained("latent", tmp_path / "cached", cache__dtype="fp32", **changes)
    assert log_of(tmp_path / "bare") == log_of(tmp_path / "cached")
    assert any("validation" in str(record) for record in log_of(tmp_path / "bare"))
    assert not differences(bare, cached)
    assert (tmp_path / "cached" / "cache" / "cache.json").is_file()


def test_the_commands_check_and_cache_tars(tmp_path, whole, capsys):
    folder = varied(tmp_path / "data")
    write_tar(folder / "00003.tar", [("a", {"png": picture(1, (40, 40)), "txt": b""}), ("b", {"txt": b"words"})])
    changes = tar_run(whole, folder)
    place = config_file("latent", tmp_path / "run.yaml", tmp_path / "run", cache__dtype="fp32", **changes)
    skip = tmp_path / "skip.txt"
    assert command("data", "check", str(place), "--workers", "0", "--quarantine", str(skip)) == 1
    keys = [line for line in skip.read_text().splitlines() if not line.startswith("#")]
    assert sorted(keys) == ["00003.tar/a.png", "00003.tar/b"]
    assert "00003.tar/a.txt is empty" in skip.read_text()
    assert command("data", "cache", str(place)) == 2
    skipped = f"data.skip={skip}"
    assert command("data", "check", str(place), skipped, "--workers", "0") == 0
    assert command("data", "cache", str(place), skipped) == 0
    capsys.readouterr()
    # one tar changes: its pictures are made again, and no others
    write_tar(folder / "00001.tar", [("new", members_of(7, picture(7, (40, 40))))])
    assert command("data", "cache", str(place), skipped) == 0
    assert "1 picture was added" in capsys.readouterr().out


def test_a_list_of_what_to_leave_out_holds_for_both_ways(tmp_path):
    write_shards(tmp_path / "data", [6, 6])
    gone = {"00000.tar/000000002.png", "00001.tar/000000007.png"}
    skip = tmp_path / "skip.txt"
    skip.write_text("\n".join(gone))
    keys = {key for key, _ in all_of(opened(tmp_path / "data"))}
    left = {key for key, _ in all_of(opened(tmp_path / "data", skip=skip))}
    assert left == {key for key, _ in streamed(tmp_path / "data", skip=skip)} == keys - gone
    # what the check of a stream has for samples that a damage took, with img2dataset's numbers
    skip.write_text("00001.tar/#12\n00001.tar/#11\n")
    assert len(opened(tmp_path / "data", skip=skip)) == len(list(streamed(tmp_path / "data", skip=skip))) == 12
    skip.write_text("other/00000.tar/000000001.png\n")
    with pytest.raises(UserError, match="is of a shard of webdataset"):
        opened(tmp_path / "data", skip=skip)


# --------------------------------------------------------------------------------------- lists that are kept


def test_a_tar_is_listed_again_when_it_changes(tmp_path, cache, listed):
    folder = tmp_path / "data"
    write_shards(folder, [3, 4, 5])
    before = opened(folder)
    stamps = {before.key(i): before.stamp(i) for i in range(12)}
    assert opened(folder).stamp(11) == stamps[before.key(11)]
    assert sorted(listed) == ["00000.tar", "00001.tar", "00002.tar"]
    listed.clear()
    write_tar(folder / "00001.tar", [(f"{n:09}", members_of(n)) for n in (3, 5, 4)])
    after = opened(folder)
    assert listed == ["00001.tar"]
    changed = {
        key
        for key, stamp in stamps.items()
        if key in dict(all_of(after)) and stamp not in [after.stamp(i) for i in range(len(after))]
    }
    assert changed == {f"00001.tar/{n:09}.png" for n in (3, 4, 5)}
    assert {tuple(after.read(i).image[:, 0, 0].tolist()) for i in range(3, 6)} == {colour_of(n) for n in (3, 4, 5)}
    listed.clear()
    opened(folder, caption_key="json:caption")
    assert len(listed) == 3  # words lie elsewhere


def test_a_tar_that_is_cut_off_while_it_is_open_is_told(tmp_path):
    (path,) = write_shards(tmp_path, [5])
    found = opened(tmp_path)
    os.truncate(path, path.read_bytes().index(b"000000003.png") + 520)
    assert found.read(2).captions == ("caption 2",)
    with pytest.raises(BadExample, match=r"00000\.tar ends in the middle of 00000\.tar/000000003\.png"):
        found.read(3)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_damaged_lists_are_made_again(tmp_path, cache, listed, how):
    write_shards(tmp_path / "data", [5])
    expected = plain(all_of(opened(tmp_path / "data")))
    (kept,) = (cache / "shards").glob("*.list")
    held = bytearray(kept.read_bytes())
    chance = random.Random(0)
    for _ in range(10):
        listed.clear()
        flipped = bytearray(held)
        flipped[chance.randrange(len(held))] ^= 1 << chance.randrange(8)
        kept.write_bytes({"cut": held[: chance.randrange(len(held))], "flipped": flipped, "empty": b""}[how])
        assert plain(all_of(opened(tmp_path / "data"))) == expected
        assert listed == ["00000.tar"]


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, listed):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_shards(tmp_path / "data", [5], statistics=False)
    assert [len(opened(tmp_path / "data")) for _ in range(2)] == [5, 5]
    assert len(listed) == 2
    assert len(WebDatasetSource(WebDatasetConfig(path=str(tmp_path / "data")))) == 5


def open_and_note(config: WebDatasetConfig, note: Path, start: Any) -> None:
    """In a process of its own: open tars, and write down what was gone through."""

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            with note.open("a") as file:
                file.write("once\n")
            time.sleep(0.2)
            return function(*arguments)

        return noted

    tar_lists._list, tars._count = noting(tar_lists._list), noting(tars._count)
    start.wait()
    assert len(open_source(config)) == 6
    os._exit(0)


@pytest.mark.parametrize("indexed", [True, False], ids=["listed", "counted"])
def test_several_processes_go_through_a_tar_once(tmp_path, cache, indexed):
    write_shards(tmp_path / "data", [2, 2, 2], statistics=False)
    config = WebDatasetConfig(path=str(tmp_path / "data"), indexed=indexed)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    arguments = (config, tmp_path / "note", start)
    readers = [context.Process(target=open_and_note, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert (tmp_path / "note").read_text().splitlines() == ["once"] * 3


def read_and_note(name: str, note: Path, start: Any) -> None:
    def size(number: int) -> tuple[int, int]:
        with note.open("a") as file:
            file.write("once\n")
        return number + 1, 1

    size_index._WORTH_KEEPING = 1
    start.wait()
    sizes, _ = size_index.read_sizes(name, [b"%d" % n for n in range(20)], size)
    assert sizes[:, 0].tolist() == list(range(1, 21))
    os._exit(0)


def test_several_processes_read_sizes_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    readers = [context.Process(target=read_and_note, args=("set", tmp_path / "note", start)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert (tmp_path / "note").read_text().splitlines() == ["once"] * 20


# ------------------------------------------------------------------------------------------------ far away


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranged], Path]]:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "served"
    handler = type("Handler", (Ranged,), {"asked": [], "breaks": 0})
    folder.mkdir()
    with serving(folder, handler) as url:
        yield url, handler, folder


def test_a_server_gives_the_samples_of_the_disk(server, monkeypatch):
    url, handler, folder = server
    monkeypatch.setattr(shards, "_WAITS", (0, 0, 0))
    image = noise(90, 60)
    write_shards(folder, [6, 5], image=image)
    handler.breaks = 2
    there = opened(f"{url}/{{00000..00001}}.tar")
    assert plain(all_of(there)) == plain(all_of(opened(folder)))
    assert handler.breaks == 0
    handler.asked.clear()
    opened(f"{url}/{{00000..00001}}.tar").read(3)
    spans = [[int(end) for end in span.removeprefix("bytes=").split("-")] for _, span in handler.asked[-1:]]
    assert spans[0][1] - spans[0][0] + 1 == len(image)  # the picture, and nothing beside it
    handler.breaks = 10**6
    with pytest.raises(UserError, match=r"00000\.tar cannot be read") as raised:
        there.read(2)
    assert not isinstance(raised.value, BadExample)


def test_a_network_that_fails_while_tars_are_listed_is_no_fault_of_a_picture(tmp_path):
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise UserError("the line is dead")

    member = tarfile.TarInfo("0.png")
    member.size = 5000
    with pytest.raises(UserError, match="the line is dead") as raised:
        tar_lists._look(Lost(), member)
    assert not isinstance(raised.value, BadExample)
    assert tar_lists._look(io.BytesIO(b"no picture"), member) == (0, 5000, 0, 0)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("name", "value"), [("shuffle", 9), ("processes", 2), ("workers", 1)])
def test_settings_of_streams_do_nothing(name, value):
    with pytest.raises(UserError, match=rf"{name} does nothing while indexed is true"):
        WebDatasetConfig.checked({"path": "x", "indexed": True, name: value})
    assert WebDatasetConfig.checked(WebDatasetConfig(path="x", indexed=True).model_dump())


def test_tars_without_samples_are_refused(tmp_path):
    write_shards(tmp_path, [0, 0])
    with pytest.raises(UserError, match=r"webdataset .* has no samples"):
        opened(tmp_path)


NEEDS = {
    "cache": ({"cache": {}}, r"cache finds pictures again"),
    "validation": ({"validation": {"count": 2}}, r"validation\.count holds pictures out"),
    "limit": ({"limit": 3}, r"limit takes a part"),
    "buckets": ({"frame": {"resolution": 32, "step": 8}}, r"frame\.buckets sorts pictures"),
    "memorised": ({"memorised": {}}, r"memorised looks through"),
}


@pytest.mark.parametrize("case", NEEDS)
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "mixed"])
def test_a_stream_says_how_it_can_be_had_at_random_access(tmp_path, whole, case, mixed):
    changes, message = NEEDS[case]
    write_shards(tmp_path / "data", [8], image=picture(1, (32, 32)))
    data: dict[str, Any] = {"source": "webdataset", "path": str(tmp_path / "data"), "colours": "grey"}
    if mixed:
        data = {"source": "mix", "sources": [{"data": {**data, "indexed": True}}, {"data": data}]}
    frame = {"resolution": 32, "step": 8, "buckets": False}
    with pytest.raises(UserError, match=rf"{message}.*webdataset .* is a stream.*: set `indexed: true` beside"):
        trained("latent", tmp_path / "run", **{**latent_run(whole), "frame": frame, "data": data, **changes})
