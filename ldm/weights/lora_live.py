"""LoRAs beside the weights of a model, through peft: they can be weighed anew between pictures, and taken out.

Each changed layer also computes its LoRAs, at every step: use ``merge_loras`` where the weights stay.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ldm.errors import UserError, choose, need
from ldm.weights.lora import Lora, LoraLayer, check_weight, fit
from ldm.weights.lora_names import Layer


class LiveLoras:
    """The LoRAs that are live in a model.

    Attributes:
        targets: the networks, as "unet", "text_encoder" and "text_encoder_2".
        weights: LoRA's name -> its weight; 0 is off. They are summed in this order.
    """

    def __init__(self, targets: Mapping[str, nn.Module]) -> None:
        self.targets = dict(targets)
        self.weights: dict[str, float] = {}
        self._adapters: dict[str, str] = {}  # a name may have dots, which peft's names may not
        self._trained: list[nn.Parameter] = []  # what peft freezes

    def add(self, lora: Lora, weight: float = 1.0) -> None:
        """Let a LoRA change the model, beside those that do already.

        Raises:
            UserError: one of this name is live already, it does not fit the model, a network is packed for the CPU, or
                peft is missing.
        """
        if lora.name in self._adapters:
            raise UserError(f"a LoRA named {lora.name!r} is live already; set_weights changes its weight")
        need("peft", "lora")
        check_weight(lora.name, weight)
        parts: dict[str, list[tuple[LoraLayer, Layer]]] = {}
        for target, _, layer, module in fit(lora, self.targets):
            parts.setdefault(target, []).append((layer, module))
        if not self._adapters:
            parameters = (p for module in self.targets.values() for p in module.parameters())
            self._trained = [parameter for parameter in parameters if parameter.requires_grad]
        adapter = f"lora_{len(self._adapters)}"
        for target, fitted in parts.items():
            _inject(self.targets[target], fitted, adapter)
        self._adapters[lora.name] = adapter
        self.set_weights({**self.weights, lora.name: weight})

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Weigh the live LoRAs; one that is not named is off.

        Raises:
            UserError: there is no LoRA of a name, or a weight is no finite number.
        """
        for name, weight in weights.items():
            choose(name, self._adapters, "live LoRA")
            check_weight(name, weight)
        self.weights = {**weights, **{name: 0.0 for name in self._adapters if name not in weights}}
        on = [self._adapters[name] for name, weight in weights.items() if weight]
        for module in self.targets.values():
            for part in _tuners(module).values():
                part.set_adapter(on)
                for name, adapter in self._adapters.items():
                    part.set_scale(adapter, self.weights[name])
                for key, parameter in part.named_parameters():
                    if "lora_" in key:  # set_adapter makes what it turns on trainable
                        parameter.requires_grad_(False)

    def remove(self) -> None:
        """Leave the model as it was before the first LoRA."""
        for module in self.targets.values():
            for path, part in _tuners(module).items():
                module.set_submodule(path, part.get_base_layer())
            if hasattr(module, "peft_config"):
                del module.peft_config
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._adapters, self.weights, self._trained = {}, {}, []


def _tuners(module: nn.Module) -> dict[str, Any]:
    """peft's layers in a module, by path."""
    tuner = need("peft.tuners.tuners_utils", "lora").BaseTunerLayer
    return {path: part for path, part in module.named_modules() if isinstance(part, tuner)}


def _inject(module: nn.Module, fitted: Sequence[tuple[LoraLayer, Layer]], adapter: str) -> None:
    """Put peft's layers in place of a network's, with the LoRA's numbers in the dtype and on the device of each."""
    peft = need("peft", "lora")
    paths = {id(part): path for path, part in module.named_modules()}
    named = {paths[id(found)].removesuffix(".base_layer"): (layer, found) for layer, found in fitted}
    tensors: dict[str, Tensor] = {}
    for path, (layer, found) in named.items():
        tensors[f"{path}.lora_A.weight"] = layer.down.to(found.weight)
        tensors[f"{path}.lora_B.weight"] = layer.up.to(found.weight)
    rank = Counter(layer.rank for layer, _ in named.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer, _ in named.values()).most_common(1)[0][0]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={_exactly(path): layer.rank for path, (layer, _) in named.items() if layer.rank != rank},
        alpha_pattern={_exactly(path): layer.alpha for path, (layer, _) in named.items() if layer.alpha != alpha},
        target_modules=list(named),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # as there should be for a second
        peft.inject_adapter_in_model(config, module, adapter, low_cpu_mem_usage=True, state_dict=tensors)
    peft.set_peft_model_state_dict(module, tensors, adapter, low_cpu_mem_usage=True)


def _exactly(path: str) -> str:
    return "^" + path.replace(".", r"\.")
