"""Pictures as tensors in -1..1, as bytes, and as files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError, choose
from ldm.metadata.embed import save_options
from ldm.metadata.record import Record
from ldm.publishing import disk_trouble, write_whole

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # in pixels


def to_signed(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Float -1..1 (clamped) to uint8 0..255, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Pictures (B, 1 or 3, H, W) in -1..1 to PIL images of mode L or RGB."""
    arrays = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def resize(images: Tensor, width: int, height: int) -> Tensor:
    """Pictures (B, 1 or 3, H, W) in -1..1 at another size, by Lanczos as Pillow computes it, through 8 bits."""
    resized = [image.resize((width, height), Image.Resampling.LANCZOS) for image in to_pil(images)]
    return torch.stack([from_pil(image) for image in resized])


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image of mode L or RGB to (C, H, W) float32 in -1..1."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return to_signed(pixels.reshape(image.height, image.width, -1).permute(2, 0, 1))


def grid(images: Tensor, columns: int, border: int = 2) -> Tensor:
    """Lay pictures (B, C, H, W) in -1..1 out in rows of ``columns``: one picture (C, H', W') on white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + border) + border, columns * (width + border) + border)
    for i, picture in enumerate(images.float().cpu()):
        top = border + (i // columns) * (height + border)
        left = border + (i % columns) * (width + border)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def check_writable(path: Path) -> None:
    """Look whether a picture could be written at ``path``, and change nothing.

    Raises:
        UserError: it could not; better said before the drawing than after it.
    """
    choose(path.suffix.lower(), FORMATS, "picture format")
    try:
        taken = path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if taken:
        raise UserError(f"{path} cannot be written: it is a folder")
    if not path.absolute().parent.exists():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Look whether files could be written in ``folder``, which may have to be made, and change nothing.

    Raises:
        UserError: they could not.
    """
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"nothing can be written in {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"nothing can be written in {folder}: no permission to write in {nearest}")


def save_image(image: Image.Image, path: Path | str, record: Record | None = None, like: Record | None = None) -> None:
    """Write one picture; its format follows the name. Written beside and renamed, so never half there.

    Args:
        image: of mode L or RGB.
        path: where to; its folder is made.
        record: how the picture was drawn; goes into the file, for other programs too. By default that which pictures of
            ``ldm.load`` hold, ``image.info["record"]``.
        like: of a sheet, the record of its first picture, which other programs are told.

    Raises:
        UserError: the name's ending is no known format, the format cannot hold this picture or record, or the
            folder cannot be written.
    """
    path = Path(path)
    if record is None and like is None:
        record = image.info.get("record")
    format = FORMATS[choose(path.suffix.lower(), FORMATS, "picture format")]
    if max(image.size) > _LONGEST_SIDE[format]:
        size = f"{image.width} x {image.height}"
        raise UserError(f"{path} cannot be written: {format} holds {_LONGEST_SIDE[format]} pixels a side, not {size}")
    options = save_options(format, record, like)
    with disk_trouble(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda place: image.save(place, format=format, **options))


def save_grid(images: Tensor, path: Path, columns: int, scale: int = 1) -> None:
    """Write pictures (B, C, H, W) in -1..1 as one sheet, enlarged ``scale`` times without smoothing."""
    sheet = to_pil(grid(images, columns)[None])[0]
    save_image(sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST), path)
