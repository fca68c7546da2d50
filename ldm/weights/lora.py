"""LoRAs: low-rank changes to the layers of a finished model (Hu et al. 2021), in memory.

A layer with weight W (out, in) becomes W + weight * (alpha / rank) * up @ down, where down is (rank, in), up is
(out, rank) and the weight is the user's. A convolution is changed in the same way (LoCon): down is a convolution to
``rank`` channels with the kernel of the layer, up a 1x1 convolution.

Merged, a LoRA costs nothing to draw with and cannot be taken out again; ``ldm.weights.lora_live`` is the other way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.weights.lora_names import Layer, layers_of


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """The change of one layer.

    Attributes:
        down: (rank, in) or, for a convolution, (rank, in, kernel, kernel).
        up: (out, rank) or, for a convolution, (out, rank, 1, 1).
        alpha: the change is multiplied by alpha / rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def add_to(self, matrix: Tensor, weight: float) -> None:
        """Add the change, ``weight`` times, to a layer's weight in float32, flattened to (out, the rest)."""
        up, down = (part.to(matrix).flatten(1) for part in (self.up, self.down))
        matrix.addmm_(up, down, alpha=weight * self.scale)


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA.

    Attributes:
        name: that of its file, without the suffix.
        layers: "unet", "text_encoder" or "text_encoder_2" -> path of a layer, without ``text_model.`` -> its change.
        metadata: what the header of its file says.
    """

    name: str
    layers: Mapping[str, Mapping[str, LoraLayer]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str, LoraLayer]]:
        """(target, path, change) of every layer."""
        for target, layers in self.layers.items():
            for path, layer in layers.items():
                yield target, path, layer


@torch.no_grad()
def merge_loras(targets: Mapping[str, nn.Module], loras: Sequence[tuple[Lora, float]]) -> None:
    """Add LoRAs to the weights of a model, in float32, rounding each weight once.

    Args:
        targets: the networks, as "unet", "text_encoder" and "text_encoder_2"; changed in place.
        loras: (LoRA, weight); 1 is as trained, 0 changes nothing, a negative weight does the opposite.

    Raises:
        UserError: a LoRA does not fit the networks, or a network is packed for the CPU. Then nothing is changed.
    """
    changes: dict[tuple[str, str], tuple[Layer, list[tuple[LoraLayer, float]]]] = {}
    for lora, weight in loras:
        check_weight(lora.name, weight)
        for target, path, layer, module in fit(lora, targets):
            changes.setdefault((target, path), (module, []))[1].append((layer, weight))
    for module, parts in changes.values():
        merged = module.weight.float().flatten(1)  # the weight itself where it is in float32 and in order
        for layer, weight in parts:
            layer.add_to(merged, weight)
        module.weight.copy_(merged.reshape(module.weight.shape))


def fit(lora: Lora, targets: Mapping[str, nn.Module]) -> list[tuple[str, str, LoraLayer, Layer]]:
    """Find what a LoRA changes: (target, path, change, the layer in the model).

    Raises:
        UserError: a network or a layer is missing, of another shape, or packed for the CPU.
    """
    check_targets(f"the LoRA {lora.name!r}", lora.layers, targets)
    present = {target: layers_of(targets[target]) for target in lora.layers}
    found = []
    for target, path, layer in lora:
        module = present[target].get(path)
        if module is None or tuple(module.weight.shape) != layer.shape:
            here = "is not in this model" if module is None else f"is {tuple(module.weight.shape)} in this model"
            raise UserError(
                f"the LoRA {lora.name!r} is for another model: {target}.{path}, {layer.shape} in the LoRA, {here}"
            )
        found.append((target, path, layer, module))
    return found


def check_weight(lora: str, weight: float) -> None:
    """Raise unless a weight is a finite number.

    Raises:
        UserError: it is not.
    """
    if not math.isfinite(weight):
        raise UserError(f"the weight of a LoRA is a finite number, got {weight} for {lora!r}")


def check_targets(what: str, wanted: Mapping[str, object], targets: Mapping[str, nn.Module]) -> None:
    """Raise unless the model has every network that ``what`` changes.

    Raises:
        UserError: the message names the networks that are missing.
    """
    absent = [target for target in wanted if target not in targets]
    if absent:
        raise UserError(
            f"{what} is for another family of models: it changes {', '.join(absent)}, and of what a LoRA can change "
            f"this model has {', '.join(targets) or 'nothing'}"
        )
