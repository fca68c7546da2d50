"""How people write which LoRA they want: ``file[:weight]`` on a command line, ``<lora:name:weight>`` in a prompt."""

from __future__ import annotations

import re

from ldm.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TAG = re.compile(r"<\s*lora\s*:([^<>]*)>", re.IGNORECASE)
_SUFFIX = ".safetensors"


def parse_lora(text: str) -> tuple[str, float]:
    """Split ``file[:weight]``, where the weight is 1 by default.

    Only what follows the last colon can be a weight, so ``C:\\style.safetensors`` is a file and
    ``C:\\style.safetensors:-0.5`` a file and a weight.

    Raises:
        UserError: there is no file, or the weight is no finite number.
    """
    file, colon, weight = text.rpartition(":")
    if not colon or text.endswith(_SUFFIX) or _is_drive(file, weight):
        file, weight = text, "1"
    if not file.strip():
        raise UserError(f"a LoRA is given as FILE or FILE:WEIGHT, got {text!r}")
    return file, _weight(weight, text)


def split_tags(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Take every ``<lora:name>`` and ``<lora:name:weight>`` out of a prompt; capitals and spaces do not matter.

    Returns:
        The prompt without its tags, otherwise unchanged, and (name, weight) of each tag in order.

    Raises:
        UserError: a tag has no name, or something else than one finite number as its weight.
    """
    found = []
    for tag in _TAG.finditer(prompt):
        name, *weights = tag[1].split(":")
        if not name.strip() or len(weights) > 1:
            raise UserError(f"a LoRA in a prompt is written <lora:NAME> or <lora:NAME:WEIGHT>, got {tag[0]!r}")
        found.append((name.strip(), _weight(weights[0].strip(), tag[0]) if weights else 1.0))
    return _TAG.sub("", prompt), found


def _is_drive(head: str, tail: str) -> bool:
    return len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")


def _weight(text: str, whole: str) -> float:
    # float() alone would take "nan", "1_000" and the digits of every script
    weight = float(text) if _NUMBER.fullmatch(text) else float("inf")
    if abs(weight) == float("inf"):
        raise UserError(f"the weight of a LoRA is a number such as 0.8 or -0.5, got {text!r} in {whole!r}")
    return weight
