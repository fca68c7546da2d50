"""How a model of others likes to be drawn with, as far as its scheduler's configuration tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# diffusers' class -> our sampler; what is not here has no counterpart, and DDIM, which fits any chain, stands in
_SAMPLERS = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpm++_2m",
    "LCMScheduler": "lcm",
}
_OWN_SPACING = ("LCMScheduler", "DDPMScheduler", "PNDMScheduler")
GUIDANCE, GUIDANCE_XL = 7.5, 5.0  # what diffusers' pipelines draw with


def habits(scheduler: Mapping[str, Any], towers: int) -> dict[str, Any]:
    """Sampler, steps and guidance for a model with so many text towers, from its ``scheduler_config.json``."""
    kind = str(scheduler.get("_class_name"))
    name = _SAMPLERS.get(kind, "ddim")
    spacing = scheduler.get("timestep_spacing")
    if scheduler.get("use_karras_sigmas"):
        spacing = "karras"
    if spacing and kind not in _OWN_SPACING:
        name = f"{name} {spacing}"
    if kind == "LCMScheduler":
        return {"sampler": name, "steps": 4, "guidance": 8.5}
    return {"sampler": name, "steps": 50, "guidance": GUIDANCE_XL if towers > 1 else GUIDANCE if towers else 1.0}
