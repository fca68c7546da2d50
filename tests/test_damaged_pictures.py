"""Pictures of every kind as init image, mask and hint, and for ``show`` and ``replay``, through the command line.

What can be opened draws the very picture that its plain RGB PNG draws; everything else is named in one line with exit
code 2, and nothing is written. ``tests/test_open_picture.py`` and ``tests/test_hostile_pictures.py`` look at the pixels
and at damage anywhere in a file.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from generate_lab import pixels, refused, run
from hand_made_png import png
from PIL import Image
from tiny_families import FAMILIES, Folders
from tiny_models import written

from ldm.weights.model import save_model

FLAGS = ["-m", "sd1", "--seed", "3", "--steps", "2", "--dtype", "fp32"]
RANDOM = np.random.default_rng(0)
COLOURS = Image.fromarray(RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8))
GREY = COLOURS.convert("L")
CLEAR = Image.fromarray(RANDOM.integers(0, 256, (20, 24), dtype=np.uint8))
FRAMES = {"save_all": True, "append_images": [COLOURS.rotate(90)]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    families = Folders(folder)
    families.folder("sd1")
    families.control("sd1", 7)
    written("label", folder / "label")
    save_model(FAMILIES["sd1-inpaint"](), folder / "inpaint")
    COLOURS.save(folder / "whole.png")
    return folder


@pytest.fixture(autouse=True)
def place(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the models beside it."""
    for path in lab.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def roles(picture: str) -> dict[str, list[str]]:
    """How ``ldm generate`` may be given a picture."""
    return {
        "init": ["-i", picture],
        "mask": ["-i", "whole.png", "--mask", picture],
        "hint": ["--control", f"{Path('control-sd1-7').resolve()}={picture}"],
    }


# --------------------------------------------------------------------------- what can be opened


def over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def clear(image: Image.Image) -> Image.Image:
    found = image.copy()
    found.putalpha(CLEAR)
    return found


def sixteen_bits(path: Path, channels: int) -> None:
    """Every value v as 257 v, of which 8 bits are v again."""
    values = np.asarray(GREY if channels == 1 else COLOURS).reshape(20, 24 * channels).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png((24, 20, 16, 0 if channels == 1 else 2), rows))


def turned(path: Path, **options: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    COLOURS.save(path, exif=exif, **options)


def cmyk() -> Image.Image:
    """Without black, where cyan, magenta and yellow are what white lacks of red, green and blue."""
    return Image.merge("CMYK", (*(band.point(lambda v: 255 - v) for band in COLOURS.split()), Image.new("L", (24, 20))))


PALETTE = COLOURS.quantize(16)
RIGHT: dict[str, tuple[Callable[[Path], object], Image.Image]] = {  # how a file is written, and what it shows
    "a.jpg PNG by another name": (lambda path: COLOURS.save(path, "PNG"), COLOURS),
    "b.png WebP by another name": (lambda path: COLOURS.save(path, "WEBP", lossless=True), COLOURS),
    "cmyk.tif": (lambda path: cmyk().save(path), COLOURS),
    "grey16.png": (lambda path: sixteen_bits(path, 1), GREY),
    "rgb16.png": (lambda path: sixteen_bits(path, 3), COLOURS),
    "grey16.tif": (lambda path: Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257).save(path), GREY),
    "palette.png": (lambda path: PALETTE.save(path), PALETTE.convert("RGB")),
    "clear_palette.png": (
        lambda path: PALETTE.save(path, transparency=bytes(range(0, 256, 16))),
        over_white(Image.merge("RGBA", (*PALETTE.convert("RGB").split(), PALETTE.point(lambda v: v * 16, "L")))),
    ),
    "one_frame.gif": (lambda path: PALETTE.save(path), PALETTE.convert("RGB")),
    "clear.png": (lambda path: clear(COLOURS).save(path), over_white(clear(COLOURS))),
    "clear_grey.png": (lambda path: clear(GREY).save(path), over_white(clear(GREY))),
    "black_and_white.png": (lambda path: GREY.convert("1").save(path), GREY.convert("1").convert("L")),
    "grey.png": (lambda path: GREY.save(path), GREY),
    "turned.png": (turned, COLOURS.transpose(Image.Transpose.ROTATE_270)),
    "turned.webp": (lambda path: turned(path, lossless=True), COLOURS.transpose(Image.Transpose.ROTATE_270)),
    "one_pixel.png": (lambda path: COLOURS.crop((0, 0, 1, 1)).save(path), COLOURS.crop((0, 0, 1, 1))),
    "a_line.png": (lambda path: COLOURS.resize((600, 1)).save(path), COLOURS.resize((600, 1))),
    "ä 猫.png": (lambda path: COLOURS.save(path), COLOURS),
}
JPEGS = {  # lossy, so what they show is what Pillow makes of them
    "plain.jpg": (COLOURS, {}),
    "cmyk.jpg": (cmyk(), {"quality": 100}),
    "grey.jpg": (GREY, {"quality": 80}),
    "progressive.jpg": (COLOURS, {"progressive": True, "subsampling": 2}),
    "lossy.webp": (COLOURS, {"quality": 60}),
}


