"""Training runs of seconds: a few dozen digits, networks of a few channels, a handful of steps."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from ldm.cli import app, run
from ldm.config import validate
from ldm.data.mnist import MnistConfig
from ldm.data.sources import open_source
from ldm.models.judge import DigitJudge, JudgeConfig
from ldm.training.journal import read_log
from ldm.training.run import Resume, train
from ldm.weights.files import read_tensors

DIGITS = 40
_folders: list[tempfile.TemporaryDirectory[str]] = []  # which live as long as the tests


@functools.cache
def digits() -> Path:
    """A folder with the first digits of MNIST, which is read in no time."""
    _folders.append(tempfile.TemporaryDirectory())
    folder = Path(_folders[-1].name)
    source = open_source(MnistConfig(limit=DIGITS))
    examples = [source.read(i) for i in range(DIGITS)]
    pixels = b"".join(example.image.numpy().tobytes() for example in examples)
    images = struct.pack(">4B3I", 0, 0, 8, 3, DIGITS, 28, 28) + pixels
    labels = struct.pack(">4BI", 0, 0, 8, 1, DIGITS) + bytes(example.label or 0 for example in examples)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


_TRAIN = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 0.002,
    "lr_warmup_steps": 2,
    "ema_decay": 0.9,
    "log_every": 1,
    "sample_every": 1000,
    "checkpoint_every": 1000,
}
_UNET = {
    "sample_size": 28,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention": [False, True],
    "num_attention_heads": 2,
    "norm_num_groups": 4,
}
_SAMPLE = {"sampler": "ddim", "steps": 2, "count": 4, "columns": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "label": {
        "task": "diffusion",
        "data": {"source": "mnist"},
        "unet": {**_UNET, "in_channels": 1, "out_channels": 1, "cross_attention_dim": 8},
        "condition": {"kind": "label", "classes": 10, "drop": 0.25},
        "sample": {**_SAMPLE, "conditions": [3, 8], "guidance": 2.0},
        "train": _TRAIN,
    },
    "toy": {
        "task": "diffusion",
        "data": {"source": "mnist"},
        "toy": {"in_channels": 1},
        "process": {"kind": "flow", "noise": "uniform"},
        "prediction": "x0",
        "sample": _SAMPLE,
        "train": _TRAIN,
    },
    "vae": {
        "task": "vae",
        "data": {"source": "mnist", "size": 32},
        "vae": {
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [4, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_size": 32,
            "mid_block_add_attention": False,
        },
        "loss": {"adversarial_start": 2, "discriminator_layers": 2, "discriminator_channels": 4},
        "scale_from": 40,
        "train": _TRAIN,
    },
    "clip": {
        "task": "clip",
        "data": {"source": "mnist", "size": 32, "captions": True},
        "text": {
            "vocab_size": 560,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 24,
        },
        "image": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 8,
        },
        "projection_dim": 16,
        "train": _TRAIN,
    },
    "latent": {  # needs codec.path and condition.path
        "task": "diffusion",
        "data": {"source": "mnist", "size": 32, "captions": True},
        "unet": {**_UNET, "in_channels": 4, "out_channels": 4, "sample_size": 8, "cross_attention_dim": 16},
        "codec": {"kind": "vae"},
        "condition": {"kind": "text", "drop": 0.25},
        "sample": {**_SAMPLE, "conditions": ["a handwritten two"], "guidance": 2.0},
        "train": _TRAIN,
    },
}


def config(kind: str, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration as plain data, with values at dotted keys (``train__steps``) changed."""
    tree = copy.deepcopy({**_CONFIGS[kind], "output": str(output)})
    tree["data"]["path"] = str(digits())
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = str(value) if isinstance(value, Path) else value
    return tree


def trained(kind: str, output: Path, *, resume: bool | Resume = False, **changes: Any) -> Path:
    """Train, and return the last checkpoint."""
    return train(validate(config(kind, output, **changes), "tiny"), resume=resume)


def config_file(kind: str, path: Path, output: Path, **changes: Any) -> Path:
    """The configuration as a file; JSON is YAML."""
    path.write_text(json.dumps(config(kind, output, **changes)))
    return path


def command(*arguments: str) -> int:
    """``ldm ARGUMENTS`` in this process: its exit code."""
    try:
        run(app, [*arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def training_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every number that training goes on from: weights, averages, and what the optimisers remember."""
    training = checkpoint / "training"
    found = {
        f"{file.stem} {name}": tensor
        for file in sorted(training.glob("*.safetensors"))
        for name, tensor in read_tensors(file).items()
    }
    optimizers = torch.load(training / "state.pt", weights_only=True)["optimizers"]
    for player, state in optimizers.items():
        for number, moments in state["state"].items():
            found |= {f"{player} optimiser {number} {name}": value for name, value in moments.items()}
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs, in any bit, between two checkpoints."""
    a, b = training_state(one), training_state(other)
    assert len(a) > 10
    return [name for name in sorted({*a, *b}) if name not in a or name not in b or not torch.equal(a[name], b[name])]


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log, without the quantities that depend on the clock."""
    clock = ("images_per_second", "data_wait")
    return [{k: v for k, v in record.items() if k not in clock} for record in read_log(run / "log.jsonl")]


def judge_file(path: Path) -> Path:
    """A small judge of random weights, as a network of perceptual features."""
    torch.manual_seed(0)
    DigitJudge(JudgeConfig(channels=(4, 4, 8), features=8)).save(path)
    return path
