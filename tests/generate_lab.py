"""A folder with models, files that change them and pictures, for tests of the command line; and how to call it."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import with_average
from tiny_families import Folders, sd1
from tiny_models import fill

from ldm import cli
from ldm.weights.lora import Lora, LoraLayer
from ldm.weights.lora_files import save_lora
from ldm.weights.lora_names import layers_of
from ldm.weights.model import save_model
from ldm.weights.opening import lora_targets

PROMPT, SEED = "a (thick:1.5) two zebra", 3
COMMON = ["--seed", str(SEED), "--steps", "3"]
Pixels = tuple[str, tuple[int, int], bytes]


def run(*words: str) -> tuple[int, str]:
    """Exit code of ``ldm`` and what it says that went wrong; a traceback fails the test."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.run(cli.app, list(words))
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    raise AssertionError("the command ends the process")


def refused(*words: str) -> str:
    """What ``ldm`` says that is wrong: one line, with exit code 2 and nothing written."""
    before = sorted(Path().rglob("*"))
    code, said = run(*words)
    assert (code, said.count("\n"), said[:7]) == (2, 1, "error: ")
    assert sorted(Path().rglob("*")) == before
    return said


def pixels(image: Image.Image) -> Pixels:
    return image.mode, image.size, image.tobytes()


def furnish(folder: Path) -> None:
    """Fill ``folder``, which is the current one.

    Models ``sd1``, ``other`` of its family, which is also ``pickled``, and ``varied``, which is either; single files
    ``one`` and ``averaged``; ControlNets, a LoRA and a word; ``init.png``, ``mask.png`` and ``prompts.txt``.
    """
    _models(folder)
    _additions(folder)
    colours = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(colours).save("init.png")
    mask = Image.new("L", (48, 40))
    mask.paste(255, (12, 8, 32, 28))
    mask.save("mask.png")
    Path("prompts.txt").write_text("four\n")


def _models(folder: Path) -> None:
    families = Folders(folder)
    plain = families.folder("sd1")
    for seed in (7, 8):
        families.control("sd1", seed)
    other = sd1()
    fill(other.net, 11)
    fill(other.codec.vae, 12)  # type: ignore[attr-defined]
    save_model(other, folder / "other")
    varied = Path(shutil.copytree(plain, "varied"))
    for path in list(varied.rglob("*.safetensors")):
        shutil.copy(Path("other") / path.relative_to("varied"), path.with_suffix(".fp16.safetensors"))
    assert run("convert", "sd1", "one.safetensors", "--to", "single-file") == (0, "")
    tensors = load_file("one.safetensors")
    with safe_open("one.safetensors", "pt") as file:
        save_file(with_average(tensors), "averaged.safetensors", metadata=file.metadata())
    weights = Path(shutil.copytree("other", "pickled")) / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def _additions(folder: Path) -> None:
    noise = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    layers = {
        target: {
            name: LoraLayer(noise(2, *layer.weight.shape[1:]), noise(layer.weight.shape[0], 2), 0.5)
            for name, layer in layers_of(module).items()
            if layer.weight.ndim == 2
        }
        for target, module in lora_targets(sd1()).items()
    }
    save_lora(Lora("style", layers), folder / "style.safetensors")
    save_file({"emb_params": noise(2, 24)}, "zebra.safetensors")
