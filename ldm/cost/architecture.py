"""Which networks a training step is made of: their shapes, without a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ldm.codec import VAECodec
from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.models.unet import UNet
from ldm.models.unet_config import UNetConfig
from ldm.models.vae import VAEConfig
from ldm.text_conditioner import TextConditioner
from ldm.training.settings import (
    DiffusionRun,
    LabelConditionConfig,
    TextConditionConfig,
    VAECodecConfig,
)
from ldm.weights.components import load_tower
from ldm.weights.families import FAMILIES, text_config, vae_config
from ldm.weights.model import load_vae, resolve
from ldm.weights.opening import Loading, open_model

_SDXL_WIDTHS = (768, 1280)


@dataclass(frozen=True)
class TowerShape:
    """A text encoder of transformers.

    Attributes:
        kind: its class.
        config: its ``config.json``.
    """

    kind: str
    config: dict[str, Any]

    @classmethod
    def of(cls, encoder: nn.Module) -> TowerShape:
        """The shape of an encoder."""
        config: Any = encoder.config
        return cls(type(encoder).__name__, config.to_dict())

    def build(self) -> Any:
        """The encoder, with first weights."""
        import transformers

        return getattr(transformers, self.kind)(transformers.CLIPTextConfig.from_dict(self.config))

    @property
    def window(self) -> int:
        """Tokens that it reads."""
        return int(self.config["max_position_embeddings"])


@dataclass(frozen=True)
class Architecture:
    """The networks of a diffusion model.

    Attributes:
        net: what denoises.
        vae: what makes latents; None for pixels.
        towers: what reads captions.
        labels: classes, where they are what conditions it.
    """

    net: UNetConfig | ToyUNetConfig
    vae: VAEConfig | None = None
    towers: tuple[TowerShape, ...] = ()
    labels: int | None = None

    @property
    def factor(self) -> int:
        """Pixels along a side for one number of what is diffused."""
        return 1 if self.vae is None else self.vae.factor

    @property
    def colours(self) -> int:
        """Channels of a picture."""
        return self.net.in_channels if self.vae is None else self.vae.in_channels

    @property
    def diffused(self) -> int:
        """Channels of what is diffused; an inpainting network reads more beside them."""
        return self.net.out_channels if isinstance(self.net, UNetConfig) else self.net.in_channels

    @property
    def inpaints(self) -> bool:
        """Whether the network reads a mask and the masked picture beside."""
        return self.net.in_channels > self.diffused

    @property
    def side(self) -> int | None:
        """Height and width in pixels that it is meant for; None where it does not say."""
        return self.factor * self.net.sample_size if isinstance(self.net, UNetConfig) else None

    def build_net(self) -> UNet | ToyUNet:
        """The network, with first weights."""
        return UNet(self.net) if isinstance(self.net, UNetConfig) else ToyUNet(self.net)


def of_family(name: str, side: int) -> Architecture:
    """The networks of a family of Stable Diffusion, for pictures of ``side`` pixels.

    Raises:
        UserError: the family is unknown, or has no such pictures.
    """
    families = {family.name: family for family in FAMILIES}
    family = families[choose(name, families, "family")]
    net = UNetConfig.from_diffusers(family.unet_config(side))
    vae = VAEConfig.from_diffusers(vae_config(family.scaling_factor, side))
    widths = (family.context,) if len(family.text_encoders) == 1 else _SDXL_WIDTHS
    configs = [text_config(width) for width in widths]
    return Architecture(net, vae, tuple(TowerShape(config["architectures"][0], config) for config in configs))


def of_run(run: DiffusionRun) -> Architecture:
    """The networks of a run; of those it finds finished, only the shapes are read.

    Raises:
        UserError: a model that it needs is not to be had.
    """
    if run.model is not None:
        return of_model(run.model, run.loading)
    net = run.unet or run.toy
    assert net is not None
    vae = load_vae(resolve(run.codec.path)).config if isinstance(run.codec, VAECodecConfig) else None
    if isinstance(run.condition, TextConditionConfig):
        return Architecture(net, vae, (TowerShape.of(load_tower(resolve(run.condition.path)).encoder),))
    labels = run.condition.classes if isinstance(run.condition, LabelConditionConfig) else None
    if labels is not None and getattr(net, "cross_attention_dim", None) is None:
        raise UserError("condition.kind = label needs unet.cross_attention_dim, the width of its token")
    return Architecture(net, vae, labels=labels)


def of_model(place: str, loading: Loading) -> Architecture:
    """The networks of a finished model.

    Raises:
        UserError: it cannot be read.
    """
    model = open_model(place, loading)
    config: Any = model.net.config
    vae = model.codec.vae.config if isinstance(model.codec, VAECodec) else None
    conditioner = model.conditioner
    towers = conditioner.towers if isinstance(conditioner, TextConditioner) else ()
    labels = conditioner.classes if isinstance(conditioner, LabelConditioner) else None
    return Architecture(config, vae, tuple(TowerShape.of(tower.encoder) for tower in towers), labels)
