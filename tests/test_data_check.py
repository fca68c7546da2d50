"""``ldm data check``: every damage is found and named, nothing else is, and no damage ends the check."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examined
from hypothesis import strategies as st
from picture_folders import (
    caption,
    caption_folder,
    class_folder,
    kohya_folder,
    metadata_folder,
    parquet_file,
    picture,
    put,
)
from PIL import Image, ImageEnhance
from tar_shards import members_of, write_tar
from typer.testing import CliRunner

from ldm.check_command import Asked, _skips, check_source
from ldm.data.check.duplicates import near_groups
from ldm.data.check.fingerprint import look_at
from ldm.data.check.kinds import KINDS
from ldm.data.check.lists import quarantine
from ldm.data.check.report import Report, Wishes, check_parts
from ldm.data.check.tokens import Tokens, tokenizer_at
from ldm.data.decode import to_tensor
from ldm.data.example import Example
from ldm.data.folder import FolderConfig, FolderSource
from ldm.data.framing import FrameConfig
from ldm.data.sources import MixConfig
from ldm.data.webdataset import WebDatasetConfig, WebDatasetSource
from ldm.data_cli import data_app
from ldm.errors import UserError
from ldm.weights.clip_vocabulary import clip_tokenizer
from ldm.weights.opening import Loading


def by_letters(caption: str) -> int:
    return len(caption)


def checked(folder: Path, **wishes: object) -> Report:
    return check_parts([FolderSource(FolderConfig(path=folder))], Wishes(**{**PLAIN, **wishes}))  # pyright: ignore


PLAIN = {"count_tokens": by_letters, "window": 75}


def found(report: Report) -> dict[str, set[str]]:
    """The keys of the problems of each kind."""
    return {kind: {problem.key for problem in problems} for kind, problems in report.problems.items()}


# ------------------------------------------------------------------------------------------ damages


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def noise(path: Path) -> None:
    path.write_bytes(random.Random(path.name).randbytes(300))


def frames(path: Path) -> None:
    picture(1).save(path, "GIF", save_all=True, append_images=[picture(2, (48, 48))])


def bomb(path: Path) -> None:
    """A PNG that says it has 60,000 x 60,000 pixels."""
    held = io.BytesIO()
    Image.new("L", (1, 1)).save(held, "PNG")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    path.write_bytes(held.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + held.getvalue()[33:])


def caption_of(path: Path) -> Path:
    return path.with_suffix(".txt")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": cut_off,
    "unreadable": noise,
    "animated": frames,
    "bomb": bomb,
    "small": lambda path: picture(99, (16, 16)).save(path),
    "uncaptioned": lambda path: caption_of(path).unlink(),
    "empty": lambda path: caption_of(path).write_text(" \n\t"),
    "encoding": lambda path: caption_of(path).write_bytes(b"caf\xe9 au lait"),
    "words": lambda path: caption_of(path).write_bytes(b"zero\0bytes"),
    "blank": lambda path: Image.new("RGB", (40, 40), "teal").save(path),
    "long": lambda path: caption_of(path).write_text("x" * 76),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_damage_is_named_and_nothing_else(tmp_path: Path, workers: int) -> None:
    caption_folder(tmp_path, 30)
    for number, damage in enumerate(DAMAGES.values()):
        damage(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "20.png", tmp_path / "21.png")
    (tmp_path / "22.png").unlink()
    report = checked(tmp_path, frame=FrameConfig(resolution=32, step=8), workers=workers)
    expected = {kind: {f"{number}.png"} for number, kind in enumerate(DAMAGES)}
    told = f"{tmp_path / '22.txt'} is a caption without a picture"
    assert found(report) == {**expected, "same": {"21.png"}, "orphan": {told}}
    assert report.same == [[report.same[0][0], report.same[0][0] + 1]]
    assert (len(report.names), report.errors, report.warnings) == (29, 11, 2)
    for kind, problems in report.problems.items():
        assert all(Path(problem.key).stem in problem.message for problem in problems), kind


def test_a_bad_caption_does_not_hide_a_bad_picture(tmp_path: Path) -> None:
    caption_folder(tmp_path, 6)
    for number, damages in enumerate([("empty", "truncated"), ("encoding", "bomb"), ("words", "animated")]):
        for damage in damages:
            DAMAGES[damage](tmp_path / f"{number}.png")
    DAMAGES["uncaptioned"](tmp_path / "3.png")
    report = checked(tmp_path)
    one, two, three = ({f"{number}.png"} for number in range(3))
    both = {"empty": one, "truncated": one, "encoding": two, "bomb": two, "words": three, "animated": three}
    assert found(report) == {**both, "uncaptioned": {"3.png"}}
    assert report.usable == 2
    assert quarantine(report, 0)[1::2] == [f"{number}.png" for number in (0, 1, 2, 3)]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"])
def test_a_picture_cut_off_anywhere_is_found(tmp_path: Path, ending: str) -> None:
    whole = put(tmp_path / f"whole.{ending}", 3).read_bytes()
    for part in range(1, 8):
        (tmp_path / f"{part}.{ending}").write_bytes(whole[: len(whole) * part // 8])
    report = checked(tmp_path)
    named = found(report)
    cut = {f"{part}.{ending}" for part in range(1, 8)}
    assert named.get("truncated", set()) | named.get("unreadable", set()) == cut
    # of a WebP that is cut off, Pillow says no more than of any that is damaged
    assert ending == "webp" or f"7.{ending}" in named["truncated"]


def test_rows_and_pictures_that_do_not_find_each_other(tmp_path: Path) -> None:
    metadata_folder(tmp_path, 6)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "1.png").unlink()
    lines[2] = "{not json"
    lines[3] = json.dumps({"file_name": "3.png", "text": None})
    lines[4] = json.dumps({"file_name": "4.png", "text": 7})
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    named = found(checked(tmp_path))
    assert named["missing"] == {"1.png", "3.png"}
    assert named["words"] == {"4.png"}
    assert named["row"] == {"metadata.jsonl:3"}
    assert named["orphan"] == {f"{tmp_path / '2.png'} is in no metadata file"}


def test_repeated_pictures_are_looked_at_once(tmp_path: Path) -> None:
    kohya_folder(tmp_path)
    report = checked(tmp_path)
    assert len(report.names) == 4
    assert not report.problems


def test_classes_are_counted(tmp_path: Path) -> None:
    class_folder(tmp_path, each=3)
    put(tmp_path / "owl" / "9.png", 9)
    assert checked(tmp_path).labels == {0: 3, 1: 3, 2: 1}


# ------------------------------------------------------------------------------------------ streams, tables


def shards(folder: Path, bad: bool) -> Path:
    """Two tars of 20 pictures; with damages at 3, 5 and 7, and the second tar cut off behind half of it."""
    folder.mkdir()
    samples = []
    for number in range(40):
        held = io.BytesIO()
        picture(number).save(held, "PNG")
        samples.append((f"{number:03}", members_of(number, held.getvalue())))
    if bad:
        samples[3][1]["png"] = samples[3][1]["png"][:100]
        samples[5][1]["txt"] = b"\xff"
        samples[7][1]["txt"] = b"  "
        del samples[9][1]["txt"]
        samples[11][1]["png"] = samples[10][1]["png"]
    write_tar(folder / "0.tar", samples[:20])
    write_tar(folder / "1.tar", samples[20:])
    if bad:
        cut_off(folder / "1.tar")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_shards(tmp_path: Path, workers: int) -> None:
    source = WebDatasetSource(WebDatasetConfig(path=str(shards(tmp_path / "tars", bad=True))))
    report = check_parts([source], Wishes(**PLAIN, workers=workers))  # pyright: ignore
    named = found(report)
    (lost,) = named.pop("shard")
    last = f"1.tar/{20 + report.usable - 16:03}.png"  # its caption was behind the end
    assert lost.startswith("1.tar/#")
    assert named == {
        "truncated": {"0.tar/003.png"},
        "encoding": {"0.tar/005.png"},
        "empty": {"0.tar/007.png"},
        "missing": {"0.tar/009.png", last},
        "same": {"0.tar/011.png"},
    }
    assert len(report.names) == len(source)


def test_what_a_stream_left_out_is_not_counted(tmp_path: Path) -> None:
    place = shards(tmp_path / "tars", bad=False)
    (tmp_path / "list").write_text("# a reason\n0.tar/003.png\n")
    source = WebDatasetSource(WebDatasetConfig(path=str(place), skip=tmp_path / "list"))
    report = check_parts([source], Wishes(**PLAIN))  # pyright: ignore
    assert (len(report.names), report.usable, report.errors) == (39, 39, 0)


def test_a_table(tmp_path: Path) -> None:
    rows = pq.read_table(parquet_file(tmp_path / "whole.parquet", 12)).to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:100]
    rows[4]["image"] = None
    rows[5]["text"] = "   "
    rows[6]["text"] = None
    rows[8]["image"] = rows[7]["image"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    assert check_source(Asked(str(tmp_path / "table.parquet"), json=tmp_path / "found.json", workers=0)) is True
    told = json.loads((tmp_path / "found.json").read_text())
    keys = {kind: {each["key"] for each in problems} for kind, problems in told["problems"].items()}
    assert keys == {"truncated": {"3"}, "missing": {"4", "6"}, "empty": {"5"}, "same": {"8"}}
    assert told["usable"] == 8


# ------------------------------------------------------------------------------------------ crashes


class Deadly:
    """A source one of whose pictures ends the process that opens it, and another of which raises what it should not."""

    name, channels, num_classes, captioned, sizes, stream = "deadly", 3, None, False, None, False

    def __len__(self) -> int:
        return 100

    def key(self, index: int) -> str:
        return f"picture {index}"

    def read(self, index: int, least: tuple[int, int] | None = None) -> Example:
        if index == 41:
            os._exit(9)
        if index == 42:
            raise ZeroDivisionError("of a decoder")
        return Example(to_tensor(picture(index)), None, (), self.key(index), (40, 40))


def test_a_process_that_ends_does_not_end_the_check() -> None:
    report = check_parts([Deadly()], Wishes(**PLAIN, workers=2))  # pyright: ignore
    assert found(report) == {"unreadable": {"picture 41"}, "unusable": {"picture 42"}}
    assert [report.names[number][1] for number in range(100)] == [f"picture {number}" for number in range(100)]
    assert report.usable == 98


@pytest.mark.slow  # thousands of pictures are made and read, half a minute
def test_500_damages_are_named_and_memory_stays_flat(tmp_path: Path) -> None:
    kinds = [kind for kind in DAMAGES if kind not in ("blank", "small", "long")]
    caption_folder(tmp_path, 3000)
    expected: dict[str, set[str]] = {}
    for number in range(500):
        kind = kinds[number % len(kinds)]
        DAMAGES[kind](tmp_path / f"{number}.png")
        expected.setdefault(kind, set()).add(f"{number}.png")
    source = FolderSource(FolderConfig(path=tmp_path))
    report = check_parts([source], Wishes(**PLAIN, workers=2))  # pyright: ignore
    assert found(report) == expected
    assert report.usable == 2500

    class Part:
        """The first so many of them, all in this process, whose memory is measured."""

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getattr__(self, name: str) -> object:
            return getattr(source, name)

    def peak(count: int) -> int:
        tracemalloc.start()
        check_parts([Part(count)], Wishes(**PLAIN))  # pyright: ignore
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    assert (peak(3000) - peak(1000)) / 2000 < 500  # bytes for each further picture, which itself has 5,000


# ------------------------------------------------------------------------------------------ copies


Prints = tuple[list[int], np.ndarray]


def close(prints: Prints, one: int, other: int, most: int) -> bool:
    hashes, sketches = prints
    difference = np.abs(sketches[one].astype(int) - sketches[other])
    return (hashes[one] ^ hashes[other]).bit_count() <= most and int(difference.max()) <= 24


def by_comparing_all(prints: Prints, most: int) -> list[list[int]]:
    """Each picture with the first group's first that it is close to; else it begins one."""
    groups: list[list[int]] = []
    for place in range(len(prints[0])):
        group = next((group for group in groups if close(prints, group[0], place, most)), None)
        if group is None:
            groups.append(group := [])
        group.append(place)
    return [group for group in groups if len(group) > 1]


