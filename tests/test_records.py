"""Records in picture files: lossless, refused where they cannot be, and readable by plain Pillow."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from random_records import PICTURE, VALUES, example, records, write_chunk

from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.embed import MAX_RECORD
from ldm.metadata.read import read_record
from ldm.metadata.record import Record, hash_pixels, input_file, installed_versions
from ldm.metadata.show import describe_picture

ENDINGS = [".png", ".jpg", ".webp"]
FOLDER = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def same(one: object, other: object) -> bool:
    """Equal in value and in type at every depth: 1 is not 1.0 and not True, 0.0 is not -0.0."""
    return repr(one) == repr(other)


# ------------------------------------------------------------------------------------- lossless


def through_file(record: Record, path: Path) -> Record | None:
    save_image(PICTURE, path, record)
    return read_record(path)


@settings(FOLDER, max_examples=250)
@given(record=records())
def test_a_png_gives_back_every_record(tmp_path: Path, record: Record) -> None:
    back = through_file(record, tmp_path / "picture.png")
    assert back == record
    assert same(back, record)


@pytest.mark.slow  # several minutes: the same, ten thousand times
@settings(FOLDER, max_examples=10_000)
@given(record=records())
def test_a_png_gives_back_ten_thousand_records(tmp_path: Path, record: Record) -> None:
    back = through_file(record, tmp_path / "picture.png")
    assert back == record
    assert same(back, record)


@pytest.mark.parametrize("ending", ENDINGS[1:])
@settings(FOLDER, max_examples=50)
@given(record=records())
def test_exif_gives_back_every_record(tmp_path: Path, ending: str, record: Record) -> None:
    assert same(through_file(record, tmp_path / f"picture{ending}"), record)


@given(st.dictionaries(st.text(), VALUES))
def test_drawing_is_kept_as_it_is(drawing: dict[str, object]) -> None:
    record = example(drawing=drawing)
    assert same(record.drawing, drawing)
    assert json.loads(record.to_json())["drawing"] == drawing


@pytest.mark.parametrize("code", [0, 0x0A, 0x0D, 0x1B, 0x7F, 0x85, 0x2028, 0xD800, 0xDC80, 0xDFFF, 0xFFFE, 0x10FFFF])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_code_point_survives(tmp_path: Path, ending: str, code: int) -> None:
    text = f"{chr(code)}a{chr(code)}{chr(code)}"
    back = through_file(example(prompt=text, negative=text), tmp_path / f"picture{ending}")
    assert back is not None
    assert (back.prompt, back.negative) == (text, text)


def test_tuples_and_subclasses_become_plain() -> None:
    class Name(str):
        __slots__ = ()

    record = example(drawing={"interval": (0.0, 1.0), "name": Name("a"), "flag": True})
    assert same(record.drawing, {"interval": [0.0, 1.0], "name": "a", "flag": True})
    assert type(record.drawing["name"]) is str


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drawing": {"eta": float("inf")}}, r"drawing: eta: this number cannot be stored"),
        ({"drawing": {"a": {"b": [0, float("nan")]}}}, r"a\.b\.1: this number"),
        ({"drawing": {"steps": 1 << 5000}}, r"steps: this number .* enormous"),
        ({"drawing": {1: 2}}, "the key 1 is no string"),
        ({"drawing": {"dtype": torch.float32}}, r"dtype: dtype cannot be stored"),
        ({"drawing": {"where": Path("a")}}, r"where: \w+ cannot be stored"),
        ({"drawing": [1]}, "should be a group of keys and values"),
        ({"drawing": {"a": "\ud83d\ude00"}}, "two halves of one character"),
        ({"prompt": "\ud83d\ude00"}, "two halves of one character"),
        ({"prompt": True}, "prompt: should be text, the number of a class, or nothing, got True"),
        ({"seed": -1}, "greater than or equal to 0, got -1"),
        ({"seed": 2**64}, "less than or equal to 18446744073709551615"),
        ({"seed": True}, "seed: should be a valid integer"),
        ({"seed": 1.0}, "seed: should be a valid integer"),
        ({"pixels": "abc"}, "pixels: "),
        ({"cost": {"seconds": float("nan")}}, r"cost\.seconds: "),
        ({"colour": 1}, "colour: unknown key"),
    ],
)
def test_what_would_not_come_back_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        example(**changes)


def test_groups_may_be_deep_but_not_bottomless() -> None:
    value: object = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(UserError, match="more than 16 groups within groups"):
        example(drawing={"a": value})


# ------------------------------------------------------------------------- read with plain Pillow


def test_png_chunks_are_text(tmp_path: Path) -> None:
    path, record = tmp_path / "picture.png", example(prompt="naïve")
    save_image(PICTURE, path, record)
    with Image.open(path) as image:
        assert image.info["parameters"].startswith("naïve\nSteps: 20, ")
        assert json.loads(image.info["ldm"])["prompt"] == "naïve"
    names = chunk_names(path.read_bytes())
    assert names.index(b"tEXt") < names.index(b"zTXt") < names.index(b"IDAT")
    save_image(PICTURE, path, example(prompt="猫"))
    assert b"iTXt" in chunk_names(path.read_bytes())
    with Image.open(path) as image:
        assert image.info["parameters"].startswith("猫\n")


def chunk_names(data: bytes) -> list[bytes]:
    names, place = [], 8
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        assert zlib.crc32(data[place + 4 : place + 8 + length]) == struct.unpack_from(">I", data, place + 8 + length)[0]
        names.append(name)
        place += length + 12
    return names


@pytest.mark.parametrize("ending", ENDINGS[1:])
@pytest.mark.parametrize("prompt", ["a cat", "naïve, 猫 😀\nsecond line"])
def test_exif_holds_comment_and_record(tmp_path: Path, ending: str, prompt: str) -> None:
    path, record = tmp_path / f"picture{ending}", example(prompt=prompt)
    save_image(PICTURE, path, record)
    with Image.open(path) as image:
        tags = image.getexif().get_ifd(0x8769)
    comment, note = tags[0x9286], tags[0x927C]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith(f"{prompt}\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras,")
    assert note[:4] == b"ldm\0"
    assert json.loads(zlib.decompress(note[4:])) == json.loads(record.to_json())


def test_pixels_of_png_and_webp_are_exact_and_of_jpeg_near(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for ending in ENDINGS:
        save_image(noise, tmp_path / f"a{ending}", example())
        with Image.open(tmp_path / f"a{ending}") as back:
            if ending != ".jpg":
                assert hash_pixels(back) == hash_pixels(noise)
                continue
            assert back.layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # chroma at full resolution
            worst = (
                torch.tensor(bytearray(back.tobytes())).int() - torch.tensor(bytearray(noise.tobytes())).int()
            ).abs()
            assert worst.max() < 48


def test_without_a_record_nothing_is_written(tmp_path: Path) -> None:
    for ending in ENDINGS:
        save_image(PICTURE, tmp_path / f"a{ending}")
        assert read_record(tmp_path / f"a{ending}") is None
        assert "says nothing of how it was made" in describe_picture(tmp_path / f"a{ending}")


def test_a_record_too_long_for_its_file_is_refused_and_what_fits_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a JPEG holds 65,533: write a PNG or WebP"):
        save_image(PICTURE, tmp_path / "a.jpg", example(prompt="x" * 40_000))
    fits = example(prompt="x" * 30_000)
    assert through_file(fits, tmp_path / "b.jpg") == fits
    for ending in (".png", ".webp"):
        room = MAX_RECORD - len(example(prompt="").to_json())
        fits = example(prompt="x" * room)
        assert through_file(fits, tmp_path / f"c{ending}") == fits
        with pytest.raises(UserError, match="1,048,577 bytes, and at most 1,048,576 are stored"):
            save_image(PICTURE, tmp_path / f"d{ending}", example(prompt="x" * (room + 1)))
        assert not (tmp_path / f"d{ending}").exists()


@pytest.mark.parametrize(("ending", "side"), [(".jpg", 65500), (".webp", 16383)])
def test_a_picture_too_large_for_its_format_is_refused(tmp_path: Path, ending: str, side: int) -> None:
    save_image(Image.new("RGB", (side, 1)), tmp_path / f"a{ending}")
    with pytest.raises(UserError, match=f"holds {side} pixels a side, not {side + 1} x 1"):
        save_image(Image.new("RGB", (side + 1, 1)), tmp_path / f"b{ending}")


# ------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", ENDINGS)
def test_reading_decodes_no_pixels(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{ending}"
    save_image(PICTURE, path, example())

    def refuse(*_: object) -> None:
        raise AssertionError("the pixels were asked for")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", refuse)
    assert read_record(path) == example()
    assert "a red cat" in describe_picture(path)


def test_chunks_behind_the_pixels_are_found(tmp_path: Path) -> None:
    path = tmp_path / "late.png"
    late = PngInfo()
    late.add(b"tEXt", b"ldm\0" + example().to_json().encode(), after_idat=True)
    PICTURE.save(path, pnginfo=late)
    data = path.read_bytes()
    first, second = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    text = struct.pack(">I", len(late.chunks[0][1])) + b"tEXt" + late.chunks[0][1]
    text += struct.pack(">I", zlib.crc32(text[4:]))
    if b"tEXt" not in data[first:second]:  # Pillow writes only private chunks there
        data = data[:first].replace(text, b"") + data[first:second] + text + data[second:]
    path.write_bytes(data)
    assert read_record(path) == example()


def test_newer_records_are_refused_by_their_number(tmp_path: Path) -> None:
    values = json.loads(example().to_json()) | {"format": 2, "what_is_this": {}}
    write_chunk(tmp_path / "a.png", json.dumps(values))
    with pytest.raises(UserError, match=r"a\.png: the record has format 2, and ldm \S+ reads up to 1"):
        read_record(tmp_path / "a.png")


def test_files_that_a_picture_was_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "first\udc80.png"
    path.write_bytes(b"abc")
    found = input_file(path)
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert Path(found.name) == path
    with pytest.raises(UserError, match="missing cannot be read"):
        input_file(tmp_path / "missing")


def test_pixels_are_told_apart_by_shape_and_mode() -> None:
    data = bytes(12)
    pictures = [
        Image.frombytes("RGB", (2, 2), data),
        Image.frombytes("RGB", (4, 1), data),
        Image.frombytes("L", (4, 3), data),
    ]
    assert len({hash_pixels(picture) for picture in pictures}) == 3


def test_versions_are_those_installed() -> None:
    found = installed_versions()
    assert set(found) == {"ldm", "torch", "transformers", "python"}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found == example(versions=found).versions
