"""The autoencoder's adversary: a patch discriminator and its losses (Isola et al. 2017, Esser et al. 2021).

The discriminator says of every patch of an image whether it is real or reconstructed; the autoencoder is
rewarded for patches that pass. The hinge loss asks no more of the discriminator where it is already sure:

    L_D = 1/2 E[max(0, 1 - D(real))] + 1/2 E[max(0, 1 + D(fake))],      L_G = -E[D(fake)]

L_G enters the autoencoder's loss with a weight that makes its gradient as large as the reconstruction's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Convolutions 4x4, halving ``layers`` times, then two at stride 1, the last to one logit per patch.

    As in the latent diffusion authors' code: LeakyReLU of slope 0.2, batch norm on all but the first and last
    convolution, convolution weights drawn from N(0, 0.02^2) and norm weights from N(1, 0.02^2). With three
    layers a patch is 70x70 pixels; with two, 34x34, enough for 32x32 images.

    Args:
        in_channels: channels of the images.
        channels: width of the first convolution; it doubles with each of the others, up to eight times.
        layers: number of convolutions that halve the image.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            main += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),  # the norm has one
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.main.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, 1, H / 2^layers - 2, W / 2^layers - 2)."""
        return self.main(images)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return L_D, a scalar, from logits of any shape: zero once real is above 1 and fake below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Return L_G, a scalar: minus the mean logit of the reconstructions."""
    return -fake_logits.mean()


def adaptive_weight(
    reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor, maximum: float = 1e4
) -> Tensor:
    """Weigh L_G so that both losses pull equally hard on the decoder's last layer (Esser et al. 2021, eq. 7).

    Args:
        reconstruction_loss: scalar; its graph is kept.
        generator_loss: scalar; its graph is kept.
        last_layer: the parameter at which gradients are measured.
        maximum: upper bound of the weight.

    Returns:
        |grad reconstruction_loss| / (|grad generator_loss| + 1e-4), a detached scalar in 0..maximum. (The
        constant is that of the authors' code; the paper has 1e-6.)
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0.0, maximum).detach()
