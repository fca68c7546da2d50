"""Which weight of a network is no number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def damaged_weight(networks: Mapping[str, nn.Module]) -> str | None:
    """``part: name`` of the first weight with NaN or infinity in it, those packed for the CPU among them, or None."""
    for part, network in networks.items():
        for name, module in network.named_modules():
            for kind in ("weight", "bias"):
                value = getattr(module, kind, None)
                if isinstance(value, Tensor) and not _is_finite(value):
                    return f"{part}: {name}.{kind}"
    return None


def _is_finite(value: Tensor) -> bool:
    return bool((value.to_dense() if value.is_mkldnn else value).isfinite().all())