def drawn(seed: int, count: int) -> Prints:
    """Hashes around a few, with sketches around a few."""
    draw = np.random.default_rng(seed)
    bases, looks = draw.integers(0, 2**63, 6), draw.integers(0, 255, (3, 48))
    hashes, sketches = [], []
    for _ in range(count):
        value = int(draw.choice(bases))
        for bit in draw.integers(0, 64, draw.integers(0, 8)):
            value ^= 1 << int(bit)
        hashes.append(value)
        sketches.append(np.clip(looks[draw.integers(3)] + draw.integers(-15, 15, 48), 0, 255))
    return hashes, np.array(sketches, np.uint8)


@examined(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 80))
def test_near_groups_of_distinct_hashes_are_those_of_comparing_all(seed: int, most: int, count: int) -> None:
    hashes, sketches = drawn(seed, count)
    places = [place for place, value in enumerate(hashes) if value not in hashes[:place]]
    prints = [hashes[place] for place in places], sketches[places]
    assert near_groups(np.array(prints[0], np.uint64), prints[1], most) == by_comparing_all(prints, most)


@examined(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 80))
def test_members_are_near_their_first_and_no_two_groups_are_near(seed: int, most: int, count: int) -> None:
    hashes, sketches = prints = drawn(seed, count)
    groups = near_groups(np.array(hashes, np.uint64), sketches, most)
    members = [place for group in groups for place in group]
    assert len(set(members)) == len(members)
    for first, *others in groups:
        assert others == sorted(others)
        assert first < others[0]
        assert all((hashes[first] ^ hashes[other]).bit_count() <= most for other in others)
    firsts = [group[0] for group in groups] + [place for place in range(count) if place not in members]
    assert not any(close(prints, one, other, most) for one, other in itertools.combinations(firsts, 2))


