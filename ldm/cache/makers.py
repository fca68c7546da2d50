"""What moments and contexts are made by: autoencoders and text encoders, told from others by their weights.

Weights are hashed as they were loaded, wherever from and whatever was merged into them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ldm.cache.fingerprint import Trait
from ldm.codec import VAECodec
from ldm.text_conditioner import TextConditioner

_NOT_OF_ENCODING = ("scaling_factor", "sample_size", "out_channels")
_OF_TOWERS = ("hidden_act", "num_attention_heads", "num_hidden_layers", "layer_norm_eps", "max_position_embeddings")


def vae_traits(codec: VAECodec, place: str) -> dict[str, Trait]:
    """The autoencoder, read from ``place``, as part of a recipe."""
    shape = {k: v for k, v in codec.vae.config.model_dump(mode="json").items() if k not in _NOT_OF_ENCODING}
    encoding = {"encoder": codec.vae.encoder, "quant_conv": codec.vae.quant_conv}
    return {"the VAE": Trait(place, _hash(shape, *encoding.values()))}


def text_traits(conditioner: TextConditioner, place: str) -> dict[str, Trait]:
    """Text encoders and tokenizers, read from ``place``, as parts of a recipe."""
    towers = conditioner.towers
    shapes = [{name: getattr(tower.encoder.config, name) for name in _OF_TOWERS} for tower in towers]
    encoders = _hash([shapes, conditioner.zero_for_none], *(tower.encoder for tower in towers))
    words = _hash([tower.tokenizer.backend_tokenizer.to_str() for tower in towers])
    return {"the text encoder": Trait(place, encoders), "the tokenizer": Trait(place, words)}


def _hash(told: Any, *modules: nn.Module) -> str:
    """Of plain data, and of the names, shapes and bits of all weights."""
    state = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            state.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return state.hexdigest()
