"""Files made to harm, damaged or cut off: each is refused in one message that names it, and nothing else happens."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hand_made_png import png, png_chunk
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from random_records import example

from ldm.errors import UserError
from ldm.metadata.read import read_record
from ldm.metadata.show import describe_picture
from ldm.open_picture import MAX_PIXELS, open_picture

Picture = Image.Image
ACTIONS: list[Callable[[Path], object]] = [open_picture, read_record, describe_picture]
COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))


def saved(path: Path, **options: object) -> Path:
    COLOURS.save(path, **options)
    return path


def test_bombs(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "a.png"
    path.write_bytes(png((side, side + 1, 8, 0), b"\0" * 99))
    with pytest.raises(UserError, match=rf"{side} x {side + 1} pixels, and at most {MAX_PIXELS:,} are opened"):
        open_picture(path)
    for size in ((50_000, 50_000), (2**31 - 1, 2**31 - 1)):
        path.write_bytes(png((*size, 8, 0), b"\0" * 99))
        for action in ACTIONS:
            with pytest.raises(UserError, match=r"a\.png is too large to open: .*limit of \d+ pixels"):
                action(path)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_text_that_unpacks_to_more_than_a_megabyte(tmp_path: Path, name: bytes) -> None:
    head = b"ldm\0\0" if name == b"zTXt" else b"ldm\0\1\0\0\0"
    path = tmp_path / "a.png"
    path.write_bytes(png((1, 1, 8, 0), b"\0\0", png_chunk(name, head + zlib.compress(bytes(2**24)))))
    for action in ACTIONS:
        with pytest.raises(UserError, match=r"a\.png .*too large"):
            action(path)


def test_many_texts_that_unpack_to_a_megabyte_each(tmp_path: Path) -> None:
    chunk = png_chunk(b"zTXt", b"ldm\0\0" + zlib.compress(bytes(2**20 - 1)))
    path = tmp_path / "a.png"
    path.write_bytes(png((1, 1, 8, 0), b"\0\0", *([chunk] * 70)))
    for action in ACTIONS:
        with pytest.raises(UserError, match=r"a\.png .*Too much memory"):
            action(path)


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_a_record_in_exif_that_unpacks_to_more_than_a_megabyte(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    for note, fault in (
        (zlib.compress(bytes(2**24)), "cut off or larger"),
        (zlib.compress(b"{}")[:-3], "cut off or larger"),
        (b"\1\2\3", "cannot be unpacked"),
        (b"", "cut off or larger"),
    ):
        exif.get_ifd(0x8769)[0x927C] = b"ldm\0" + note
        path = saved(tmp_path / f"a{ending}", exif=exif)
        with pytest.raises(UserError, match=f"{path.name}: the record .*{fault}"):
            read_record(path)
        assert open_picture(path).size == COLOURS.size


RECORD = json.loads(example().to_json())
BAD_RECORDS = {
    "": "no readable JSON",
    "[" * 500_000: "no readable JSON",
    '{"a":' * 100_000: "no readable JSON",
    "nul": "no readable JSON",
    "9" * 5000: "no readable JSON",
    "[]": "no format number",
    "3": "no format number",
    "{}": "no format number",
    '{"format": "1"}': "no format number",
    '{"format": true}': "no format number",
    '{"format": 1}': "seed: missing|drawing: missing",
    '{"format": 0}': "format: ",
    json.dumps(RECORD | {"seed": "42"}): "seed: should be a valid integer, got '42'",
    json.dumps(RECORD | {"drawing": []}): "drawing: should be a group",
    json.dumps(RECORD | {"drawing": {"a": float("nan")}}): "drawing: a: this number",
    json.dumps(RECORD | {"cost": {"seconds": 1e999}}): r"cost\.seconds",
    json.dumps(RECORD | {"inputs": {"mask": 3}}): r"inputs\.mask",
    json.dumps(RECORD | {"pixels": "x" * 10**6}): "pixels: ",
    json.dumps(RECORD | {f"key{k}": k for k in range(50_000)}): "unknown key",
    json.dumps(RECORD | {"drawing": json.loads("[" * 500 + "]" * 500)}): "drawing: ",
}


@pytest.mark.parametrize("number", range(len(BAD_RECORDS)))
def test_records_that_are_none(tmp_path: Path, number: int) -> None:
    text, fault = list(BAD_RECORDS.items())[number]
    chunks = PngInfo()
    chunks.add_text("ldm", text, zip=True)
    path = saved(tmp_path / "a.png", pnginfo=chunks)
    for action in (read_record, describe_picture):
        with pytest.raises(UserError, match=rf"a\.png: the record .*({fault})") as caught:
            action(path)
        assert len(str(caught.value)) < 1000


# The first bytes of each kind as its specification, or the programs that write it, have them.
OTHER_KINDS = {
    "a HEIC file": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "an AVIF file": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1",
    "a JPEG XL file": b"\xff\x0a\xfa\x1f",
    "a Photoshop file": b"8BPS\0\1",
    "a web page": b"\n<!DOCTYPE html><title>404</title>",
    "an SVG file": b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg xmlns=',
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_files_of_other_kinds_are_called_by_their_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(OTHER_KINDS[kind] + bytes(99))
    cure = "download it again" if kind == "a web page" else "save it as PNG or JPEG"
    with pytest.raises(UserError, match=rf"a\.jpg is no picture .*but {kind}.*{cure}"):
        open_picture(path)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    kinds = {
        "empty.png": b"",
        "text.png": b"not a picture",
        "html.jpg": b"<html></html>",
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "pickle.png": b"\x80\x04cos\nsystem\n.",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        for action in ACTIONS:
            with pytest.raises(UserError, match=f"{name} (is no picture|cannot be read)"):
                action(tmp_path / name)
    for action in ACTIONS:
        with pytest.raises(UserError, match=r"there is no file .*missing"):
            action(tmp_path / "missing.png")
        with pytest.raises(UserError, match=r"cannot be opened: .*directory"):
            action(tmp_path)
        with pytest.raises(UserError, match="cannot be opened"):
            action(Path("nul\0nul.png"))


def whole_files() -> dict[str, bytes]:
    """A file of each kind with all sorts of metadata in it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 1, Seed: 2, Size: 8x8".encode("utf-16-be")
    exif.get_ifd(0x8769)[0x927C] = b"ldm\0" + zlib.compress(example().to_json().encode())
    chunks = PngInfo()
    chunks.add_text("parameters", "猫\nSteps: 1, Seed: 2, Size: 8x8")
    chunks.add_text("ldm", example().to_json(), zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = COLOURS.copy()
    clear.putalpha(COLOURS.convert("L"))
    frames = {"save_all": True, "append_images": [COLOURS.rotate(90)]}
    made: dict[str, tuple[Picture, dict[str, object]]] = {
        "a.png": (clear, {"pnginfo": chunks, "exif": exif, "icc_profile": profile}),
        "b.png": (COLOURS.quantize(8), {"transparency": b"\1\2\3", "pnginfo": chunks}),
        "c.png": (COLOURS, {**frames, "pnginfo": chunks}),
        "a.jpg": (COLOURS, {"exif": exif, "icc_profile": profile, "progressive": True}),
        "b.jpg": (COLOURS.convert("CMYK"), {"exif": exif}),
        "a.webp": (clear, {"exif": exif, "lossless": True}),
        "b.webp": (COLOURS, {**frames, "exif": exif}),
        "a.gif": (COLOURS.quantize(8), {"transparency": 1, "comment": b"hello"}),
        "b.gif": (COLOURS.quantize(8), frames),
        "a.bmp": (COLOURS, {}),
        "a.tif": (Image.fromarray(np.full((5, 5), 999, np.uint16)), {"exif": exif}),
        "b.tif": (COLOURS, {"compression": "tiff_lzw"}),
        "a.ppm": (COLOURS, {}),
    }
    files = {}
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    for name, (image, options) in made.items():
        file = BytesIO()
        image.save(file, formats.get(name[2:], name[2:].upper()), **options)
        files[name] = file.getvalue()
    return files


WHOLE = whole_files()


def try_everything(path: Path) -> int:
    """How many of the actions refuse the file; anything but a ``UserError`` that names it fails the test."""
    refused = 0
    for action in ACTIONS:
        try:
            action(path)
        except UserError as error:
            refused += path.name in str(error) or pytest.fail(f"{error} does not name {path.name}")
    return refused


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd EXIF
@pytest.mark.parametrize("name", WHOLE)
def test_cut_off_anywhere(tmp_path: Path, name: str) -> None:
    path, data = tmp_path / name, WHOLE[name]
    path.write_bytes(data)
    whole = try_everything(path)
    assert whole == (1 if name in ("c.png", "b.webp", "b.gif") else 0)  # the moving ones are not opened
    places = sorted({*range(0, len(data), max(1, len(data) // 150)), *range(64)} & set(range(len(data))))
    refused = []
    for place in places:
        path.write_bytes(data[:place])
        refused.append(try_everything(path))
    assert refused[0] == len(ACTIONS)
    middle = [count for place, count in zip(places, refused, strict=True) if place < len(data) // 2]
    assert min(middle) >= 1  # half a picture is never taken for a picture


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WHOLE)
def test_bytes_changed_anywhere(tmp_path: Path, name: str) -> None:
    path, data, chance = tmp_path / name, WHOLE[name], random.Random(0)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 4, 30])):
            place = chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 400))
            changed[place] = chance.choice([0, 255, 127, 128, chance.randrange(256)])
        path.write_bytes(repaired(bytes(changed)) if name.endswith("png") and chance.random() < 0.7 else changed)
        try_everything(path)


def repaired(data: bytes) -> bytes:
    """A PNG with its check sums made right, so that what is inside the chunks is reached."""
    parts, place = [data[:8]], 8
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        parts.append(png_chunk(name, data[place + 8 : place + 8 + length]))
        place += length + 12
    return b"".join(parts)
