"""Every family of Stable Diffusion with random weights, each part twice: ours, and that of diffusers or transformers.

Both sides read the same ``config.json``, each in its own way, and are then given the same tensors, so that a part
takes memory once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.accel import prepare
from ldm.diffusion.context import Context
from ldm.errors import need
from ldm.text_conditioner import TextConditioner, Tower
from ldm.weights.components import build_empty, fill_module
from ldm.weights.families import FAMILIES, Family, text_config, vae_config
from ldm.weights.papers import usual_tokenizer

CPU = torch.device("cpu")
PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry, low quality"
TEXT_WIDTHS = {768: (768,), 1024: (1024,), 2048: (768, 1280)}  # context of a U-Net -> its text encoders
# Matrices are drawn with this variance over their fan-in. 1 keeps what passes through at its size, and queries and keys
# so large that attention chooses. The decoder would saturate, and the states of text encoders, which are deep, would
# grow large: they get torch's own 1 / 3.
VARIANCE = {"UNet2DConditionModel": 1.0, "ControlNetModel": 1.0, "AutoencoderKL": 1 / 3}
TEXT_VARIANCE = 1 / 3
# ours -> theirs, and what makes its times ours
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "lcm": ("LCMScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
}
_PROCESS = ("beta_start", "beta_end", "beta_schedule", "steps_offset", "set_alpha_to_one", "prediction_type")
_ONLY_UNET = ("center_input_sample", "out_channels", "sample_size", "time_cond_proj_dim", "up_block_types")
_NOTHING: Mapping[str, Any] = MappingProxyType({})

_TINY_LEVELS = {768: [8, 8, 8, 8], 1024: [1, 2, 2, 2], 2048: [1, 2, 2]}  # heads
_TINY_VAE = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
_TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "projection_dim": 64}


@dataclass(frozen=True)
class Kind:
    """A family as it is compared.

    Attributes:
        shape: its name in ``ldm.weights.families``.
        prediction: what its U-Net predicts, in diffusers' words.
        unet: what the ``config.json`` of its U-Net has beside that.
        turbo: distilled to few steps; it is drawn with at trailing times and without guidance.
        controlnet: whether to compare a ControlNet for it too.
        tiny: some layers of the same kinds rather than the full size.
    """

    shape: str
    prediction: str = "epsilon"
    unet: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    turbo: bool = False
    controlnet: bool = False
    tiny: bool = False

    @property
    def family(self) -> Family:
        return next(family for family in FAMILIES if family.name == self.shape)

    @property
    def inpaints(self) -> bool:
        return self.family.in_channels == 9

    @property
    def follows_scale(self) -> bool:
        """Whether the U-Net is told the guidance scale (LCM)."""
        return "time_cond_proj_dim" in self.unet

    @property
    def is_xl(self) -> bool:
        return len(self.family.text_encoders) > 1

    @property
    def samplers(self) -> list[str]:
        """Of ``SAMPLERS``, those that every family is drawn with, and euler_a where models come with it."""
        return [name for name in SAMPLERS if self.turbo or name != "euler_a"]

    def sampler(self, name: str) -> str:
        """A sampler on the times that the family is drawn at, by our name; LCM's are its own."""
        return f"{name} trailing" if self.turbo and name != "lcm" else name

    def unet_config(self) -> dict[str, Any]:
        config = {**self.family.unet_config(self.family.side or 768), **self.unet}
        if not self.tiny:
            return config
        heads = _TINY_LEVELS[self.family.context]
        config |= {"block_out_channels": [32, 64, 64, 64][: len(heads)], "layers_per_block": 1}
        config |= {"attention_head_dim": heads, "cross_attention_dim": 64 * len(self.family.text_encoders)}
        if self.is_xl:
            config |= {"transformer_layers_per_block": [1, 1, 2], "addition_time_embed_dim": 16}
            config |= {"projection_class_embeddings_input_dim": 6 * 16 + 64}
        return config

    def controlnet_config(self) -> dict[str, Any]:
        shape = {key: value for key, value in self.unet_config().items() if key not in _ONLY_UNET}
        return {**shape, "_class_name": "ControlNetModel", "conditioning_channels": 3}

    def vae_config(self) -> dict[str, Any]:
        config = vae_config(self.family.scaling_factor, self.family.side or 768)
        return {**config, **(_TINY_VAE if self.tiny else {})}

    def text_configs(self) -> dict[str, dict[str, Any]]:
        """By the name of the text encoder."""
        widths = TEXT_WIDTHS[self.family.context]
        found = {name: text_config(width) for name, width in zip(self.family.text_encoders, widths, strict=True)}
        small = {**_TINY_TEXT, "num_hidden_layers": 3} if self.tiny else {}
        return {name: {**config, **small} for name, config in found.items()}

    def scheduler_config(self) -> dict[str, Any]:
        return {**self.family.scheduler_config(), "prediction_type": self.prediction}


