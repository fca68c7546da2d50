"""Pictures that others made: opened with care, and turned into plain 8-bit ones.

A picture file is whatever somebody sent. It may be cut off, be no picture, or claim sizes that fill the memory, and
Pillow's decoders raise whatever they trip over. Here all of that becomes one ``BadPicture`` that names the file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from ldm.errors import UserError

PictureFault = Literal["missing", "unreadable", "truncated", "bomb", "animated"]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
IN_MEMORY = "(a picture in memory)"  # in place of a file's name
MAX_PIXELS = 2**26  # 8192 x 8192; half a gigabyte in float32 once it is a tensor, with another for its copy
ORIENTATION = ExifTags.Base.Orientation
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width
_ANIMATED = ("PNG", "WEBP", "GIF", "TIFF")  # in a JPEG, further frames are previews of the first
_OTHER_KINDS = (  # what else people have among their pictures, and how it begins
    ("an AVIF file", rb".{4}ftypavi[fs]"),
    ("a HEIC file, as telephones write it", rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
    ("a JPEG XL file", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG 2000 file", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
    ("a Photoshop file", rb"8BPS"),
    ("a PDF", rb"%PDF"),
    ("a web page", rb"(?i)<!doctype html|<html"),
    ("an SVG file", rb"(<\?xml[^>]*>\s*)?(<!--[^>]*>\s*)?<svg"),
)
# What Pillow and its decoders say of a file that ends too early.
_CUT_OFF = re.compile(r"truncated|unexpected end|broken data stream|not enough (image )?data|premature", re.IGNORECASE)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class BadPicture(UserError):
    """A picture that cannot be used; the message names its file.

    Attributes:
        fault: why.
    """

    def __init__(self, fault: PictureFault, message: str) -> None:
        super().__init__(message)
        self.fault: PictureFault = fault


@contextlib.contextmanager
def picture_trouble(path: Path) -> Iterator[None]:
    """Turn what Pillow raises over a file into a message that names it. Wrap calls of Pillow only.

    Raises:
        BadPicture: in place of any exception: on damaged files Pillow raises OSError, SyntaxError, ValueError,
            TypeError, struct.error, zlib.error and others, by format and by version.
    """
    try:
        yield
    except Image.UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        told = f"{path} is no picture, or its beginning is damaged (readable: {formats})"
        raise BadPicture("unreadable", told) from error
    except Image.DecompressionBombError as error:
        raise BadPicture("bomb", f"{path} is too large to open: {error}") from error
    except MemoryError as error:
        raise BadPicture("unreadable", f"{path} needs more memory than there is") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        fault = "truncated" if _CUT_OFF.search(reason) else "unreadable"
        raise BadPicture(fault, f"{path} cannot be read, as when it is damaged or cut off: {reason}") from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture at ``path`` with its header read and its pixels not yet.

    Raises:
        BadPicture: there is no such file, it cannot be read, or it is no picture.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise BadPicture("missing", f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # a folder, no permission; ValueError: a NUL in the name
        raise BadPicture("unreadable", f"{path} cannot be opened: {error}") from error
    with file, opened_stream(file, path) as image:
        yield image


@contextlib.contextmanager
def opened_stream(file: BinaryIO, path: Path) -> Iterator[Image.Image]:
    """The picture that ``file`` holds, as ``opened`` gives it; messages call it ``path``."""
    try:
        with picture_trouble(path):
            image = Image.open(file, formats=FORMATS)
    except BadPicture as error:
        if isinstance(error.__cause__, Image.UnidentifiedImageError):
            _refuse_other_kinds(file, path, error)
        raise
    with image:
        yield image


def _refuse_other_kinds(file: BinaryIO, path: Path, error: Exception) -> None:
    """Say what a file is that cannot be opened here though it may be whole, and what to do about it."""
    file.seek(0)
    start = file.read(64).lstrip()
    kind = next((kind for kind, beginning in _OTHER_KINDS if re.match(beginning, start, re.DOTALL)), None)
    if kind is not None:
        cure = "save it as PNG or JPEG, as ImageMagick's `magick OLD NEW.png` does"
        if kind == "a web page":
            cure = "its address gave this in place of the picture, so download it again, or leave it out"
        formats = ", ".join(FORMATS)
        told = f"{path} is no picture that can be opened, but {kind} (readable: {formats}): {cure}"
        raise BadPicture("unreadable", told) from error


def open_picture(
    picture: Path | str | Image.Image,
    mode: Literal["RGB", "L"] = "RGB",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Open a picture to start from, or a mask; one in memory is treated alike.

    It is turned as its EXIF orientation says. 16 bits become 8 by scaling. Transparent parts show ``background``.

    Args:
        picture: PIL's, or a file: PNG, JPEG, WebP, GIF, BMP, TIFF or PPM; of one frame, at most ``MAX_PIXELS`` pixels.
        mode: of the result: ``RGB``, or ``L`` (luma, ITU-R 601-2).
        background: RGB, 0..255 each.

    Raises:
        BadPicture: the file is missing, damaged, cut off, too large, animated, or of a kind that has no 8-bit form.
    """
    if isinstance(picture, Image.Image):
        return plain(picture, Path(IN_MEMORY), mode, background).copy()
    with opened(Path(picture)) as image:
        return plain(image, Path(picture), mode, background).copy()


def plain(
    image: Image.Image,
    path: Path,
    mode: Literal["RGB", "L"],
    background: tuple[int, int, int],
    least: tuple[int, int] | None = None,
) -> Image.Image:
    """What ``open_picture`` makes of a picture that is open; that picture itself, where nothing is to be changed.

    A JPEG can be decoded at a half, a quarter or an eighth of its size, in a fraction of the time: with ``least``, an
    upright (height, width), it is, where neither side comes out shorter. Messages call the picture ``path``.
    """
    check_extent(image, path)
    with picture_trouble(path):
        if least is not None and isinstance(image, JpegImageFile):
            height, width = reversed(least) if image.getexif().get(ORIENTATION) in QUARTER_TURNS else least
            image.draft(None, (width, height))
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    if upright.mode == "F" or (upright.mode == "I" and image.format != "PPM"):  # those of a PPM are 16 bits
        raise BadPicture("unreadable", f"{path} has 32 bits per pixel, whose range is unknown: save it with 8 or 16")
    with picture_trouble(path):
        flat = _flattened(_eight_bits(upright), background)
        return flat if flat.mode == mode else flat.convert(mode)


def check_extent(image: Image.Image, path: Path) -> None:
    """Refuse a picture that is open, before its pixels are read, when it has too many of them or several frames."""
    if image.width * image.height > MAX_PIXELS:
        told = f"{path} has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are opened"
        raise BadPicture("bomb", told)
    with picture_trouble(path):
        frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    if frames > 1:
        told = f"{path} has {frames} frames, and which is meant is unknown: save one as a picture of its own"
        raise BadPicture("animated", told)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to ``L`` or, where one grey is transparent, ``LA``; others as they are."""
    if image.mode not in (*_SIXTEEN_BITS, "I"):
        return image
    wide = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(wide == clear, 0, 255).astype(np.uint8)))
    return grey


def _flattened(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Without transparency: what lies behind is ``background``."""
    if not image.has_transparency_data:
        return image
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA"))
