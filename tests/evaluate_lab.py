"""What evaluations are tried on: forty digits, a tiny text model, judge and CLIP, all of random weights.

As a script, in the processes of a launch: python -m torch.distributed.run ... tests/evaluate_lab.py ASKED.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_models import fill, tokenizer_of_words
from transformers import CLIPConfig, CLIPModel

from ldm.evaluate_command import DATA, Asked, evaluate_model


def clip_folder(folder: Path) -> Path:
    """In the layout of ``task: clip``."""
    tokenizer = tokenizer_of_words()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    image = {**sizes, "image_size": 32, "patch_size": 8, "num_channels": 1}
    torch.manual_seed(0)
    fill(CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=8))).save_pretrained(
        folder / "clip"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def asked(model: Path | None, data: dict[str, Any], output: Path, **settings: Any) -> Asked:
    """On the CPU in float32, and with seeds and sets as small as they can be."""
    usual = {"batch_size": 4, "count": 10, "kernel_subsets": 3, "kernel_size": 8, "workers": 0}
    floor = settings.pop("floor", None)
    told = [None if each is None else json.dumps(each) for each in (data, floor)]
    place = None if model is None else str(model)
    return Asked(place, told[0] or "", told[1], output, {**usual, **settings}, {"dtype": "fp32"}, "cpu")


def numbers(folder: Path) -> dict[str, Any]:
    """What a report says, but for what changes from one time to the next."""
    found = json.loads((folder / DATA).read_text(encoding="utf-8"))
    del found["made"]["processes"]
    for setting in found["settings"]:
        assert setting.pop("seconds_per_picture") > 0
    return found


def value(found: dict[str, Any], name: str, features: str = "") -> float:
    """The only metric of this name, in features whose name begins so."""
    (metric,) = [m for m in found["metrics"] if m["name"] == name and m["features"].startswith(features)]
    return metric["value"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    evaluate_model(Asked(**{**given, "output": Path(given["output"])}))