KINDS = {
    "sd1": Kind("sd1", controlnet=True),
    "sd1-inpainting": Kind("sd1-inpainting"),
    "sd2": Kind("sd2", "v_prediction"),
    "sd-turbo": Kind("sd2", turbo=True),
    "lcm": Kind("sd1", unet={"time_cond_proj_dim": 256}),
    "sdxl": Kind("sdxl", controlnet=True),
    "sdxl-turbo": Kind("sdxl", turbo=True),
    "sdxl-inpainting": Kind("sdxl-inpainting"),
}


@dataclass(frozen=True)
class Asked:
    """What to compare with, and the inputs that follow from it.

    Attributes:
        side: of the pictures, in pixels.
        steps: they are drawn in.
        samplers: they are drawn with; those of the family by default.
        seed: of weights and inputs.
    """

    side: int
    steps: int
    samplers: tuple[str, ...] = ()
    seed: int = 0

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + len(shape)))

    def picture(self, seed: int = 0) -> Tensor:
        """Soft blobs of colour in 0..1, (1, 3, side, side)."""
        coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        return F.interpolate(coarse, (self.side, self.side), mode="bicubic").clamp(0, 1)

    def mask(self) -> Tensor:
        """1 in a box whose sides cut through latents, (1, 1, side, side)."""
        mask = torch.zeros(1, 1, self.side, self.side)
        mask[:, :, 13 : self.side // 2 + 5, 27:] = 1
        return mask


def random_tensors(module: nn.Module, variance: float, seed: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for a module on ``meta``: of ``given`` what fits, and else random.

    Norms and biases are moved off the values with which they would do nothing.
    """
    norms = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)}
    generator, found = torch.Generator().manual_seed(seed), {}
    for key, like in module.state_dict().items():
        if key in given and given[key].shape == like.shape:
            found[key] = given[key]
            continue
        low, high = (0.9, 1.1) if key in norms else (-0.1, 0.1)
        if like.dim() > 1:
            high = (3 * variance / like[0].numel()) ** 0.5  # of a uniform draw with that variance
            low = -high
        found[key] = torch.empty(like.shape).uniform_(low, high, generator=generator)
    return found


def twins(config: dict[str, Any], seed: int, given: Mapping[str, Tensor] = _NOTHING) -> tuple[Any, Any]:
    """Our module of a ``config.json`` and theirs, on the same weights, ready to run.

    Args:
        config: of a class of diffusers or, with ``architectures``, of transformers.
        seed: of the weights.
        given: weights to take in place of random ones.
    """
    name = config.get("_class_name", "text encoder")
    ours = build_empty(config, Path(name))
    tensors = random_tensors(ours, VARIANCE.get(name, TEXT_VARIANCE), seed, given)
    fill_module(ours, tensors, Path(name))
    theirs = _theirs(config)
    theirs.load_state_dict(tensors, strict=True, assign=True)
    prepare(ours, device=CPU, dtype=torch.float32)  # as ``ldm.load`` does
    return ours, theirs.eval().requires_grad_(False)


def _theirs(config: dict[str, Any]) -> Any:
    """Their module of a ``config.json``, on ``meta``."""
    with torch.device("meta"):
        if "architectures" not in config:
            return getattr(need("diffusers", "peers"), config["_class_name"]).from_config(config)
        transformers = need("transformers", "peers")
        module = getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig.from_dict(config))
    # no weight, so that assigning weights leaves it on meta
    getattr(module, "text_model", module).embeddings.position_ids = torch.arange(config["max_position_embeddings"])[
        None
    ]
    return module


@functools.cache
def _tokenizer(activation: str) -> Any:
    return usual_tokenizer({"hidden_act": activation})


def text_twins(kind: Kind, seed: int) -> tuple[TextConditioner, Any]:
    """Our conditioner, and a pipeline of diffusers that has text encoders and nothing else."""
    towers, parts = [], {}
    for i, (name, config) in enumerate(kind.text_configs().items()):
        ours, theirs = twins(config, seed + i)
        tokenizer = _tokenizer(config["hidden_act"])
        towers.append(Tower(ours, tokenizer))
        parts |= {name: theirs, name.replace("text_encoder", "tokenizer"): tokenizer}
    return TextConditioner(*towers, zero_for_none=kind.is_xl), their_pipeline(kind, **parts)


def their_scheduler(kind: Kind, sampler: str) -> Any:
    """That of diffusers for one of ``SAMPLERS``, on the process of the family."""
    name, options = SAMPLERS[sampler]
    if kind.sampler(sampler) != sampler:
        options = {"timestep_spacing": "trailing"}
    config = {key: value for key, value in kind.scheduler_config().items() if key in _PROCESS}
    return getattr(need("diffusers", "peers"), name).from_config(config, clip_sample=False, **options)


def their_pipeline(kind: Kind, **parts: Any) -> Any:
    """The pipeline of diffusers for this family, of these parts; without those that it can do without."""
    diffusers = need("diffusers", "peers")
    control = "ControlNet" if "controlnet" in parts else ""
    name = f"StableDiffusion{'XL' if kind.is_xl else ''}{control}{'Inpaint' if kind.inpaints else ''}Pipeline"
    lacking = ["vae", "unet", "text_encoder", "tokenizer"]
    lacking += ["text_encoder_2", "tokenizer_2"] if kind.is_xl else ["safety_checker", "feature_extractor"]
    extra = {"add_watermarker": False} if kind.is_xl else {"requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler.from_config(kind.scheduler_config())
    pipe = getattr(diffusers, name)(**{**dict.fromkeys(lacking), "scheduler": scheduler, **extra, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(pipe: Any, **options: Any) -> list[Tensor]:
    """Three prompts through the text encoders of diffusers: states and, of SDXL, pooled vectors."""
    told = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": False, **options}
    found = [pipe.encode_prompt(prompt, **told) for prompt in (PROMPT, NEGATIVE, ".")]
    return [torch.cat(each) for each in zip(*(row[::2] for row in found), strict=True) if each[0] is not None]


def network_inputs(kind: Kind, asked: Asked, config: Any) -> tuple[Tensor, Tensor, Context, dict[str, Any]]:
    """x_t and t of two pictures, and what goes with them: as our networks are told, and as theirs are."""
    side = asked.side // 8
    x, t = asked.noise(2, config.in_channels, side, side), torch.tensor([981, 261])
    context = Context(asked.noise(2, 77, config.cross_attention_dim))
    theirs: dict[str, Any] = {"encoder_hidden_states": context.tokens, "return_dict": False}
    if kind.is_xl:
        sizes = torch.tensor([[1024.0, 768, 0, 64, 512, 640], [256, 320, 8, 0, 1024, 1024]])
        context = context._replace(pooled=asked.noise(2, config.pooled_dim), sizes=sizes)
        theirs["added_cond_kwargs"] = {"text_embeds": context.pooled, "time_ids": sizes}
    if kind.follows_scale:
        context = context._replace(guidance=torch.tensor([4.0, 7.5]))
        embed = need("diffusers", "peers").LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs["timestep_cond"] = embed(None, context.guidance, embedding_dim=config.time_cond_proj_dim)
    return x, t, context, theirs
