"""Textual inversion: a new word's token embeddings are trained, and nothing else (Gal et al. 2022, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.publishing import write_whole
from ldm.text_conditioner import Tower
from ldm.training.tune_settings import InversionTune
from ldm.weights.embeddings import Embedding, add_embedding
from ldm.weights.files import write_tensors
from ldm.weights.parts import TEXT_ENCODERS
from ldm.weights.tuned import EMBEDDING_FILE

_XL = ("clip_l", "clip_g")


class LearnedRows(nn.Module):
    """A table of token embeddings whose last rows are trained; the others cannot change.

    Attributes:
        rows: the trained ones, (n, D) float32.
    """

    def __init__(self, table: nn.Embedding, first: int, count: int) -> None:
        """``first``: id of the first trained row; ``count`` of them follow one another."""
        super().__init__()
        self.table = table.requires_grad_(False)
        self.first = first
        self.rows = nn.Parameter(table.weight[first : first + count].detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """Of the table; encoders look here for their dtype and device."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to embeddings (B, L, D)."""
        own = ids - self.first
        learned = (own >= 0) & (own < len(self.rows))
        rows = self.rows[own.clamp(0, len(self.rows) - 1)]
        found = self.table(ids)
        return torch.where(learned[..., None], rows.to(found.dtype), found)


def add_word(towers: tuple[Tower, ...], tune: InversionTune) -> list[LearnedRows]:
    """Teach text encoders a new word that begins as another one; its rows alone are trained from now on.

    Args:
        towers: changed in place.
        tune: the words.

    Raises:
        UserError: the new word is known already, or the other one says nothing.
    """
    found = []
    for name, (encoder, tokenizer) in zip(TEXT_ENCODERS, towers, strict=False):
        encoder.requires_grad_(False)
        ids = tokenizer(tune.initializer, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"tune.initializer {tune.initializer!r} is no word")
        if len(tokenizer(tune.token, add_special_tokens=False).input_ids) == 1:
            raise UserError(f"tune.token {tune.token!r} is a word that the model knows: take one that it does not")
        table = encoder.get_input_embeddings()
        # a longer word's tokens in turn
        begin = table.weight[[ids[k % len(ids)] for k in range(tune.vectors)]].detach()
        tokens = add_embedding(encoder, tokenizer, Embedding(tune.token, {name: begin}), name)
        rows = LearnedRows(encoder.get_input_embeddings(), tokenizer.convert_tokens_to_ids(tokens[0]), tune.vectors)
        encoder.set_input_embeddings(rows)
        found.append(rows)
    return found


def check_captions(token: str, captions: list[str]) -> None:
    """Refuse captions that do not say the word that they are to teach.

    Raises:
        UserError: naming one.
    """
    silent = [caption for caption in captions if token not in caption]
    if silent:
        raise UserError(
            f"{len(silent)} of the first {len(captions)} captions do not have the word {token!r} that they are to "
            f"teach, such as {silent[0]!r}; captions.prefix puts it before all of them"
        )


def rows_of(encoder: nn.Module) -> Tensor:
    """The trained rows of a text encoder, (n, D)."""
    found: Any = next(part for part in encoder.modules() if isinstance(part, LearnedRows))
    return found.rows.detach()


def write_word(folder: Path, token: str, vectors: Mapping[str, Tensor]) -> Path:
    """Write a learned word as diffusers and web UIs read it.

    With one text encoder it is ``learned_embeds.safetensors``, whose tensor is named as the word; with the two of SDXL
    the file is named as the word, and its tensors as the encoders.

    Args:
        folder: where to.
        token: the word.
        vectors: "text_encoder" and maybe "text_encoder_2" -> (n, D).
    """
    names = (token,) if len(vectors) == 1 else _XL
    path = folder / (EMBEDDING_FILE if len(vectors) == 1 else f"{token}.safetensors")
    tensors: dict[str, Tensor] = dict(zip(names, vectors.values(), strict=True))
    write_whole(path, lambda file: write_tensors(file, tensors))
    return path
