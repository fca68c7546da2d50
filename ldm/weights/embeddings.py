"""Textual inversion: words whose token embeddings were learned (Gal et al. 2022), one or several vectors each.

Files come in two forms, from web UIs (A1111) and from diffusers:

A1111      .pt, .bin      {"string_to_param": {"*": (n, D)}, "name": ...}, a pickle
           .safetensors   emb_params (n, D); for SDXL clip_l (n, 768) and clip_g (n, 1280)
diffusers  either         the word itself -> (D,) or (n, D)

A word of n vectors is n tokens of the tokenizer, ``word``, ``word_1``, ... ``word_{n-1}``, as in diffusers; ``expand``
writes them all where a prompt has the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.files import read_tensors
from ldm.weights.pickles import form_of, unpickle

_XL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_NESTED = "string_to_param"


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word.

    Attributes:
        token: how prompts write it.
        vectors: "text_encoder" or "text_encoder_2" -> (n, D), D being the width of that encoder.
    """

    token: str
    vectors: Mapping[str, Tensor]


def load_embedding(path: Path, allow_pickle: bool = False, token: str | None = None) -> Embedding:
    """Read a textual inversion.

    Args:
        path: a ``.safetensors`` file, or with ``allow_pickle`` a ``.pt`` or ``.bin`` file.
        allow_pickle: unpickle, of which only tensors and plain containers are let through.
        token: the word to call it in prompts. By default the one in a file of diffusers, and the name of any other
            file, as in web UIs.

    Raises:
        UserError: the file is missing or damaged, is a pickle and pickles are not allowed, or holds something else.
    """
    found = _read(path, allow_pickle)
    word, vectors = _vectors(path, found)
    token = path.stem if word is None and token is None else token or word
    if not token or any(letter.isspace() for letter in token):
        advice = "rename the file" if word is None else "it is the name of the tensor in the file"
        raise UserError(f"an embedding is called by one word, not {token!r} ({path}): {advice}")
    return Embedding(token, {tower: _checked(path, value) for tower, value in vectors.items()})


def _read(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    if form_of(path) == "safetensors":
        return read_tensors(path)
    found = unpickle(path, allow_pickle)
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no embedding: it is a {type(found).__name__}")
    return found


def _vectors(path: Path, found: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(the word, where the file is diffusers' and says it; tower -> vectors)."""
    if found and set(found) <= set(_XL):
        return None, {_XL[key]: value for key, value in found.items()}
    if set(found) == {"emb_params"}:
        return None, {"text_encoder": found["emb_params"]}
    if _NESTED in found:
        inner = found[_NESTED]
        if not isinstance(inner, Mapping) or len(inner) != 1:
            raise UserError(f"{path} should have one word under {_NESTED}, found {inner!r:.80}")
        return None, {"text_encoder": next(iter(inner.values()))}
    if len(found) == 1:
        ((word, value),) = found.items()
        return str(word), {"text_encoder": value}
    names = ", ".join(str(key) for key in list(found)[:3]) + (", ..." if len(found) > 3 else "")
    raise UserError(
        f"{path} holds no embedding: its {len(found)} keys are {names or 'none'}; expected emb_params, clip_l and "
        f"clip_g, {_NESTED}, or one word"
    )


def _checked(path: Path, value: Any) -> Tensor:
    """As (n, D)."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = f"tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{path} should hold vectors of real numbers, found a {kind}")
    vectors = value.detach()[None] if value.ndim == 1 else value.detach()
    if vectors.ndim != 2 or not vectors.numel():
        raise UserError(f"{path} should hold vectors (n, D), found the shape {tuple(value.shape)}")
    if not vectors.float().isfinite().all():
        raise UserError(f"{path} holds NaN or infinity")
    return vectors


@torch.no_grad()
def add_embedding(encoder: Any, tokenizer: Any, embedding: Embedding, tower: str = "text_encoder") -> list[str]:
    """Teach a text encoder and its tokenizer a word.

    Args:
        encoder: transformers' CLIPTextModel, with or without projection; its table of tokens grows by n rows.
        tokenizer: transformers' CLIPTokenizer; it gains n tokens.
        embedding: the word.
        tower: which of the embedding's vectors.

    Returns:
        The tokens.

    Raises:
        UserError: the embedding is for another encoder, the word means something already, or it does not fit into the
            encoder's window. Then nothing is changed.
    """
    vectors = _fitting(encoder, embedding, tower)
    tokens = [embedding.token, *(f"{embedding.token}_{i}" for i in range(1, len(vectors)))]
    known = tokenizer.get_vocab()
    taken = [token for token in tokens if token in known]
    if taken:
        raise UserError(
            f"the tokenizer has a token {taken[0]!r} already, so the embedding {embedding.token!r} needs another word: "
            "rename the file (one of diffusers holds the word itself, as the name of its tensor)"
        )
    table = encoder.get_input_embeddings()
    tokenizer.add_tokens(tokens)
    if len(tokenizer) > table.num_embeddings:  # some models have spare rows
        table = encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # Where a configuration says 2, transformers takes the highest id for a prompt's end: from now on that is a word.
    encoder.config.eos_token_id = tokenizer.eos_token_id
    getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
    table.weight[tokenizer.convert_tokens_to_ids(tokens)] = vectors.to(table.weight)
    return tokens


def _fitting(encoder: Any, embedding: Embedding, tower: str) -> Tensor:
    word, room = embedding.token, encoder.config.max_position_embeddings - 2  # a window has a start and an end
    if tower not in embedding.vectors:
        raise UserError(
            f"the embedding {word!r} is for another family of models: it has vectors for "
            f"{', '.join(embedding.vectors)}, none for {tower}"
        )
    vectors, width = embedding.vectors[tower], encoder.get_input_embeddings().embedding_dim
    if vectors.shape[1] != width:
        raise UserError(
            f"the embedding {word!r} is for another family of models: its vectors have width {vectors.shape[1]}, and "
            f"those of the model's {tower} have {width}"
        )
    if len(vectors) > room:
        raise UserError(f"the embedding {word!r} has {len(vectors)} vectors, and a prompt has room for {room}")
    return vectors
