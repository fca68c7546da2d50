"""The files that the README talks of, tiny and of random weights, under the names that it uses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from test_convert import foreign, made_lora
from test_single_file import full_size, shapes_of
from tiny_families import control_net

from ldm.weights.components import save_module
from ldm.weights.converting import convert_model
from ldm.weights.families import FAMILIES, SD_SCALE, Part
from ldm.weights.lora_files import save_lora
from ldm.weights.opening import Loading, lora_targets, open_model
from ldm.weights.single_file import joined, read_single_file, write_single_file

SIDE = 32


def put_weights(place: Path) -> None:
    """Models in each form, and what can be put into them."""
    model = single_file(place / "model.safetensors")
    foreign("sdxl", place / "turbo.safetensors")
    inpainting(model, place / "inpainting.safetensors")
    convert_model(model, place / "sd15", "diffusers", dtype=torch.float16, half_variant=True)
    full_checkpoint(place / "model.ckpt")
    vae = read_single_file(model).parts["vae"]
    vae.tensors = {name: tensor * 1.1 for name, tensor in vae.tensors.items()}
    write_single_file({"vae": vae}, place / "vae.safetensors")
    save_lora(made_lora(lora_targets(open_model(model, Loading()))), place / "style.safetensors")
    save_file({"emb_params": torch.randn(2, 24)}, place / "my-word.safetensors")
    save_module(control_net("sd1", 0), place / "canny")


def single_file(place: Path) -> Path:
    """A model for CLIP's own vocabulary in the layout of CompVis."""
    parts = read_single_file(foreign("sd1", place)).parts
    parts["vae"].config["scaling_factor"] = SD_SCALE
    write_single_file(parts, place, title="a tiny model")
    return place


def inpainting(model: Path, place: Path) -> None:
    """The same model with a first convolution of nine channels."""
    found = read_single_file(model)
    net = found.parts["unet"]
    first = net.tensors["conv_in.weight"]
    extra = 0.1 * torch.randn(len(first), 5, *first.shape[2:], generator=torch.Generator().manual_seed(1))
    tensors = {**net.tensors, "conv_in.weight": torch.cat([first, extra], dim=1)}
    write_single_file({**found.parts, "unet": Part({**net.config, "in_channels": 9}, tensors)}, place)


def full_checkpoint(place: Path) -> None:
    """A pickle has no header, so its model is of full size; its tensors all begin at one place of a small file."""
    shapes = shapes_of(joined(full_size(FAMILIES[0])))
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    numbers = 0.02 * torch.randn(max(sizes.values()), generator=torch.Generator().manual_seed(2))
    shared = numbers.bfloat16()
    tensors = {name: shared[: sizes[name]].view(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": tensors, "global_step": 840000}, place)


def put_pictures(place: Path) -> None:
    """A photo, a mask, edges, the first two as a pair in a folder, and a folder of pictures with captions."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / "photo.png")
    white = np.zeros((SIDE, SIDE), dtype=np.uint8)
    white[8:24, 8:24] = 255
    Image.fromarray(white).save(place / "mask.png")
    Image.fromarray(rng.choice([0, 255], (SIDE, SIDE)).astype(np.uint8)).save(place / "edges.png")
    (place / "pairs").mkdir()
    shutil.copy(place / "photo.png", place / "pairs" / "a.png")
    shutil.copy(place / "mask.png", place / "pairs" / "a_mask.png")
    (place / "pictures").mkdir()
    for k in range(3):
        colours = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        colours.resize((512, 512), Image.Resampling.NEAREST).save(place / "pictures" / f"{k}.png")
        (place / "pictures" / f"{k}.txt").write_text(f"a photo of zork, number {k}")