def test_hashes_of_many_are_not_compared_with_all() -> None:
    """Comparing all 100,000 with all would be 5,000,000,000 comparisons, minutes; the copies planted are found."""
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, 100_000, dtype=np.uint64)
    sketches = draw.integers(0, 256, (100_000, 48), dtype=np.uint8)
    hashes[50_000:50_500] = hashes[:500] ^ np.uint64(0b1011 << 30)
    sketches[50_000:50_500] = sketches[:500]
    assert near_groups(hashes, sketches, 4) == [[k, 50_000 + k] for k in range(500)]
    assert near_groups(hashes, sketches, 2) == []


def saved(image: Image.Image, **options: object) -> Image.Image:
    held = io.BytesIO()
    image.save(held, **options)  # pyright: ignore
    return Image.open(held).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda image: saved(image, format="JPEG", quality=60),
    "halved": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "enlarged": lambda image: image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near_and_others_are_not(change: str) -> None:
    originals = [picture(number, (200, 150)) for number in range(60)]
    copies = [CHANGES[change](image) for image in originals]
    prints = [look_at(to_tensor(image)) for image in (*originals, *copies)]
    sketches = np.array([np.frombuffer(look.sketch, np.uint8) for look in prints])
    groups = near_groups(np.array([look.hash for look in prints], np.uint64), sketches, 4)
    assert all(len(group) == 2 and group[1] == group[0] + 60 for group in groups)
    assert len(groups) >= 57
    assert len({look.digest for look in prints}) == 120


