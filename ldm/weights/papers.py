"""What the files of a model say beside its weights, read as it is: so it can be written elsewhere unchanged.

The modules in memory know what they compute with. A folder says more: which scheduler it comes with, what version
wrote it, fields of other programs. A conversion keeps all of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.weights.clip_vocabulary import END, clip_tokenizer
from ldm.weights.components import load_tokenizer
from ldm.weights.files import read_json
from ldm.weights.modelspec import VOCABULARY_FILES, told_configs, told_index, told_tokenizers
from ldm.weights.outline import outline_of
from ldm.weights.parts import CONFIG, INDEX, SCHEDULER_CONFIG, TOKENIZERS, listed_parts
from ldm.weights.stored import open_stored

_NO_TOKEN = "!"  # token 0, with which OpenCLIP fills its windows


@dataclass
class Papers:
    """What the files of a model say beside its weights.

    Attributes:
        configs: ``config.json`` of the parts, and the scheduler's configuration as ``scheduler``.
        index: ``model_index.json``; None in the single files of others.
        tokenizers: name -> name of a file -> its text; none of CLIP's own in single files.
        header: the strings of a single file's header.
        unused: names of tensors of a single file that belong to no part.
        names: part -> name of a tensor in a folder -> name in the single file that was read.
    """

    configs: dict[str, dict[str, Any]]
    index: dict[str, Any] | None = None
    tokenizers: dict[str, dict[str, str]] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)


def read_papers(place: Path, allow_pickle: bool = False) -> Papers:
    """Read what a model folder or a single file says beside the weights.

    Raises:
        UserError: it is missing or damaged.
    """
    return _of_file(place, allow_pickle) if place.is_file() else _of_folder(place)


def _of_folder(folder: Path) -> Papers:
    index = read_json(folder / INDEX)
    found = Papers({}, index)
    for name in sorted(listed_parts(index)):
        if name == "scheduler":
            found.configs[name] = read_json(folder / name / SCHEDULER_CONFIG)
        elif name in TOKENIZERS:
            paths = [folder / name / file for file in VOCABULARY_FILES]
            found.tokenizers[name] = {path.name: _text(path) for path in paths if path.is_file()}
        elif (folder / name / CONFIG).is_file():
            found.configs[name] = read_json(folder / name / CONFIG)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable text: {error}") from error


def _of_file(path: Path, allow_pickle: bool) -> Papers:
    stored = open_stored(path, allow_pickle)
    try:
        outline = outline_of(stored, told_configs(stored.metadata))
        index, tokenizers = told_index(stored.metadata), told_tokenizers(stored.metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    names = {part: {key: source.name for key, source in found.items()} for part, found in outline.sources.items()}
    used = {name for found in names.values() for name in found.values()}
    unused = [name for name in stored.shapes if name not in used]
    return Papers(outline.configs, index, tokenizers, stored.metadata, unused, names)


def usual_tokenizer(config: Mapping[str, Any]) -> Any:
    """CLIP's own tokenizer for the text encoder with this ``config.json``.

    CLIP ViT-L fills its windows with the end token, the towers of OpenCLIP with token 0.
    """
    return clip_tokenizer(END if config.get("hidden_act") == "quick_gelu" else _NO_TOKEN)


def tokenizer_of(files: Mapping[str, str]) -> Any:
    """The tokenizer whose files have these texts.

    Raises:
        UserError: one is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), files)
        return load_tokenizer(Path(folder))


def write_vocabulary(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a tokenizer into a folder."""
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("utf-8"))


def is_usual(tokenizer: Any, config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer reads every prompt as ``usual_tokenizer`` does."""
    usual = usual_tokenizer(config)
    same = ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length")
    return (
        tokenizer.get_vocab() == usual.get_vocab()
        and _merges(tokenizer) == _merges(usual)
        and all(getattr(tokenizer, name) == getattr(usual, name) for name in same)
    )


def _merges(tokenizer: Any) -> list[tuple[str, ...]]:
    found = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in found]
