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
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ldm.conditioner import LabelConditioner
from ldm.errors import UserError, choose
from ldm.models.controlnet import ControlNet, ControlNetConfig
from ldm.models.generator import Generator, GeneratorConfig
from ldm.models.toy import ToyUNet, ToyUNetConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig, rename_old_attention
from ldm.schema import explain_all
from ldm.text_conditioner import Tower
from ldm.weights.files import load_into, read_json, write_json
from ldm.weights.variants import read_weights, weights_name, write_weights

STEM, TOWER_STEM = "diffusion_pytorch_model", "model"  # of the files with weights
_TOWER = "text_model."  # prefix of a text encoder's tensors in files; transformers 5 has none in memory


def _label_encoder(config: dict[str, Any]) -> LabelConditioner:
    for key in ("classes", "width"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"{key} should be a whole number of at least 1, got {config[key]!r}")
    return LabelConditioner(config["classes"], config["width"])


def _without_class(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_class_name"}


# class name in config.json -> module of that shape
BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "UNet2DConditionModel": lambda config: UNet(UNetConfig.from_diffusers(config)),
    "ToyUNet": lambda config: ToyUNet(ToyUNetConfig(in_channels=config["in_channels"])),
    "ControlNetModel": lambda config: ControlNet(ControlNetConfig.from_diffusers(config)),
    "AutoencoderKL": lambda config: AutoencoderKL(VAEConfig.from_diffusers(config)),
    "LabelConditioner": _label_encoder,
    "Generator": lambda config: Generator(GeneratorConfig(**_without_class(config))),
    "CLIPTextModel": lambda config: _text_encoder(config),
    "CLIPTextModelWithProjection": lambda config: _text_encoder(config),
}


def describe(module: nn.Module) -> dict[str, Any]:
    """The ``config.json`` of a module."""
    if isinstance(module, UNet | ControlNet | AutoencoderKL):
        return module.config.to_diffusers()
    if isinstance(module, ToyUNet | Generator):
        return {"_class_name": type(module).__name__, **module.config.model_dump()}
    if isinstance(module, LabelConditioner):
        return {"_class_name": "LabelConditioner", "classes": module.classes, "width": module.width}
    raise TypeError(f"no config.json is known for {type(module).__name__}")


def save_module(
    module: nn.Module, folder: Path, dtype: torch.dtype | None = None, max_shard_size: str | None = None
) -> None:
    """Write ``config.json`` and weights, see ``write_weights``; ``dtype`` converts on the way out."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", describe(module))
    tensors = module.state_dict()
    write_weights(folder, STEM, {k: v.to(dtype) if dtype else v for k, v in tensors.items()}, max_shard_size)


class Reading(NamedTuple):
    """How weights are read.

    Attributes:
        variant: which file of a part, such as ``fp16`` in ``model.fp16.safetensors``.
        dtype: convert to this one, tensor by tensor; otherwise they are as in the file.
        allow_pickle: also read ``.bin`` and ``.ckpt``; see ``ldm.weights.pickles``.
    """

    variant: str | None = None
    dtype: torch.dtype | None = None
    allow_pickle: bool = False


AS_THEY_ARE = Reading()


def load_module(folder: Path, how: Reading = AS_THEY_ARE) -> nn.Module:
    """Build a module from its folder, on the CPU.

    Raises:
        UserError: a file is missing, damaged or of another kind.
    """
    path = folder / "config.json"
    module = build_empty(read_json(path), path)
    stem = TOWER_STEM if is_text_encoder(module) else STEM
    fill_module(module, read_weights(folder, stem, *how), folder / weights_name(stem, how.variant))
    return module


def build_empty(config: dict[str, Any], path: Path) -> nn.Module:
    """A module of the shape that a ``config.json`` describes, without weights: on ``meta``, which takes no time.

    Args:
        config: of a class in ``BUILDERS`` or of a text encoder.
        path: where it was read, for messages.

    Raises:
        UserError: it describes nothing that can be built.
    """
    kind = str(config.get("_class_name") or "".join(config.get("architectures") or ["None"]))
    build = BUILDERS[choose(kind, BUILDERS, f"_class_name in {path}")]
    try:
        with torch.device("meta"):
            return build(config)
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}") from error
    except ValidationError as error:
        faults = [(item, ".".join(map(str, item["loc"])), []) for item in error.errors()]
        raise UserError(f"{path}: {'; '.join(explain_all(faults))}") from error
    # a value of the wrong kind: a word for a list, or a width beyond all memory
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def fill_module(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give an empty module its weights, read from ``path``, without copying them.

    Raises:
        UserError: they are those of another module.
    """
    if isinstance(module, AutoencoderKL):
        tensors = rename_old_attention(tensors)
    elif is_text_encoder(module):
        tensors = _rename_tower(tensors, module)
    load_into(module, tensors, path)
    module.eval()