def test_one_drawing_in_two_colours_is_no_copy() -> None:
    disc = Image.new("L", (64, 64))
    disc.paste(255, (10, 20, 40, 60))
    white = Image.new("RGB", (64, 64), "white")
    coloured = [Image.composite(Image.new("RGB", (64, 64), name), white, disc) for name in ("red", "#c83c00")]
    one, other = (look_at(to_tensor(image)) for image in coloured)
    assert one.hash == other.hash
    sketches = np.array([np.frombuffer(look.sketch, np.uint8) for look in (one, other)])
    assert near_groups(np.array([one.hash, other.hash], np.uint64), sketches, 4) == []


# ------------------------------------------------------------------------------------------ what it is checked against


def test_tokens_are_those_of_the_tokenizer() -> None:
    tokens = Tokens(tokenizer_at(None, Loading()), "photo of sks dog, ")
    words = "a cat, 2 dogs and über-naïve 熊猫 🐼"
    assert tokens(words) == len(clip_tokenizer()(f"photo of sks dog, {words}").input_ids) - 2
    assert tokens.window == 75


def test_buckets_and_batches(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64)] * 5 + [(96, 48)] * 2 + [(48, 96)]):
        put(tmp_path / f"{number}.png", number, size)
    report = checked(tmp_path, frame=FrameConfig(resolution=64, step=16), batch=3)
    filled = {shape: count for shape, count in report.buckets.items() if count}
    assert filled == {(64, 64): 5, (48, 80): 2, (80, 48): 1}
    assert found(report) == {"sparse": {"80 x 48", "48 x 80"}}


