"""What drawing takes, part by part: the other side of the bill that training is."""

from __future__ import annotations

from ldm.cost.architecture import Architecture
from ldm.cost.inventory import networks_of

_NOT_IN_IT = "VAE encoder"


def count_drawing(
    shape: Architecture, side: int, batch: int = 1, asks: int = 1, guided: bool = False
) -> dict[str, int]:
    """Operations in which pictures are drawn from nothing.

    Args:
        shape: of the networks.
        side: height and width of a picture, in pixels.
        batch: pictures.
        asks: how often a sampler asks the network for an estimate; 1 tells of a single call.
        guided: with classifier-free guidance, each estimate is two, and so are the texts of each picture.

    Returns:
        Operations by part: ``U-Net``, and where there are such ``VAE decoder`` and each ``text encoder``.
    """
    twice = 2 if guided else 1
    found = {}
    for name, network in networks_of(shape, side).items():
        if name != _NOT_IN_IT:
            times = 1 if name == "VAE decoder" else twice * asks if name == "U-Net" else twice
            found[name] = batch * times * network.flops
    return found
