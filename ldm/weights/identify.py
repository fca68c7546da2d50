"""What a file or folder of weights is, without building anything of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ldm.errors import UserError
from ldm.metadata.plain import printable
from ldm.weights.files import read_json
from ldm.weights.incomplete import fault_of
from ldm.weights.lora_told import lora_family, trainers_notes
from ldm.weights.modelspec import told_configs
from ldm.weights.outline import EMA, Outline, naming_of_controlnet, outline_of
from ldm.weights.parts import CONFIG, INDEX, listed_parts
from ldm.weights.stored import Shapes, Stored, open_stored
from ldm.weights.variants import STEMS, variants_in

Told = dict[str, str]
UNKNOWN = "tensors of no model that is known"
_LORA_DOWN = re.compile(r"(\.lora_down\.weight|\.lora_A(\.\w+)?\.weight|[._]lora(_linear_layer)?\.down\.weight)$")
_STEERING = {  # a name that tells -> what it is
    r"^lora_controlnet$": "Control-LoRA",
    r"^difference$": "ControlNet that is kept as its difference to a U-Net",
    r"^(task_embedding$|control_add_embedding\.)": "ControlNet of several tasks (union)",
    r"^lllite_unet_": "ControlNet-LLLite",
    r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?block1\.weight$": "T2I-Adapter",
    r"^(image_proj|ip_adapter)\.": "IP-Adapter",
}
_GOES_TO = {"LoRA": "--lora", "textual inversion": "--embedding"}  # the flag that takes it
_OTHER_ADAPTERS = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "oft_blocks": "OFT", "dora_scale": "DoRA"}


def identify(path: Path, allow_pickle: bool = False) -> Told:
    """Say what a file or folder of weights is.

    Args:
        path: a file of tensors, or a folder in the layout of diffusers.
        allow_pickle: look into pickles too.

    Returns:
        What is known, by what it is called: ``kind`` always, and as it applies ``parts``, ``dtype``, ``prediction``,
        ``moving average``, ``naming``, ``rank``, ``title``, and so on.

    Raises:
        UserError: it is missing or damaged, or a pickle that is not allowed.
    """
    if path.is_dir():
        return _folder(path)
    stored = open_stored(path, allow_pickle)
    told = _kind(stored)
    if "LoRA" in told["kind"]:
        told |= trainers_notes(stored.metadata)
    fields = ("title", "architecture", "author", "date", "license", "resolution")
    header = {name: printable(stored.metadata.get(f"modelspec.{name}", "")) for name in fields}
    return {
        **told,
        "dtype": dtypes_in(stored.dtypes.values()),
        "tensors": f"{len(stored.shapes):,d} of {count_numbers(stored.shapes):,d} numbers",
        **{key: value for key, value in header.items() if value},
    }


def with_article(kind: str) -> str:
    """A kind as part of a sentence: ``a LoRA``."""
    return kind if kind.startswith(("a ", "an ")) else f"{'an' if kind[0] in 'AEIO' else 'a'} {kind}"


def count_numbers(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def dtypes_in(dtypes: Iterable[str]) -> str:
    """The dtypes of some tensors, the most frequent first."""
    return ", ".join(name for name, _ in Counter(dtypes).most_common())


def _kind(stored: Stored) -> Told:
    told = _of_no_model(stored.shapes)
    if told is not None:
        return told
    naming = naming_of_controlnet(stored.shapes)
    own = {} if naming is None else {"kind": "ControlNet", "form": "single file", "naming": naming}
    try:
        outline = outline_of(stored, told_configs(stored.metadata))
    except UserError as error:
        return {**own, "fault": str(error)} if own else {"kind": UNKNOWN, "because": str(error)}
    told = own or _of_model(outline)
    if outline.family and outline.family.title != told["kind"]:
        told["for"] = outline.family.title
    if outline.prediction:
        told["prediction"] = f"{outline.prediction} ({_EVIDENCE[str(outline.prediction_from)]})"
    if not own:
        told["moving average"] = "yes" if any(name.startswith(EMA) for name in stored.shapes) else "no"
    fault = fault_of(outline, stored.shapes)
    return {**told, "fault": fault} if fault else told


def misplaced(path: Path, stored: Stored) -> str | None:
    """What to say of a file that is given as a model and goes elsewhere; None where nothing better is known."""
    told = _of_no_model(stored.shapes)
    if told is None:
        return None
    flag = next((flag for word, flag in _GOES_TO.items() if told["kind"].startswith(word)), None)
    advice = f"give a model as --model, and this as {flag}" if flag else "it cannot be used here"
    return f"{path} is {with_article(told['kind'])} and holds no part of Stable Diffusion: {advice}"


def _of_no_model(shapes: Shapes) -> Told | None:
    return next((told for look in (_lora, _embedding, _steering) if (told := look(shapes))), None)


def _of_model(outline: Outline) -> Told:
    names = list(outline.sources)
    if len(names) == 1 or "unet" not in names:
        kind = f"{' and '.join(names)} alone"
    else:
        kind = outline.family.title if outline.family else "a model of a shape of its own"
    parts = ", ".join(f"{part} ({len(sources)} tensors)" for part, sources in outline.sources.items())
    return {"kind": kind, "form": "single file", "parts": parts}


_EVIDENCE = {
    "header": "says the header",
    "marker": "says a marker among the tensors",
    "training step": "known by its training step",
    "family": "as all of its family",
    "assumed": "assumed: the tensors of 2.0-base and 2.1-base, which predict epsilon, look the same",
}


def _lora(shapes: Shapes) -> Told | None:
    other = sorted({name for tail, name in _OTHER_ADAPTERS.items() for key in shapes if key.endswith(tail)})
    ranks = Counter(shape[0] for key, shape in shapes.items() if shape and _LORA_DOWN.search(key))
    if not ranks:
        return {"kind": f"an adapter that is no plain LoRA ({', '.join(other)})"} if other else None
    told = {"kind": "LoRA" + (f" with {', '.join(other)}" if other else ""), "naming": _naming(shapes)}
    told["rank"] = ", ".join(str(rank) for rank, _ in ranks.most_common())
    told["layers"] = str(sum(ranks.values()))
    text = [key for key in shapes if re.match(r"(lora_te|text_encoder)", key)]
    told["parts"] = "unet, text encoder" if text and len(text) < len(shapes) else "text encoder" if text else "unet"
    family = lora_family(shapes)
    if family:
        told["for"] = family
    return told


def _naming(shapes: Shapes) -> str:
    if any(key.startswith("lora_") for key in shapes):
        return "kohya"
    if any(key.startswith("base_model.model.") for key in shapes):
        return "peft"
    return "diffusers" if any(".lora_A." in key for key in shapes) else "diffusers (before peft)"


def _embedding(shapes: Shapes) -> Told | None:
    if set(shapes) == {"clip_l", "clip_g"}:
        return {"kind": "textual inversion for Stable Diffusion XL", **_vectors(shapes["clip_l"])}
    for name in ("emb_params", "*"):  # of web UIs: safetensors, and the contents of a pickle's string_to_param
        if name in shapes:
            return {"kind": "textual inversion", **_vectors(shapes[name])}
    if len(shapes) == 1:
        name, shape = next(iter(shapes.items()))
        if "." not in name and len(shape) in (1, 2):
            return {"kind": "textual inversion", "word": name, **_vectors(shape)}
    return None


def _vectors(shape: tuple[int, ...]) -> Told:
    *rows, width = shape or (0,)
    return {"width": str(width), "tokens": str(rows[0] if rows else 1)}


def _steering(shapes: Shapes) -> Told | None:
    """What steers a U-Net as a ControlNet does, and is none that can be used here."""
    for pattern, kind in _STEERING.items():
        if any(re.search(pattern, key) for key in shapes):
            return {"kind": kind}
    return None


def _folder(folder: Path) -> Told:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        parts = sorted(listed_parts(index))
        told = {"kind": str(index.get("_class_name")), "form": "folder in the layout of diffusers"}
        return {**told, "parts": ", ".join(parts), "variants": _variants(folder / part for part in parts)}
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        kind = config.get("_class_name") or ", ".join(config.get("architectures") or ["of no stated class"])
        return {"kind": str(kind), "form": "folder of one part", "variants": _variants([folder])}
    raise UserError(f"{folder} is no folder of a model: it has neither {INDEX} nor {CONFIG}")


def _variants(folders: Iterable[Path]) -> str:
    found = set()
    for folder in folders:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        for stem in STEMS:
            found |= {name or "(none)" for name in variants_in(names, stem)}
            found |= {f"{name or '(none)'} as pickle" for name in variants_in(names, stem, "bin")}
    return ", ".join(sorted(found))