def test_pictures_that_fit_no_bucket(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64), (200, 64), (201, 60), (60, 400)]):
        put(tmp_path / f"{number}.png", number, size)
    report = checked(tmp_path, frame=FrameConfig(resolution=64, step=16))
    # the widest bucket is 80 x 48, 5 : 3; of 200 : 64 it shows 53%
    assert found(report) == {"cropped": {"2.png", "3.png"}}
    assert report.problems["cropped"][0].message == "50% of 2.png, 201 x 60, is in the nearest bucket, 80 x 48"


def run_with(path: Path, data: dict[str, object], **more: object) -> Path:
    tree = {
        "task": "diffusion",
        "output": "runs/none",
        "data": data,
        "toy": {"in_channels": 3},
        "train": {"steps": 1, "batch_size": 2, "gradient_accumulation": 2},
        **more,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_configuration_says_what_to_check_against(tmp_path: Path) -> None:
    folder = caption_folder(tmp_path / "pictures", 8)
    place = run_with(
        tmp_path / "run.yaml",
        {"source": "folder", "path": str(folder)},
        frame={"resolution": 40, "step": 8},
        captions={"prefix": "word " * 70},
    )
    assert check_source(Asked(str(place), json=tmp_path / "found.json", workers=0)) is True
    told = json.loads((tmp_path / "found.json").read_text())
    assert sorted(told["problems"]) == ["long", "small", "sparse"]
    assert {each["key"] for each in told["problems"]["small"]} == {f"{n}.png" for n in (0, 1, 3, 4, 6, 7)}
    assert sum(bucket["pictures"] for bucket in told["buckets"]) == 8
    assert min(map(int, told["caption_tokens"])) > 75


# ------------------------------------------------------------------------------------------ the list, the command


def test_what_the_list_leaves_out_is_what_was_wrong(tmp_path: Path) -> None:
    folder = caption_folder(tmp_path / "pictures", 30)
    for number, damage in enumerate(DAMAGES.values()):
        damage(folder / f"{number}.png")
    shutil.copy(folder / "20.png", folder / "21.png")
    before = sorted(path.name for path in folder.iterdir())
    place, listed = run_with(tmp_path / "run.yaml", {"source": "folder", "path": str(folder)}), tmp_path / "list.txt"
    assert check_source(Asked(str(place), quarantine=listed, workers=0)) is True
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing is deleted
    lines = listed.read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[::2])
    wrong = {f"{n}.png" for n, kind in enumerate(DAMAGES) if KINDS[kind].error and kind != "small"} | {"21.png"}
    assert set(lines[1::2]) == wrong

    place = run_with(tmp_path / "run.yaml", {"source": "folder", "path": str(folder), "skip": str(listed)})
    assert check_source(Asked(str(place), quarantine=listed, json=tmp_path / "found.json", workers=0)) is False
    assert listed.read_text().splitlines() == lines  # it keeps what it had
    assert json.loads((tmp_path / "found.json").read_text())["usable"] == 30 - len(wrong)


def test_lists_of_mixtures_in_mixtures() -> None:
    each = {"source": "folder", "path": "x"}
    inner = {"source": "mix", "sources": [{"data": {**each, "skip": "a"}}, {"data": {**each, "skip": "b"}}]}
    data = MixConfig.checked({"source": "mix", "sources": [{"data": inner}, {"data": each}]})
    assert _skips(data) == [Path("a"), Path("b"), None]
    with pytest.raises(UserError, match=r"skip_bad of one of the sources does nothing"):
        MixConfig.checked({"source": "mix", "sources": [{"data": {**each, "skip_bad": 3}}, {"data": each}]})