def save_tower(
    tower: Tower,
    folder: Path,
    dtype: torch.dtype | None = None,
    suffix: str = "",
    max_shard_size: str | None = None,
) -> None:
    """Write ``text_encoder/`` and ``tokenizer/``; ``dtype`` converts on the way out. With suffix ``_2``, SDXL's second.

    As transformers writes them, with the tensor names and the vocabulary files of all its versions: those of
    version 5 alone would be closed to the programs that read Stable Diffusion.
    """
    encoder, tokenizer = tower
    config = json.loads(encoder.config.to_json_string())
    # The dtype to compute in, not that of the file, which transformers takes where nothing is said; diffusers reads
    # its own parts into float32, and a pipeline of both would stop at the first product.
    config["dtype"] = "float32"
    target = folder / f"text_encoder{suffix}"
    target.mkdir(parents=True)
    write_json(target / "config.json", {**config, "architectures": [type(encoder).__name__]})
    tensors = {tower_name(k): v for k, v in encoder.state_dict().items()}
    write_weights(target, TOWER_STEM, {k: v.to(dtype) if dtype else v for k, v in tensors.items()}, max_shard_size)
    save_tokenizer(tokenizer, folder / f"tokenizer{suffix}")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer of CLIP with the vocabulary files of all versions of transformers."""
    tokenizer.save_pretrained(folder)
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", pairs["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tower_name(name: str) -> str:
    """The name of a text encoder's tensor in files, from that in memory."""
    return name if name.startswith((_TOWER, "text_projection.")) else _TOWER + name


def load_tower(folder: Path, suffix: str = "", how: Reading = AS_THEY_ARE) -> Tower:
    """Read ``text_encoder/`` and ``tokenizer/`` of a model folder; with suffix ``_2``, the second of SDXL.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    place = folder / f"text_encoder{suffix}"
    encoder: Any = load_module(place, how)
    if not is_text_encoder(encoder):
        raise UserError(f"{place} holds a {type(encoder).__name__}, not a text encoder of CLIP")
    tokenizer = load_tokenizer(folder / f"tokenizer{suffix}")
    size, known = len(tokenizer), encoder.config.vocab_size
    if size > known:
        raise UserError(f"{folder / f'tokenizer{suffix}'} has {size} tokens, and {place} knows {known}")
    return Tower(encoder, tokenizer)


def is_text_encoder(module: nn.Module) -> bool:
    """Whether a module is a text tower of transformers' CLIP, told without importing it."""
    return type(module).__name__ in ("CLIPTextModel", "CLIPTextModelWithProjection")


def _text_encoder(config: dict[str, Any]) -> nn.Module:
    import transformers  # takes seconds; only text models need it
    from huggingface_hub.errors import StrictDataclassError

    (kind,) = config["architectures"]
    try:
        module = getattr(transformers, kind)(transformers.CLIPTextConfig.from_dict(config))
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    embeddings = getattr(module, "text_model", module).embeddings
    count = embeddings.position_embedding.num_embeddings
    # no weight, so no file has it, and `meta` has no numbers
    embeddings.position_ids = torch.arange(count, device="cpu")[None]
    return module


def _rename_tower(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The names of files, which all begin with ``text_model.``, to those of transformers in memory."""
    kept = {key: value for key, value in tensors.items() if not key.endswith("position_ids")}  # old files have them
    if hasattr(module, "text_model"):
        return kept
    # a file with a projection that nothing asks for is one of CLIPTextModelWithProjection, and is as good
    return {key.removeprefix(_TOWER): value for key, value in kept.items() if key != "text_projection.weight"}


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer of CLIP.

    Raises:
        UserError: a file is missing or damaged.
    """
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
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{folder} holds no tokenizer of CLIP that can be read: {error}") from error
    for remark in ("is_local", "local_files_only"):  # how it was read, which would be written with its settings
        tokenizer.init_kwargs.pop(remark, None)
    return tokenizer


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
