"""What an autoencoder loses, and what its latents are like: the best that any model in its latents can do.

Pictures are encoded to the mean of their latents and decoded. Beside PSNR and SSIM (Wang et al. 2004) stands a distance
as a network sees it: the mean of |f(decoded) - f(picture)| over the mean of |f(other picture) - f(picture)|, so that 0
is no difference and 1 is as far as another picture of the set.

Of the latents, as the diffusion sees them (scaled), there are the mean and standard deviation of every channel, which
should be near 0 and 1, and the divergence KL(N(mean, std) || N(0, 1)) of those that the encoder gives, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.codec import VAECodec
from ldm.evaluate.distance import frechet_distance
from ldm.evaluate.features import Features
from ldm.evaluate.fidelity import torchmetrics
from ldm.evaluate.fitting import to_channels
from ldm.evaluate.gathering import exact_float32, in_order
from ldm.evaluate.metric import HIGHER, LOWER, Metric
from ldm.evaluate.reference import RealPictures
from ldm.images import to_bytes, to_signed
from ldm.models.vae import kl, split_moments
from ldm.training.parallel import Team

SHOWN = 16  # pictures that are kept
MOST_PSNR = 10 * math.log10(12 * 255**2)  # dB: of the error that rounding to 8 bits makes, below which none is seen


@dataclass(frozen=True)
class Latents:
    """What the latents of a set of pictures are like, as the diffusion sees them.

    Attributes:
        mean, std: of each channel, over all pictures and places.
        noise: the mean standard deviation that the encoder gives to a value of each channel.
        kl: nats of a picture, as the encoder gives them (not scaled); the mean.
        values: numbers of a picture's latents.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise: tuple[float, ...]
    kl: float
    values: int


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder does to pictures.

    Attributes:
        metrics: PSNR, SSIM, and the distances in each network.
        latents: see there.
        first: uint8 (at most ``SHOWN``, 2, C, H, W): pictures and what came back.
    """

    metrics: tuple[Metric, ...]
    latents: Latents
    first: Tensor


def measure_reconstruction(
    codec: VAECodec,
    real: RealPictures,
    described: Sequence[Tensor] | None,
    networks: Sequence[Features],
    team: Team,
    workers: int = 0,
) -> Reconstruction | None:
    """Encode and decode pictures, and measure what came back; all but the main process get None.

    Args:
        codec: the autoencoder, on its device.
        real: the pictures; grey or colours, as it reads them.
        described: their features in each network, in the main process.
        networks: of features.
        team: shares the work.
        workers: processes that open pictures.

    Raises:
        UserError: a picture cannot be used, or is smaller than SSIM needs.
    """

    def parts() -> Iterator[tuple[range, _Part]]:
        for batch, images in real.pictures.batches(team, workers, "reconstruction"):
            with exact_float32():
                yield batch, _part(codec, images, networks, max(0, SHOWN - batch.start))

    found = in_order(parts(), team)
    if found is None:
        return None
    assert described is not None
    count = len(real)
    psnr, ssim = (torch.cat([getattr(part, name) for part in found]) for name in ("psnr", "ssim"))
    metrics = [
        Metric("PSNR", *_mean_std(psnr)[:1], HIGHER, "", count, spread=_mean_std(psnr)[1], note="dB, decoded"),
        Metric("SSIM", *_mean_std(ssim)[:1], HIGHER, "", count, spread=_mean_std(ssim)[1], note="decoded"),
    ]
    for k, network in enumerate(networks):
        decoded = torch.cat([part.features[k] for part in found])
        metrics += _seen(decoded, described[k], network.name)
    return Reconstruction(tuple(metrics), _latents(found), torch.cat([part.first for part in found]))


@dataclass(frozen=True)
class _Part:
    """What is found out about a batch; sums are of float64."""

    psnr: Tensor  # (B,)
    ssim: Tensor  # (B,)
    features: list[Tensor]
    kl: Tensor  # (B,)
    sums: Tensor  # (3, channels): of the values, of their squares with the encoder's variance, of its deviation
    places: int
    first: Tensor


@torch.inference_mode()
def _part(codec: VAECodec, images: Tensor, networks: Sequence[Features], shown: int) -> _Part:
    images = to_channels(images, codec.colours)
    signed = to_signed(images)
    moments = codec.encode(signed)
    decoded = codec.decode(codec.mean(moments)).cpu()
    mean, logvar = (x.double().cpu() for x in split_moments(moments))
    mean, std = mean * codec.scale, (logvar / 2).exp() * codec.scale
    sums = torch.stack([x.sum((0, 2, 3)) for x in (mean, mean**2 + std**2, std)])
    back = to_bytes(decoded)
    return _Part(
        psnr=_psnr(decoded, signed),
        ssim=_ssim(decoded, signed),
        features=[network.describe(back) for network in networks],
        kl=kl(moments.double()).cpu(),
        sums=sums,
        places=mean[:, 0].numel(),
        first=torch.stack([images, back], dim=1)[:shown],
    )


def _psnr(decoded: Tensor, signed: Tensor) -> Tensor:
    """(B,) in dB."""
    ratio = torchmetrics("functional.image").peak_signal_noise_ratio
    found = ratio(decoded.double(), signed.double(), data_range=2.0, dim=(1, 2, 3), reduction="none")
    return found.clamp(max=MOST_PSNR)


def _ssim(decoded: Tensor, signed: Tensor) -> Tensor:
    """(B,); at most 1. It compares means, so that it is of values 0..1, as usual, and not -1..1."""
    similarity = torchmetrics("functional.image").structural_similarity_index_measure
    a, b = ((x.double() + 1) / 2 for x in (decoded, signed))
    return similarity(a, b, data_range=1.0, reduction="none").reshape(-1)


def _mean_std(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std(correction=0).item()


def _seen(decoded: Tensor, described: Tensor, network: str) -> list[Metric]:
    count, unit = len(decoded), "decoded; 1 is another picture"
    moved = (decoded.double() - described.double()).norm(dim=1).mean()
    apart = (described.double().roll(1, 0) - described.double()).norm(dim=1).mean()
    distance = frechet_distance(decoded, described)
    return [
        Metric("perceptual distance", (moved / apart).item(), LOWER, network, count, note=unit),
        Metric("Fréchet distance", distance, LOWER, network, count, count, note="decoded against the same pictures"),
    ]


def _latents(parts: Sequence[_Part]) -> Latents:
    places = sum(part.places for part in parts)
    mean, square, noise = torch.stack([part.sums for part in parts]).sum(0) / places
    pictures = sum(len(part.kl) for part in parts)
    return Latents(
        mean=tuple(mean.tolist()),
        std=tuple((square - mean**2).sqrt().tolist()),
        noise=tuple(noise.tolist()),
        kl=torch.cat([part.kl for part in parts]).mean().item(),
        values=places * len(mean) // pictures,
    )
