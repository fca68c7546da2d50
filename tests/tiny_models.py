"""Models of random weights, small enough to draw within a test; every parameter is moved off its first value."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.codec import PixelCodec, VAECodec
from ldm.conditioner import LabelConditioner, NoConditioner
from ldm.diffusion.settings import ProcessConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.studio import Studio
from ldm.text_conditioner import TextConditioner, Tower
from ldm.training.clip_task import learn_tokenizer
from ldm.weights.model import Model, save_model

WINDOW, WIDTH = 16, 24
WORDS = ["a handwritten seven", "a thick tall one slanted to the right", "two", "three", "four"]
SD_PROCESS = ProcessConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, set_alpha_to_one=False
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
TENSOR_FILES = {
    "text": [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"],
    "label": [f"label_encoder/{WEIGHTS}"],
}


def fill(module: nn.Module, seed: int = 0, scale: float = 0.05) -> Any:
    """Add noise to every parameter, so that no bias is 0 and no scale is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def unet(channels: int, context: int | None) -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=channels,
        out_channels=channels,
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention=(False, True),
        num_attention_heads=2,
        cross_attention_dim=context,
        norm_num_groups=8,
    )
    return fill(UNet(config))


def vae(channels: int = 1) -> AutoencoderKL:
    torch.manual_seed(1)
    config = VAEConfig(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
    )
    return fill(AutoencoderKL(config), 1)


@functools.cache
def tokenizer_of_words() -> Any:
    """One for all models of a test run: where pairs of letters are equally frequent, learning is left to chance."""
    return learn_tokenizer(WORDS, 560, WINDOW)


def text_conditioner() -> TextConditioner:
    torch.manual_seed(2)
    tokenizer = tokenizer_of_words()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextConditioner(Tower(fill(CLIPTextModel(config), 2), tokenizer))


def unconditional_model() -> Model:
    return Model(unet(1, None), ProcessConfig(), "epsilon", PixelCodec(1), NoConditioner(), (8, 8))


def label_model() -> Model:
    torch.manual_seed(3)
    labels = fill(LabelConditioner(10, WIDTH), 3).requires_grad_(False)
    defaults = {"sampler": "dpm++_2m", "steps": 3, "guidance": 2.0}
    return Model(unet(1, WIDTH), ProcessConfig(), "epsilon", PixelCodec(1), labels, (8, 8), defaults)


def text_model(channels: int = 1) -> Model:
    """Latents of 4 channels at a factor of 4; the process is that of Stable Diffusion 1.x."""
    codec = VAECodec(vae(channels))
    defaults = {"sampler": "ddim", "steps": 3, "guidance": 3.0}
    return Model(unet(4, WIDTH), SD_PROCESS, "epsilon", codec, text_conditioner(), (32, 32), defaults)


MODELS = {"unconditional": unconditional_model, "label": label_model, "text": text_model}


def pipeline(model: Model) -> Studio:
    return Studio(model, torch.device("cpu"), torch.float32)


def written(kind: str, folder: Path, dtype: torch.dtype | None = None) -> Path:
    """A model folder of one of ``MODELS``."""
    save_model(MODELS[kind](), folder, dtype)
    return folder