@pytest.mark.parametrize("name", [*RIGHT, *JPEGS])
def test_a_picture_is_read_as_what_it_shows(name: str) -> None:
    """As init image, mask and hint at once: read wrongly as any of them, another picture would be drawn."""
    path = Path(name.partition(" PNG")[0].partition(" WebP")[0])
    if name in RIGHT:
        write, shown = RIGHT[name]
        write(path)
    else:
        image, options = JPEGS[name]
        image.save(path, **options)  # type: ignore[arg-type]
        shown = Image.open(path)
    clear = name.startswith("clear")  # a mask is not drawn where it is transparent, rather than white
    assert run(*drawn_from(str(path), "whole.png" if clear else str(path)), "-o", "o.png") == (0, "")
    assert pixels(Image.open("o.png")) == from_plain(pixels(shown.convert("RGB")), clear)
    assert run("show", str(path)) == (0, "")
    assert "holds no record of ldm" in refused("replay", str(path))


def drawn_from(picture: str, mask: str) -> list[str]:
    words = [*roles(picture)["init"], "--mask", mask, *roles(picture)["hint"], "-W", "32", "-H", "32"]
    return ["generate", "two", *FLAGS, *words]


@functools.cache
def from_plain(shown: tuple[str, tuple[int, int], bytes], whole: bool) -> tuple[str, tuple[int, int], bytes]:
    Image.frombytes(*shown).save("plain.png")
    assert run(*drawn_from("plain.png", "whole.png" if whole else "plain.png"), "-o", "expected.png") == (0, "")
    return pixels(Image.open("expected.png"))


@pytest.mark.parametrize("role", roles(""))
def test_what_is_shown_matters(role: str) -> None:
    COLOURS.rotate(180).save("other.png")
    for picture in ("whole.png", "other.png"):
        assert run("generate", "two", *FLAGS, *roles(picture)[role], "-o", f"drawn_{picture}") == (0, "")
    assert pixels(Image.open("drawn_whole.png")) != pixels(Image.open("drawn_other.png"))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (5, 3)])
def test_a_picture_of_any_proportions_is_drawn_at_a_size_near_its_own(size: tuple[int, int]) -> None:
    COLOURS.resize(size).save("odd.png")
    assert run("generate", "two", *FLAGS, "-i", "odd.png", "-o", "o.png") == (0, "")
    drawn = Image.open("o.png").size
    assert all(side % 4 == 0 and abs(side - asked) <= 4 for side, asked in zip(drawn, size, strict=True))


def test_a_grey_model_and_an_inpainting_one_read_colours(place: Path) -> None:
    COLOURS.resize((8, 8)).save("small.png")
    flags = [*FLAGS[2:], "-o", "o.png"]
    assert run("generate", "3", "-m", "label", "-i", "small.png", *flags) == (0, "")
    assert Image.open("o.png").mode == "L"
    sixteen_bits(place / "mask.png", 1)
    assert run("generate", "two", "-m", "inpaint", "-i", "whole.png", "--mask", "mask.png", *flags) == (0, "")


# ------------------------------------------------------------------------- what cannot be opened


