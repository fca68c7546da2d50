"""The flags of finetune.py and finetune_lora.py, under the names that diffusers' scripts have, as a configuration."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from ldm.cli import run, train

CONFIGS = Path(__file__).parent.parent / "configs" / "finetune"
# flag -> (key of the configuration, kind of value)
_PLAIN = {
    "pretrained_model_name_or_path": ("model", str),
    "output_dir": ("output", str),
    "max_train_steps": ("train.steps", int),
    "learning_rate": ("train.learning_rate", float),
    "train_batch_size": ("train.batch_size", int),
    "gradient_accumulation_steps": ("train.gradient_accumulation", int),
    "mixed_precision": ("train.mixed_precision", str),
    "seed": ("seed", int),
    "snr_gamma": ("snr_gamma", float),
    "noise_offset": ("offset_noise", float),
    "rank": ("tune.rank", int),
}
_SHORT = {
    "pretrained_model_name_or_path": "--model",
    "output_dir": "-o",
    "max_train_steps": "--steps",
}


def flags(usage: str, *, lora: bool) -> argparse.ArgumentParser:
    """The parser of either script."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_data_dir", type=Path, help="a folder of pictures")
    more = "of the configuration, such as snr_gamma=5"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=more)
    for name, (key, kind) in _PLAIN.items():
        if name != "rank" or lora:
            names = [_SHORT[name]] if name in _SHORT else []
            metavar = {int: "N", float: "X"}.get(kind, "PLACE" if name in _SHORT else "NAME")
            parser.add_argument(*names, f"--{name}", dest=name, type=kind, metavar=metavar, help=f"sets {key}")
    parser.add_argument(
        "--resolution", type=int, metavar="N", help="side of the square whose area pictures are brought to"
    )
    parser.add_argument("--train_text_encoder", action="store_true", help="train it too; nothing is cached then")
    own = "the caption of every picture; without it, each has its own"
    parser.add_argument("--instance_prompt", metavar="WORDS", help=own)
    kept = "draw pictures of the class first, and keep it what it is (DreamBooth)"
    parser.add_argument("--class_prompt", metavar="WORDS", help=kept)
    parser.add_argument("--num_class_images", type=int, default=200, metavar="N", help="how many; 200")
    parser.add_argument("--prior_loss_weight", type=float, default=1.0, metavar="X", help="of the loss on them; 1")
    now = "drawn now and then; may be repeated"
    parser.add_argument("--validation_prompt", metavar="WORDS", action="append", default=[], help=now)
    parser.add_argument("--config", type=Path, help="in place of the script's own")
    parser.add_argument("--resume", action="store_true", help="continue the run from its newest checkpoint")
    return parser


def overrides_of(given: argparse.Namespace) -> list[str]:
    """What the flags change in a configuration, as ``KEY=VALUE``; JSON is YAML."""
    data = {"source": "folder", "path": str(given.train_data_dir)}
    found: dict[str, object] = {"data": data}
    if given.instance_prompt:
        data |= {"layout": "plain", "caption": given.instance_prompt}
        found["validation.count"] = 0  # of a handful of pictures none can be spared
    for name, (key, _) in _PLAIN.items():
        if getattr(given, name, None) is not None:
            found[key] = getattr(given, name)
    if given.resolution:
        found["frame"] = {"resolution": given.resolution, "step": math.gcd(given.resolution, 64)}
    if given.mixed_precision in ("no", "fp16"):
        found["frozen_dtype"] = {"no": "fp32", "fp16": "fp16"}[given.mixed_precision]
    if given.train_text_encoder:
        found |= {"tune.text_encoder": True, "cache": None}
    if given.class_prompt:
        generate = {"prompt": given.class_prompt, "count": given.num_class_images}
        found |= {"prior": {"generate": generate, "weight": given.prior_loss_weight}, "frame.buckets": False}
    if given.validation_prompt:
        found["validation.prompts"] = given.validation_prompt
        found["sample.conditions"] = given.validation_prompt
    return [f"{key}={json.dumps(value)}" for key, value in found.items()] + given.overrides


def main(usage: str, config: str, *, lora: bool) -> None:
    """Read the flags, and train."""
    given = flags(usage, lora=lora).parse_intermixed_args()
    run(train, given.config or CONFIGS / config, overrides_of(given), given.resume)
