"""The settings of a process, from and to diffusers' ``scheduler_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ldm.diffusion.process import (
    BetaSchedule,
    DiscreteProcess,
    FlowProcess,
    NoiseKind,
    Process,
    betas_for,
    zero_terminal_snr,
)
from ldm.errors import UserError, choose
from ldm.schema import Settings

_PREDICTION_NAMES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
_SCHEDULE_NAMES: dict[BetaSchedule, str] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
_FLOW = "FlowMatchEulerDiscreteScheduler"
# diffusers' schedulers are processes and samplers in one; these all share the chain of betas.
_CHAINS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
# Keys that would change the process or the estimate of x0: the one value that means "as here". What else a
# file says (order, spacing, Karras times) is of its sampler, and samplers are chosen when drawing.
_FIXED: Mapping[str, Any] = {
    "trained_betas": None,
    "thresholding": False,
    "use_flow_sigmas": False,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
}


class ProcessConfig(Settings):
    """A noising process and where samplers end on it.

    Attributes:
        kind: ``ddpm`` (variance-preserving chain) or ``flow`` (linear interpolation).
        num_train_timesteps: T.
        beta_schedule: ``linear``, ``scaled_linear`` (Stable Diffusion) or ``cosine``; ddpm only.
        beta_start, beta_end: of the two linear schedules.
        zero_snr: rescale the betas to zero terminal SNR.
        noise: ``gaussian``, or ``uniform`` for the teaching example; flow only.
        steps_offset: added to ``leading`` times (1 in Stable Diffusion).
        set_alpha_to_one: DDIM and PLMS end at clean; false: at the first time's noise level.
    """

    kind: Literal["ddpm", "flow"] = "ddpm"
    num_train_timesteps: int = Field(default=1000, ge=1)
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    zero_snr: bool = False
    noise: NoiseKind = "gaussian"
    steps_offset: int = Field(default=0, ge=0)
    set_alpha_to_one: bool = True

    def build(self) -> Process:
        """The process itself."""
        if self.kind == "flow":
            return FlowProcess(self.num_train_timesteps, self.noise)
        if self.noise != "gaussian":
            raise UserError("process.noise = uniform needs process.kind = flow")
        betas = betas_for(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        return DiscreteProcess(zero_terminal_snr(betas) if self.zero_snr else betas)

    @property
    def end(self) -> str:
        """Where samplers that follow the model's scheduler end; see ``time_grid``."""
        return "clean" if self.set_alpha_to_one else "first"

    def to_diffusers(self, prediction: str, clip: bool) -> dict[str, Any]:
        """The ``scheduler_config.json`` of a model trained with this process."""
        common = {"num_train_timesteps": self.num_train_timesteps, "prediction_type": _PREDICTION_NAMES[prediction]}
        if self.kind == "flow":
            return {"_class_name": _FLOW, **common, "_noise": self.noise}
        return {
            "_class_name": "DDIMScheduler",
            **common,
            "beta_schedule": _SCHEDULE_NAMES[self.beta_schedule],
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "rescale_betas_zero_snr": self.zero_snr,
            "steps_offset": self.steps_offset,
            "set_alpha_to_one": self.set_alpha_to_one,
            "timestep_spacing": "leading",
            "clip_sample": clip,
        }

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> tuple[ProcessConfig, str]:
        """Read a ``scheduler_config.json``: the process and the prediction type.

        Raises:
            UserError: a name in it is not known, or a value cannot be honoured.
        """
        kind = choose(str(config.get("_class_name")), (*_CHAINS, _FLOW), "_class_name")
        for key, supported in _FIXED.items():
            if config.get(key, supported) != supported:
                raise UserError(f"{key} = {config[key]!r} is not supported (supported: {supported!r})")
        names = {theirs: ours for ours, theirs in _PREDICTION_NAMES.items()}
        usual = "flow_prediction" if kind == _FLOW else "epsilon"
        prediction = names[choose(str(config.get("prediction_type", usual)), names, "prediction_type")]
        found: dict[str, Any] = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
        if kind == _FLOW:
            found |= {"kind": "flow", "noise": config.get("_noise", "gaussian")}
        else:
            schedules = {theirs: ours for ours, theirs in _SCHEDULE_NAMES.items()}
            schedule = str(config.get("beta_schedule", "linear"))
            found |= {
                "beta_schedule": schedules[choose(schedule, schedules, "beta_schedule")],
                "zero_snr": config.get("rescale_betas_zero_snr", False),
                # left out, it is false in PNDM, and true in DDIM (which stands in for those that lack it)
                "set_alpha_to_one": kind != "PNDMScheduler",
            }
            same = ("beta_start", "beta_end", "steps_offset", "set_alpha_to_one")
            found |= {key: config[key] for key in same if key in config}
        return cls.checked(found), prediction
