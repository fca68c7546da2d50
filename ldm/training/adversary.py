"""The discriminator as a player: of an autoencoder, or of a generator."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from torch import Tensor, nn

from ldm.data.samples import Batch
from ldm.models.discriminator import PatchDiscriminator, hinge_discriminator_loss
from ldm.training.tasks import Borrowed, Losses


class Judged(Protocol):
    """Who plays first.

    Attributes:
        seen: pictures of the data and its own, oldest first, that the adversary has yet to judge in this step.
    """

    seen: deque[tuple[Tensor, Tensor]]


class AdversaryPlayer(nn.Module):
    """The discriminator, on the batches that the other player has just seen."""

    def __init__(self, adversary: PatchDiscriminator, other: Judged) -> None:
        super().__init__()
        self.adversary = adversary
        self._other = Borrowed(other)

    def forward(self, batch: Batch, step: int) -> Losses:
        real, fake = self._other.module.seen.popleft()
        loss = hinge_discriminator_loss(self.adversary(real).float(), self.adversary(fake).float())
        count = loss.new_full((), float(len(real)))
        return Losses(loss, {"discriminator": (loss.detach() * count, count)})