def cut(path: Path, share: float, **options: object) -> None:
    COLOURS.resize((240, 200)).save(path, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {  # how a file is written, and what is said of it
    "cut.png": (lambda path: cut(path, 0.5), "cut off"),
    "cut_early.png": (lambda path: cut(path, 0.001), "cut off"),
    "cut.jpg": (lambda path: cut(path, 0.5), "cut off"),
    "cut.webp": (lambda path: cut(path, 0.5, lossless=True), "damaged"),
    "cut.gif": (lambda path: cut(path, 0.5), "cut off"),
    "nothing.png": (lambda path: path.write_bytes(b""), "no picture"),
    "text.png": (lambda path: path.write_text("a cat\n"), "no picture"),
    "page.jpg": (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "no picture"),
    "vector.svg": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "no picture"),
    "weights.png": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"{}"), "no picture"),
    "folder.png": (lambda path: path.mkdir(), "cannot be"),
    "missing.png": (lambda path: None, "there is no file"),
    "bomb.png": (lambda path: path.write_bytes(png((50_000, 50_000, 8, 0), b"\0" * 99)), "too large"),
    "huge.png": (lambda path: path.write_bytes(png((9000, 9000, 8, 0), b"\0" * 99)), "pixels, and at most"),
    "moving.gif": (lambda path: COLOURS.save(path, **FRAMES), "2 frames"),
    "moving.webp": (lambda path: COLOURS.save(path, **FRAMES), "2 frames"),
    "moving.png": (lambda path: COLOURS.save(path, **FRAMES), "2 frames"),
    "pages.tif": (lambda path: COLOURS.save(path, **FRAMES), "2 frames"),
    "float.tif": (lambda path: Image.new("F", (24, 20), 0.5).save(path), "32 bits"),
    "whole.tif": (lambda path: Image.new("I", (24, 20), 70000).save(path), "32 bits"),
    "check_sum.png": (
        lambda path: path.write_bytes(Path("whole.png").read_bytes().replace(b"IDAT", b"IDAU", 1)),
        "damaged",
    ),
}


@pytest.mark.parametrize("role", roles(""))
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_picture_is_named(name: str, role: str) -> None:
    write, told = WRONG[name]
    write(Path(name))
    model = ["two", *FLAGS] if role == "hint" else ["3", "-m", "label", *FLAGS[2:]]
    said = refused("generate", *model, *roles(name)[role], "-o", "o.png")
    assert name in said
    assert told in said


@pytest.mark.parametrize("name", WRONG)
def test_show_and_replay_name_it_or_tell_what_its_header_says(name: str) -> None:
    WRONG[name][0](Path(name))
    code, said = run("show", name)
    assert code == 0 or (code, name in said, said.count("\n")) == (2, True, 1)
    assert name in refused("replay", name)


@pytest.mark.parametrize("name", ["cut.png", "cut.webp"])
def test_a_picture_of_ours_that_was_cut_off(name: str) -> None:
    """Its record may be whole; what is left of its pixels proves nothing."""
    assert run("generate", "two", *FLAGS, "-o", name) == (0, "")
    Path(name).write_bytes(Path(name).read_bytes()[:-400])
    assert name in refused("replay", name, "--verify")


def test_a_mask_is_not_drawn_where_it_is_transparent() -> None:
    square = (4, 4, 16, 12)
    plain, clear = Image.new("L", (24, 20)), Image.new("RGBA", (24, 20), (255, 255, 255, 0))
    plain.paste(255, square)
    clear.paste((255, 255, 255, 255), square)
    for image, name in ((plain, "plain_mask.png"), (clear, "clear_mask.png")):
        image.save(name)
        assert run("generate", "two", *FLAGS, "-i", "whole.png", "--mask", name, "-o", f"of_{name}") == (0, "")
    assert pixels(Image.open("of_plain_mask.png")) == pixels(Image.open("of_clear_mask.png"))


@pytest.mark.parametrize("flags", [[], ["--only-masked"]])
def test_an_empty_mask_is_refused(flags: list[str]) -> None:
    Image.new("L", (24, 20)).save("black.png")
    said = refused("generate", "two", *FLAGS, "-i", "whole.png", "--mask", "black.png", *flags, "-o", "p.png")
    assert "the mask is empty" in said


def test_a_mask_of_other_proportions_is_refused() -> None:
    Image.new("L", (24, 40), 255).save("tall.png")
    said = refused("generate", "two", *FLAGS, "-i", "whole.png", "--mask", "tall.png", "-o", "p.png")
    assert "the mask is 24x40, and the picture 24x20: their proportions differ" in said
