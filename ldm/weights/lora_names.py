"""What the tensors of a LoRA file are called, and which layers of a model they mean.

Three namings are in use. All end in what the tensor is (down, up or alpha) and begin with a layer:

peft             unet.down_blocks.0.attentions.0.proj_in.lora_A.weight, text_encoder.text_model.encoder...
older diffusers  unet.down_blocks.0.attentions.0...attn1.processor.to_q_lora.down.weight, ...lora_linear_layer.up.weight
kohya            lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, lora_te_text_model_encoder_..., .alpha

The dotted names need their ends translated, no more. kohya's have an underscore for every dot; which underscores
were dots is not said, so such a name is looked up among the names of the model's own layers, written the same way.
That finds every layer the model has and nothing else, where rules of substitution leave out the unforeseen. Files
for SDXL often have the block names of CompVis instead (``input_blocks_4_1``): diffusers' converters translate them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ldm.errors import UserError, need

Layer = nn.Linear | nn.Conv2d
TARGETS = ("unet", "text_encoder", "text_encoder_2")

_TOWER = "text_model."  # in files and in some of transformers' classes, not in others
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_COMPVIS = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_2")
_ENDS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",  # of attention alone: to_q_lora.down.weight
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
_ATTENTION = {  # what older diffusers calls a layer of attention -> its name
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}
_ATTENTION["text_encoder_2"] = _ATTENTION["text_encoder"]
_OTHER_FORMS = {  # end of a key -> what it is the mark of
    r"\.lora_mid\.weight": "a LoCon in Tucker form",
    r"\.hada_\w+": "a LoHa",
    r"\.lokr_\w+": "a LoKr",
    r"\.dora_scale": "a DoRA",
    r"\.lora_magnitude_vector(\.weight)?": "a DoRA",
    r"\.oft_\w+": "an OFT",
    r"\.on_input": "an IA3",
    r"\.diff(_b)?": "a LoRA with whole differences of weights",
    r"\.(lora_B|lora_up)\.bias": "a LoRA with biases",
}


@dataclass(frozen=True)
class Key:
    """What a key of a file says.

    Attributes:
        target: one of ``TARGETS``.
        layer: the layer's path; in kohya's naming with underscores for dots.
        part: "down", "up" or "alpha".
        flat: whether the naming is kohya's.
    """

    target: str
    layer: str
    part: str
    flat: bool


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """The layers that a LoRA can change, by their path without ``text_model.``.

    Where LoRAs are live, these are the layers beneath them.

    Raises:
        UserError: the module's weights are packed for the CPU.
    """
    if any(_is_packed(part) for part in module.modules()):
        raise UserError(
            f"this {type(module).__name__} is packed for the CPU, and a LoRA can change it no more: apply LoRAs before "
            "the model is prepared, or prepare it with inference=False"
        )
    found = {}
    for name, part in module.named_modules():
        beside = ".lora_A." in name or ".lora_B." in name
        if isinstance(part, Layer) and not beside:
            found[name.removesuffix(".base_layer").removeprefix(_TOWER)] = part
    return found


def _is_packed(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter)


def parse_key(key: str) -> Key | None:
    """Read a key of a LoRA file; None where it is none of a LoRA's."""
    for end, part in _ENDS.items():
        if key.endswith(end):
            stem = key.removesuffix(end)
            for prefix, target in _KOHYA.items():
                if stem.startswith(prefix) and "." not in stem:
                    layer = stem.removeprefix(prefix).removeprefix(_TOWER.replace(".", "_"))
                    return Key(target, layer, part, flat=True)
            return Key(*_dotted(stem, attention=end.startswith("_")), part, flat=False)
    return None


def _dotted(stem: str, attention: bool) -> tuple[str, str]:
    wrapper = "base_model.model."
    stem = stem.removeprefix(wrapper)
    head, _, rest = stem.partition(".")
    target, layer = (head, rest) if head in TARGETS else ("", stem)
    layer = layer.removeprefix(wrapper).replace(".processor.", ".")
    if not target:  # files of one network alone have no prefix
        target = "text_encoder" if layer.startswith((_TOWER, "encoder.layers.")) else "unet"
    if attention:
        parent, _, leaf = layer.rpartition(".")
        layer = f"{parent}.{_ATTENTION[target].get(leaf, leaf)}"
    return target, layer.removeprefix(_TOWER)


def other_form(key: str) -> str | None:
    """What kind of adapter, none that is read here, a key is the mark of."""
    return next((form for end, form in _OTHER_FORMS.items() if re.search(end + "$", key)), None)


class Finder:
    """From the layer of a ``Key`` to its path in one model."""

    def __init__(self, module: nn.Module) -> None:
        """``module``: the network that the keys' target stands for."""
        self.layers = layers_of(module)
        self._flat = {path.replace(".", "_"): path for path in self.layers}
        self._per_level = getattr(getattr(module, "config", None), "layers_per_block", None)

    def find(self, key: Key) -> str | None:
        """The path of the layer in ``layers``; None where the model has none such."""
        if not key.flat:
            return key.layer if key.layer in self.layers else None
        found = self._flat.get(key.layer)
        if found is None and key.target == "unet" and key.layer.startswith(_COMPVIS):
            found = self._from_compvis(key.layer)
        return found if found in self.layers else None

    def _from_compvis(self, layer: str) -> str | None:
        conversion = need("diffusers.loaders.lora_conversion_utils", "convert")
        endings = need("diffusers.utils.state_dict_utils", "convert")
        # One name at a time: given all, the converter takes input_blocks_10 for a part of input_blocks_1.
        names: dict[str, Any] = {f"lora_unet_{layer}.lora_down.weight": None}
        try:
            shape = SimpleNamespace(layers_per_block=self._per_level)
            (blocks,) = conversion._maybe_map_sgm_blocks_to_diffusers(names, shape)
            (name,) = endings.convert_unet_state_dict_to_peft({conversion._convert_unet_lora_key(blocks): None})
        except (ValueError, KeyError, IndexError, TypeError):  # its ways to say that there is no such layer
            return None
        return name.removesuffix(".lora_A.weight")


def peft_keys(target: str, path: str) -> tuple[str, str]:
    """The keys of (down, up) in peft's naming, as diffusers writes them."""
    stem = f"{target}.{_tower(target, path)}{path}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def kohya_keys(target: str, path: str, two_towers: bool) -> tuple[str, str, str]:
    """The keys of (down, up, alpha) in kohya's naming, with diffusers' block names.

    Args:
        target: one of ``TARGETS``.
        path: of the layer.
        two_towers: the model has two text encoders, as SDXL, so that the first is called te1.
    """
    prefix = {"unet": "lora_unet_", "text_encoder_2": "lora_te2_"}.get(
        target, "lora_te1_" if two_towers else "lora_te_"
    )
    stem = prefix + (_tower(target, path) + path).replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def _tower(target: str, path: str) -> str:
    return "" if target == "unet" or path == "text_projection" else _TOWER


def some(names: list[str], count: int = 3) -> str:
    """The first few of many names, for messages."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
