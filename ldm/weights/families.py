"""The families of Stable Diffusion: what their parts look like, and how to tell one from another.

A single file holds tensors and no configuration. Names and shapes say which family it is of; the configuration is
then the one that was published with that family, written down here so that nothing has to be fetched. (How many
attention heads there are, or which noise schedule, no shape tells.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldm.errors import UserError


@dataclass
class Part:
    """A part of a model, in the names of diffusers and transformers.

    Attributes:
        config: as in its ``config.json``, with ``_class_name`` (diffusers) or ``architectures`` (transformers).
        tensors: its weights; none for a scheduler.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What all models of a family share.

    Attributes:
        name: ours, such as ``sd1``.
        title: for people.
        context: width of the text that the U-Net reads.
        in_channels: of the U-Net.
        unet: its ``config.json``.
        scaling_factor: of the VAE's latents.
        side: height and width of its pictures, in pixels; None where it depends on the prediction type.
        text_encoders: names of those that it reads.
        scheduler: what its ``scheduler_config.json`` has beside the noise schedule.
    """

    name: str
    title: str
    context: int
    in_channels: int
    unet: dict[str, Any]
    scaling_factor: float
    side: int | None
    text_encoders: tuple[str, ...]
    scheduler: dict[str, Any]

    def unet_config(self, side: int) -> dict[str, Any]:
        """The U-Net's ``config.json`` for pictures of ``side`` pixels."""
        return {**_UNET, **self.unet, "in_channels": self.in_channels, "sample_size": side // 8}

    def scheduler_config(self, zero_snr: bool = False) -> dict[str, Any]:
        """The ``scheduler_config.json``, but for the prediction type."""
        return {**_NOISE, **self.scheduler, **({"rescale_betas_zero_snr": True} if zero_snr else {})}


_DOWN, _DOWN_TEXT, _UP, _UP_TEXT = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_FOUR_LEVELS = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [_DOWN_TEXT, _DOWN_TEXT, _DOWN_TEXT, _DOWN],
    "up_block_types": [_UP, _UP_TEXT, _UP_TEXT, _UP_TEXT],
}
_SD1 = {**_FOUR_LEVELS, "attention_head_dim": 8, "cross_attention_dim": 768}
_SD2 = {
    **_FOUR_LEVELS,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "upcast_attention": True,
}
_SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": [_DOWN, _DOWN_TEXT, _DOWN_TEXT],
    "up_block_types": [_UP_TEXT, _UP_TEXT, _UP],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
_DDIM = {"_class_name": "DDIMScheduler"}
_EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"}
_ONE, _TWO = ("text_encoder",), ("text_encoder", "text_encoder_2")
SD_SCALE, SDXL_SCALE = 0.18215, 0.13025

FAMILIES = (
    Family("sd1", "Stable Diffusion 1.x", 768, 4, _SD1, SD_SCALE, 512, _ONE, _PNDM),
    Family("sd1-inpainting", "Stable Diffusion 1.x inpainting", 768, 9, _SD1, SD_SCALE, 512, _ONE, _PNDM),
    Family("sd2", "Stable Diffusion 2.x", 1024, 4, _SD2, SD_SCALE, None, _ONE, _DDIM),
    Family("sd2-inpainting", "Stable Diffusion 2 inpainting", 1024, 9, _SD2, SD_SCALE, 512, _ONE, _DDIM),
    Family("sdxl", "Stable Diffusion XL", 2048, 4, _SDXL, SDXL_SCALE, 1024, _TWO, _EULER),
    Family("sdxl-inpainting", "Stable Diffusion XL inpainting", 2048, 9, _SDXL, SDXL_SCALE, 1024, _TWO, _EULER),
)


def find_family(context: int, in_channels: int) -> Family:
    """The family whose U-Net reads a text ``context`` wide and images of ``in_channels``.

    Raises:
        UserError: there is none.
    """
    for family in FAMILIES:
        if (family.context, family.in_channels) == (context, in_channels):
            return family
    if context == 1280:
        raise UserError("it is a refiner of Stable Diffusion XL, which is not supported; use the base model alone")
    known = ", ".join(f"{family.title} ({family.context}, {family.in_channels})" for family in FAMILIES)
    raise UserError(
        f"its U-Net reads a text {context} wide and {in_channels} channels, as no family does that is known: {known}"
    )


def vae_config(scaling_factor: float, side: int) -> dict[str, Any]:
    """The ``config.json`` of the autoencoder that all families share; only the scale of the latents differs."""
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": side,
        "scaling_factor": scaling_factor,
        **({"force_upcast": True} if scaling_factor == SDXL_SCALE else {}),
    }


def _text_config(width: int, layers: int, activation: str, projection: int, projects: bool) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "num_hidden_layers": layers,
        "hidden_act": activation,
        "projection_dim": projection,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "layer_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "bos_token_id": 0,  # published so; 2 makes transformers look for the highest token id, which is the true end
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


# width -> CLIP ViT-L/14 (SD 1, SDXL), OpenCLIP ViT-H/14 without its last layer (SD 2), OpenCLIP ViT-bigG/14 (SDXL)
_TEXT = {
    768: _text_config(768, 12, "quick_gelu", 768, False),
    1024: _text_config(1024, 23, "gelu", 512, False),
    1280: _text_config(1280, 32, "gelu", 1280, True),
}


def text_config(width: int) -> dict[str, Any]:
    """The ``config.json`` of the text encoder that is ``width`` wide.

    Raises:
        UserError: no family has one.
    """
    if width not in _TEXT:
        raise UserError(f"its text encoder is {width} wide; known are {', '.join(map(str, _TEXT))}")
    return dict(_TEXT[width])
