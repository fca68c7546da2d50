"""The networks of a diffusion model one by one: how large, and what one forward pass for a picture takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.cost.architecture import Architecture, TowerShape
from ldm.flops import count_flops
from ldm.models.unet_config import SIZES, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig


class Network(NamedTuple):
    """Numbers in it, and operations of a forward pass for one picture."""

    parameters: int
    flops: int


def networks_of(shape: Architecture, side: int, net: Network | None = None) -> dict[str, Network]:
    """U-Net, the halves of the VAE and the text encoders, for pictures of ``side`` pixels.

    Args:
        shape: of the networks.
        side: height and width of a picture.
        net: what is known of the U-Net, which is the longest to count.
    """
    latent = side // shape.factor
    found = {"U-Net": net or _network(shape.build_net, _call_net, _inputs(shape, latent))}
    if shape.vae is not None:
        vae = shape.vae
        images = torch.empty(1, vae.in_channels, side, side, device="meta")
        latents = torch.empty(1, vae.latent_channels, latent, latent, device="meta")
        found["VAE encoder"] = _network(lambda: Encoding(vae), _call, [images])
        found["VAE decoder"] = _network(lambda: Decoding(vae), _call, [latents])
    for i, tower in enumerate(shape.towers):
        name = "text encoder" if len(shape.towers) == 1 else f"text encoder {i + 1}"
        found[name] = _text(tower.kind, json.dumps(tower.config))
    return found


@cache
def _text(kind: str, config: str) -> Network:
    """A text encoder, which is the same at every size of pictures."""
    tower = TowerShape(kind, json.loads(config))
    return _network(tower.build, _call, [torch.zeros(1, tower.window, dtype=torch.long)])


class Encoding(nn.Module):
    """The half of a VAE that training in latents needs."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        vae = AutoencoderKL(config)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to moments."""
        return self.quant_conv(self.encoder(images))


class Decoding(nn.Module):
    """The half of a VAE that drawing needs."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        vae = AutoencoderKL(config)
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """Latents to pictures."""
        return self.decoder(self.post_quant_conv(latents))


def _network(build: Callable[[], nn.Module], call: Callable[..., Any], inputs: list[Tensor]) -> Network:
    with torch.device("meta"):
        module = build()
    numbers = sum(parameter.numel() for parameter in module.parameters())
    return Network(numbers, count_flops(lambda: module, call, inputs))


def _call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def _call_net(module: nn.Module, x: Tensor, t: Tensor, *more: Tensor) -> Any:
    names = ("context", "pooled", "sizes")
    return module(x, t, **dict(zip(names, more, strict=False)))


def _inputs(shape: Architecture, latent: int) -> list[Tensor]:
    net = shape.net
    found = [torch.empty(1, net.in_channels, latent, latent, device="meta"), torch.empty(1)]
    if isinstance(net, UNetConfig) and net.reads_context:
        length = min((tower.window for tower in shape.towers), default=1)
        found.append(torch.empty(1, length, net.cross_attention_dim or 1, device="meta"))
        if net.pooled_dim is not None:
            found += [torch.empty(1, net.pooled_dim), torch.empty(1, SIZES)]
    return found
