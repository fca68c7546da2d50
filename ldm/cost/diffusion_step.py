"""The forward and backward passes of one step of diffusion or distillation, to be run on paper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.conditioner import LabelConditioner
from ldm.cost.architecture import Architecture
from ldm.cost.counting import Ledger
from ldm.errors import UserError
from ldm.models.unet import UNet
from ldm.models.unet_config import SIZES, UNetConfig
from ldm.models.vae import AutoencoderKL, sample_moments
from ldm.training.lora_training import add_lora, halve
from ldm.training.tasks import recompute_activations
from ldm.training.textual_inversion import LearnedRows
from ldm.training.tune_settings import FullTune, InversionTune, LoraTune

UNET, VAE, TEXT, LABELS, TEACHER, TARGET = (
    "U-Net",
    "VAE",
    "text encoder",
    "label tokens",
    "teacher",
    "target network",
)


class Backward(NamedTuple):
    """A backward pass that is due: of which part, from what, with which gradient (that of a sum where None)."""

    part: str
    outputs: Tensor
    leaf: Tensor | None = None


@dataclass
class DiffusionStep:
    """One micro-batch.

    Attributes:
        shape: of the networks.
        batch: pictures.
        side: height and width of a picture, in pixels.
        half: autocast.
        frozen: dtype of what is not trained.
        checkpointing: recompute activations.
        encodes, reads: whether the VAE and the text encoders run within, as no cache stands for them.
        tune: what is trained.
        waves: width in which a student is told its guidance; None where it is told none.
        asked: how often a teacher is asked for each picture; 0 where there is none.
    """

    shape: Architecture
    batch: int
    side: int
    half: torch.dtype | None = None
    frozen: torch.dtype = torch.float32
    checkpointing: bool = False
    encodes: bool = True
    reads: bool = True
    tune: FullTune | LoraTune | InversionTune = field(default_factory=FullTune)
    waves: int | None = None
    asked: int = 0
    networks: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """That are diffused for each picture."""
        return self.shape.diffused * (self.side // self.shape.factor) ** 2

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts whose frozen weights are counted elsewhere: as the average, or as the teacher that a LoRA is beside."""
        return (TARGET, UNET) if self.asked and isinstance(self.tune, LoraTune) else (TARGET,)

    def build(self) -> dict[str, nn.Module]:
        """Make the networks, trained and frozen as in training; called on ``meta``."""
        shape, trains_text = self.shape, self._trains_text
        found: dict[str, nn.Module] = {}
        if self.asked:
            found[TEACHER] = self._frozen(shape.build_net())
            found[TARGET] = self._frozen(self._student())  # the moving average, kept in float32
        found[UNET] = self._trained(self._student())
        if shape.labels is not None and isinstance(shape.net, UNetConfig):
            width = shape.net.cross_attention_dim
            assert width is not None
            found[LABELS] = LabelConditioner(shape.labels, width).requires_grad_(isinstance(self.tune, FullTune))
        if shape.towers and self.reads:
            towers = nn.ModuleList(tower.build() for tower in shape.towers)
            found[TEXT] = self._tuned_text(towers) if trains_text else self._frozen(towers, self.frozen)
        if shape.vae is not None and self.encodes:
            found[VAE] = self._frozen(AutoencoderKL(shape.vae), self.frozen)
        self.networks = found
        return found

    def turns(self, ledger: Ledger) -> Iterator[list[Backward]]:
        """See :class:`ldm.cost.step.Step`."""
        yield self._forward(ledger)

    def _forward(self, ledger: Ledger) -> list[Backward]:
        with torch.autocast("cpu", self.half, enabled=self.half is not None):
            x = self._clean(ledger)
            tokens, pooled = self._context(ledger)
            named, leaf = self._inputs(x, tokens, pooled)
            t = torch.empty(self.batch)
            if self.asked:
                self._ask(ledger, x, t, named)
                named |= {"guidance": torch.empty(self.batch)} if self.waves else {}
            with ledger.of(UNET):
                loss = (self.networks[UNET](x, t, **named).float() - torch.empty(self._space)).square().mean()
        due = [Backward(UNET, loss)]
        if tokens is not None and tokens.requires_grad:
            due.append(Backward(TEXT if TEXT in self.networks else LABELS, tokens, leaf))
        return due

    # ------------------------------------------------------------------ the networks

    @property
    def _trains_text(self) -> bool:
        return isinstance(self.tune, InversionTune) or self.tune.text_encoder

    def _student(self) -> Any:
        net = self.shape.net
        if self.waves and isinstance(net, UNetConfig):
            net = net.model_copy(update={"time_cond_proj_dim": self.waves})
        return UNet(net) if isinstance(net, UNetConfig) else self.shape.build_net()

    def _trained(self, net: Any) -> nn.Module:
        if not isinstance(self.tune, FullTune):
            net.requires_grad_(False)
            if self.frozen != torch.float32:
                halve(net, self.frozen)
            if isinstance(self.tune, LoraTune):
                if not isinstance(net, UNet):
                    raise UserError("a LoRA changes a U-Net, and this model has none")
                add_lora({"unet": net}, self.tune)
        if isinstance(net, UNet):
            net.gradient_checkpointing = self.checkpointing
        return net.train()

    def _tuned_text(self, towers: nn.ModuleList) -> nn.Module:
        if isinstance(self.tune, LoraTune):
            add_lora({f"text_encoder{i + 1}": tower for i, tower in enumerate(towers)}, self.tune)
        if isinstance(self.tune, InversionTune):
            towers.requires_grad_(False)
            for tower in towers:
                _learn_rows(tower, self.tune.vectors)
        for tower in towers if self.checkpointing else ():
            recompute_activations(tower)
        return towers.train()

    @staticmethod
    def _frozen(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        return module.to(dtype).eval().requires_grad_(False)

    # -------------------------------------------------------------------- the inputs

    @property
    def _space(self) -> tuple[int, int, int, int]:
        side = self.side // self.shape.factor
        return self.batch, self.shape.diffused, side, side

    def _clean(self, ledger: Ledger) -> Tensor:
        """x_t (B, C, h, w), and what an inpainting network reads beside it."""
        noise = torch.empty(self._space)
        calls = 2 if self.shape.inpaints else 1  # the masked picture is encoded too
        x = noise
        if VAE in self.networks:
            vae: Any = self.networks[VAE]
            with torch.no_grad(), ledger.of(VAE):
                for _ in range(calls):
                    images = torch.empty(self.batch, self.shape.colours, self.side, self.side)
                    x = sample_moments(vae.encode(images.to(self.frozen)).float(), noise)
        more = self.shape.net.in_channels - self.shape.diffused
        x = x + torch.empty(self._space)
        return torch.cat([x, torch.empty(self.batch, more, *self._space[2:])], dim=1) if more else x

    def _context(self, ledger: Ledger) -> tuple[Tensor | None, Tensor | None]:
        """States (B, L, D) and the pooled vector (B, P), of captions or labels."""
        net, towers = self.shape.net, self.shape.towers
        if not isinstance(net, UNetConfig) or not net.reads_context:
            return None, None
        pooled = None if net.pooled_dim is None else torch.empty(self.batch, net.pooled_dim)
        if LABELS in self.networks:
            with ledger.of(LABELS):
                return self.networks[LABELS].embedding(torch.zeros(self.batch, dtype=torch.long))[:, None], pooled  # pyright: ignore
        if TEXT not in self.networks:
            length = min((tower.window for tower in towers), default=1)
            return torch.empty(self.batch, length, net.cross_attention_dim or 1), pooled
        states = []
        encoders: Any = self.networks[TEXT]
        with torch.set_grad_enabled(self._trains_text), ledger.of(TEXT):
            for shape, encoder in zip(towers, encoders, strict=True):
                ids = torch.zeros(self.batch, shape.window, dtype=torch.long)
                out = encoder(ids, output_hidden_states=len(towers) > 1)
                states.append(out.hidden_states[-2] if len(towers) > 1 else out.last_hidden_state)
        return torch.cat(states, dim=-1).float(), pooled

    def _inputs(
        self, x: Tensor, tokens: Tensor | None, pooled: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the U-Net is called with, and the leaf at which its backward pass leaves the gradient of the states."""
        named, leaf = {}, None
        if tokens is not None:
            leaf = tokens.detach().requires_grad_(tokens.requires_grad)
            named["context"] = leaf
        if pooled is not None:
            named |= {"pooled": pooled, "sizes": torch.empty(len(x), SIZES)}
        return named, leaf

    @torch.no_grad()
    def _ask(self, ledger: Ledger, x: Tensor, t: Tensor, named: dict[str, Tensor]) -> None:
        """What a student learns from: its teacher, with and without the condition, and its own average."""
        with ledger.of(TEACHER):
            both = {name: torch.cat([value] * self.asked) for name, value in named.items()}
            self.networks[TEACHER](torch.cat([x] * self.asked), torch.cat([t] * self.asked), **both)
        told = {"guidance": torch.empty(self.batch)} if self.waves else {}
        with ledger.of(TARGET):
            self.networks[TARGET](x, t, **named, **told)


def run_backward(due: list[Backward], ledger: Ledger) -> None:
    """Run the backward passes, forgetting each."""
    while due:
        part, outputs, leaf = due.pop(0)
        with ledger.of(part):
            torch.autograd.backward(outputs, None if leaf is None else leaf.grad)


def _learn_rows(tower: Any, vectors: int) -> None:
    """A new word of so many vectors, its rows of the table alone being trained."""
    embeddings = getattr(tower, "text_model", tower).embeddings
    embeddings.token_embedding = LearnedRows(embeddings.token_embedding, 0, vectors)