def test_mixed_sources_have_a_list_each(tmp_path: Path) -> None:
    folders = [caption_folder(tmp_path / name, 5) for name in ("one", "two")]
    noise(folders[0] / "3.png")
    caption_of(folders[1] / "4.png").write_text("")
    data = {"source": "mix", "sources": [{"data": {"source": "folder", "path": str(each)}} for each in folders]}
    place = run_with(tmp_path / "run.yaml", data)
    assert check_source(Asked(str(place), quarantine=tmp_path / "bad.txt", workers=0)) is True
    assert (tmp_path / "bad_1.txt").read_text().splitlines()[1::2] == ["3.png"]
    second = (tmp_path / "bad_2.txt").read_text().splitlines()[1::2]
    # the folders hold the same pictures: all of the second that can be read are copies
    assert sorted(second) == ["0.png", "1.png", "2.png", "4.png"]


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(data_app, ["check", *arguments])
    return (2 if isinstance(done.exception, UserError) else done.exit_code), done.output + str(done.exception or "")


def test_the_exit_code_says_whether_something_is_wrong(tmp_path: Path) -> None:
    folder = caption_folder(tmp_path / "pictures", 6)
    code, told = command(str(folder), "--workers", "0")
    assert code == 0
    assert "6 pictures, 6 usable" in told
    assert "nothing wrong" in told
    caption_of(folder / "2.png").write_text("x " * 80)
    code, told = command(str(folder), "--workers", "0")
    assert code == 0
    assert "nothing wrong, 1 warning\n" in told
    noise(folder / "4.png")
    code, told = command(str(folder), "--workers", "0")
    assert code == 1
    assert str(folder / "4.png") in told
    assert "1 error, 1 warning\n" in told


def test_long_lists_are_cut_on_the_screen_and_whole_in_the_file(tmp_path: Path) -> None:
    caption_folder(tmp_path / "pictures", 40)
    for number in range(30):
        noise(tmp_path / "pictures" / f"{number}.png")
    _, told = command(str(tmp_path / "pictures"), "--workers", "0", "--json", str(tmp_path / "found.json"))
    assert told.count(" is no picture") == 12
    assert "and 18 more" in told
    assert len(json.loads((tmp_path / "found.json").read_text())["problems"]["unreadable"]) == 30


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--near", "7"], "--near should be 0 to 6 bits, got 7"),
        (["--workers", "-1"], "--workers should be 0"),
        (["--batch-size", "0"], "--batch-size should be 1 or more, got 0"),
        (["--resolution", "0"], "resolution 0 is no multiple of step 64; 64 is"),
        (["--model", "./none"], "none: no such folder or file"),
        (["--html", "."], ". cannot be written: it is a folder"),
    ],
)
def test_mistakes_of_the_user(tmp_path: Path, flags: list[str], told: str) -> None:
    folder = caption_folder(tmp_path / "pictures", 2)
    code, output = command(str(folder), *flags)
    assert code == 2
    assert told in output


def test_names_that_would_move_the_cursor_are_escaped(tmp_path: Path) -> None:
    folder = caption_folder(tmp_path / "pictures", 3)
    noise(folder / "\x1b[2Jpicture.png")
    (folder / "\x1b[2Jpicture.txt").write_text(caption(1))
    code, told = command(str(folder), "--workers", "0")
    assert code == 1
    assert "picture.png" in told
    assert "\x1b" not in told


def test_a_configuration_is_checked_as_it_would_be_trained_on(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "other" / "a.png")
    place = tmp_path / "run.yaml"
    place.write_text(
        f"task: diffusion\noutput: x\ntoy: {{in_channels: 3}}\ndata: {{source: folder, path: {tmp_path / 'one'}}}\n"
        "train: {steps: 1}\n"
    )
    assert command(str(place))[0] == 2
    code, said = command(str(place), f"data.path={tmp_path / 'other'}", "--resolution", "24")
    assert code == 0
    assert "1 picture, 1 usable" in said
    code, said = command(str(tmp_path / "other"), "data.path=x")
    assert code == 2
    assert "changes a configuration" in said
