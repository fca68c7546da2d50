"""What `ldm show` tells of a picture: ours, that of other programs, and of one that says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from random_records import HASH, PICTURE, example, write_chunk

from ldm.errors import UserError
from ldm.images import save_image
from ldm.metadata.read import read_fields, read_record
from ldm.metadata.show import describe_picture


def test_what_is_shown_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(PICTURE, path, example(negative="blue\nsky", inputs={"mask": {"name": "m.png", "sha256": HASH}}))
    shown = describe_picture(path)
    assert shown.splitlines()[0] == f"{path}: PNG, 5x3, drawn by ldm"
    for line in (
        "  prompt: a red cat",
        "  negative: blue\n    sky\n",
        "  seed: 42",
        "  sampler: dpm++_2m",
        f"  mask: m.png (sha256 {HASH})",
        "  model: tiny, from models/tiny",
        "  dtype: float32",
        "  cost: 1.50 s, 100 MiB at most, 1e+12 FLOPs",
    ):
        assert line in shown


def test_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_chunk(path, "a dog\nNegative prompt: cats\nSteps: 9, Sampler: Euler, Seed: 3", "parameters")
    assert describe_picture(path).splitlines()[1:] == [
        "  prompt: a dog",
        "  negative: cats",
        "  Steps: 9",
        "  Sampler: Euler",
        "  Seed: 3",
    ]
    write_chunk(path, '{"3": {}}', "workflow")
    assert describe_picture(path).endswith("holds a graph of ComfyUI (workflow), which is not interpreted")
    write_chunk(path, "A. Painter", "Author")
    assert describe_picture(path).endswith("says nothing of how it was made; it has texts of other kinds: Author")
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = 'workflow:{"3": {}}', 'prompt:{"4": {}}'
    PICTURE.save(tmp_path / "a.webp", exif=exif)
    assert "ComfyUI (prompt, workflow)" in describe_picture(tmp_path / "a.webp")


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\rb", "\u202eabc", "\x9b31m", "a\x07"])
def test_a_terminal_is_not_steered(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.png"
    for write in (
        lambda: save_image(PICTURE, path, example(prompt=text)),
        lambda: write_chunk(path, text, "parameters"),
    ):
        write()
        shown = describe_picture(path)
        assert all(c == "\n" or c.isprintable() for c in shown)
        assert ascii(text)[1:-1] in shown
    write_chunk(path, json.dumps({**json.loads(example().to_json()), text: 1}))
    with pytest.raises(UserError) as caught:
        read_record(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_comments_of_either_byte_order(tmp_path: Path, order: str, mark: str) -> None:
    text = "猫の絵、青い空\nSteps: 20, Sampler: Euler a, Seed: 1"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + (mark + text).encode(order)
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert read_fields(tmp_path / "a.jpg").texts == {"parameters": text}
