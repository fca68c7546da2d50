"""What a LoRA's file tells of it: for which models it is, and what its trainer wrote into the header."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from ldm.metadata.plain import printable
from ldm.weights.families import FAMILIES
from ldm.weights.stored import Shapes

_READS_TEXT = re.compile(r"attn2[._](processor[._])?to_k[._]\S*(down|lora_A)\b")
_WRITTEN = {"ss_base_model_version": "trained on", "ss_output_name": "called"}  # by kohya's trainer
_TAGS, _LONGEST = 5, 200


def lora_family(shapes: Shapes) -> str | None:
    """The family of models that a LoRA is for, by the text its U-Net reads; None where it changes no U-Net."""
    if all(name.startswith(("lora_te", "text_encoder")) for name in shapes):
        return None
    widths = {shape[1] for name, shape in shapes.items() if len(shape) > 1 and _READS_TEXT.search(name)}
    found = (family.title for family in FAMILIES if widths == {family.context})
    return next(found, "no family that is known")


def trainers_notes(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a trainer says of a LoRA: the base model, its name, the most frequent words of the captions."""
    told = {word: metadata[key] for key, word in _WRITTEN.items() if metadata.get(key)}
    tags = ", ".join(tag for tag, _ in _tags(metadata.get("ss_tag_frequency", "")).most_common(_TAGS))
    told |= {"frequent tags": tags} if tags else {}
    return {key: printable(" ".join(value.split()))[:_LONGEST] for key, value in told.items()}


def _tags(text: str) -> Counter[str]:
    """Of all folders of pictures together; none where the text is not what it should be."""
    found: Counter[str] = Counter()
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):  # a note for people: nothing depends on it
        return found
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                found[tag.strip()] += count
    return found
