"""The parts of a model folder, each in its own subfolder, in the layout of diffusers.

model_index.json   which parts there are, and (under ``_ldm``) defaults for drawing and provenance
unet/ vae/         config.json + diffusion_pytorch_model.safetensors
text_encoder/      config.json + model.safetensors, as transformers writes them
tokenizer/         as transformers writes it
label_encoder/     config.json + diffusion_pytorch_model.safetensors (ours)
scheduler/         scheduler_config.json
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig, rename_old_attention
from ldm.schema import explain_all
from ldm.weights.files import load_into, read_json, read_tensors, write_json, write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
_TOWER = "text_model."  # prefix of a text encoder's tensors in files; transformers 5 has none in memory


def _label_encoder(config: dict[str, Any]) -> LabelConditioner:
    for key in ("classes", "width"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"{key} should be a whole number of at least 1, got {config[key]!r}")
    return LabelConditioner(config["classes"], config["width"])


# class name in config.json -> module of that shape
BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": lambda config: UNet(UNetConfig.from_diffusers(config)),
    "ToyUNet": lambda config: ToyUNet(ToyUNetConfig(in_channels=config["in_channels"])),
    "AutoencoderKL": lambda config: AutoencoderKL(VAEConfig.from_diffusers(config)),
    "LabelConditioner": _label_encoder,
}


def describe(module: nn.Module) -> dict[str, Any]:
    """The ``config.json`` of a module."""
    if isinstance(module, UNet | AutoencoderKL):
        return module.config.to_diffusers()
    if isinstance(module, ToyUNet):
        return {"_class_name": "ToyUNet", **module.config.model_dump()}
    if isinstance(module, LabelConditioner):
        return {"_class_name": "LabelConditioner", "classes": module.classes, "width": module.width}
    raise TypeError(f"no config.json is known for {type(module).__name__}")


def save_module(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and weights; ``dtype`` converts on the way out."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", describe(module))
    tensors = module.state_dict()
    write_tensors(folder / WEIGHTS, {k: v.to(dtype) if dtype else v for k, v in tensors.items()})


def load_module(folder: Path) -> nn.Module:
    """Build a module from its folder, on the CPU and in the dtype of its file.

    Built on ``meta`` and filled in place, so no time goes into random weights that are thrown away.

    Raises:
        UserError: a file is missing, damaged or of another kind.
    """
    config = read_json(folder / "config.json")
    path = folder / "config.json"
    kind = choose(str(config.get("_class_name")), BUILDERS, f"_class_name in {path}")
    try:
        with torch.device("meta"):
            module = BUILDERS[kind](config)
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}") from error
    except ValidationError as error:
        faults = [(item, ".".join(map(str, item["loc"])), []) for item in error.errors()]
        raise UserError(f"{path}: {'; '.join(explain_all(faults))}") from error
    except (ValueError, TypeError, IndexError) as error:  # a value of the wrong kind, such as a word for a list
        raise UserError(f"{path}: {error}") from error
    tensors = read_tensors(folder / WEIGHTS)
    if isinstance(module, AutoencoderKL):
        tensors = rename_old_attention(tensors)
    load_into(module, tensors, folder / WEIGHTS)
    return module.eval()


def save_text_encoder(encoder: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``text_encoder/`` and ``tokenizer/``; ``dtype`` converts on the way out.

    As transformers writes them, with the tensor names and the vocabulary files of all its versions: those of
    version 5 alone would be closed to the programs that read Stable Diffusion.
    """
    config = json.loads(encoder.config.to_json_string())
    # The dtype to compute in, not that of the file, which transformers takes where nothing is said; diffusers reads
    # its own parts into float32, and a pipeline of both would stop at the first product.
    config["dtype"] = "float32"
    target = folder / "text_encoder"
    target.mkdir(parents=True)
    write_json(target / "config.json", {**config, "architectures": ["CLIPTextModel"]})
    tensors = {_TOWER + k.removeprefix(_TOWER): v for k, v in encoder.state_dict().items()}
    write_tensors(target / "model.safetensors", {k: v.to(dtype) if dtype else v for k, v in tensors.items()})
    tokenizer.save_pretrained(folder / "tokenizer")
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "tokenizer" / "vocab.json", pairs["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_text_encoder(folder: Path) -> tuple[Any, Any]:
    """Read ``text_encoder/`` and ``tokenizer/`` of a model folder: (CLIPTextModel, CLIPTokenizer).

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    encoder = _load_tower(folder / "text_encoder")
    tokenizer = _load_tokenizer(folder / "tokenizer")
    size, known = len(tokenizer), encoder.config.vocab_size
    if size > known:
        raise UserError(f"{folder / 'tokenizer'} has {size} tokens, and {folder / 'text_encoder'} knows {known}")
    return encoder.eval(), tokenizer


def _load_tower(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPTextModel  # takes seconds; only text models need it

    weights, config = folder / "model.safetensors", folder / "config.json"
    read_json(config)  # these two name the file when it is missing or damaged
    read_tensors(weights)
    try:
        with quiet_transformers():
            found: Any = CLIPTextModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except StrictDataclassError as error:
        raise UserError(f"{config}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{weights} does not fit {config}: {error}") from error
    encoder, report = found
    surplus = [key for key in report["unexpected_keys"] if not key.endswith("position_ids")]  # old files count them
    # transformers fills what is missing with random numbers, and leaves out what is not expected
    for keys, what in ((report["missing_keys"], "lacks"), (surplus, "has more than")):
        if keys:
            names = sorted(keys)
            more = ", ..." if len(names) > 3 else ""
            raise UserError(f"{weights} {what} {config} asks for: {len(names)} tensors ({', '.join(names[:3])}{more})")
    return encoder


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    read_json(folder / "tokenizer_config.json")
    # With neither form of the vocabulary, transformers makes an empty one.
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
    else:
        read_json(folder / "vocab.json")
        if not (folder / "merges.txt").is_file():
            raise UserError(f"{folder / 'merges.txt'} is missing, and so is {folder / 'tokenizer.json'}")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{folder} holds no tokenizer of CLIP that can be read: {error}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars that transformers shows for what takes a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
