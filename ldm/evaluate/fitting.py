"""Pictures brought to the channels and the size that a network of features reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError

_LUMA = (19595, 38470, 7471)  # of 65536: ITU-R 601, as Pillow turns colours into grey


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Grey pictures as colours, or colours as grey.

    Args:
        images: uint8 (B, 1 or 3, H, W).
        channels: 1 or 3.

    Raises:
        UserError: the pictures have another number of channels.
    """
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] != 3 or channels != 1:
        raise UserError(f"pictures with {images.shape[1]} channels cannot be brought to {channels}")
    weights = torch.tensor(_LUMA, dtype=torch.int32, device=images.device)[:, None, None]
    return (((images.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16).to(torch.uint8)


def cover(images: Tensor, shortest: int, mode: str) -> Tensor:
    """Resize pictures, smoothed where they shrink, until their shorter side is ``shortest``.

    Args:
        images: uint8 (B, C, H, W).
        shortest: pixels.
        mode: ``bilinear`` or ``bicubic``, as Pillow has them.

    Returns:
        uint8 (B, C, h, w), on the CPU; the longer side is rounded down.
    """
    height, width = images.shape[-2:]
    least = min(height, width)
    if least == shortest:
        return images.cpu()
    size = [int(shortest * height / least), int(shortest * width / least)]
    # of bytes, on the CPU: there it is Pillow's algorithm, which rounds and clips between the two directions
    return F.interpolate(images.cpu(), size, mode=mode, align_corners=False, antialias=True)


def centre(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of pictures (B, C, H, W); where they are smaller, black comes in from outside."""
    down, across = max(0, height - images.shape[-2]), max(0, width - images.shape[-1])
    if down or across:
        images = F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def check_pictures(images: Tensor) -> None:
    """Refuse what are no pictures.

    Raises:
        ValueError: it is not uint8 (B, C, H, W).
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"pictures are uint8 (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
