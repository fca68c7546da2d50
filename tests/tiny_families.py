"""A tiny model of random weights for each family of Stable Diffusion, and diffusers on the same folder.

A family's folder is written by ``save_model`` and opened by both. Pictures are 0..1, (N, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel  # type: ignore[attr-defined]
from tiny_models import SD_PROCESS, WINDOW, fill, tokenizer_of_words
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import ldm
from ldm.codec import VAECodec
from ldm.models.controlnet import ControlNet, ControlNetConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.pipeline import Pipeline
from ldm.text_conditioner import TextConditioner, Tower
from ldm.weights.components import save_module
from ldm.weights.model import Model, save_model

PROMPT, NEGATIVE = "a thick two", "three slanted to the left"
STEPS, GUIDANCE = 8, 4.0
FACTOR = 4
SIZE = (32, 32)

# ------------------------------------------------------------------------------------------ ours


def tower(width: int, seed: int, *, layers: int = 2, projection: int | None = None, pad: str | None = None) -> Tower:
    """``pad``: the token that fills a window; "!" has the id 0, as in Stable Diffusion 2 and SDXL's second tower."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_of_words()
    if pad is not None:
        vocabulary = {"vocab": tokenizer.get_vocab(), "merges": _merges(tokenizer)}
        tokenizer = CLIPTokenizer(**vocabulary, model_max_length=WINDOW, pad_token=pad)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        hidden_act="quick_gelu" if pad is None else "gelu",
        projection_dim=projection or 32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return Tower(fill(kind(config), seed), tokenizer)


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def unet(**shape: Any) -> UNet:
    torch.manual_seed(3)
    common = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    return fill(UNet(UNetConfig(**common | {"out_channels": 4} | shape)), 3)


def vae() -> AutoencoderKL:
    """Three levels, so a factor of 4; its encoder is sure of itself, so a draw of its latents is their mean."""
    torch.manual_seed(4)
    shape = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
    found = fill(AutoencoderKL(VAEConfig(in_channels=3, out_channels=3, scaling_factor=0.7, **shape)), 4)
    with torch.no_grad():
        found.quant_conv.weight[4:] = 0
        found.quant_conv.bias[4:] = -30
    return found


SD1 = {"attention": (True, False), "num_attention_heads": 2, "cross_attention_dim": 24}
SD2 = {
    "attention": (True, True),
    "num_attention_heads": (1, 2),
    "cross_attention_dim": 20,
    "use_linear_projection": True,
}
SDXL = {
    "attention": (False, True),
    "num_attention_heads": (1, 2),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 16 + 24,
    "use_linear_projection": True,
    "pooled_dim": 20,
    "size_embed_dim": 8,
}


def _model(shape: dict[str, Any], conditioner: TextConditioner, prediction: str = "epsilon", **process: Any) -> Model:
    settings = SD_PROCESS.model_copy(update=process)
    return Model(unet(**shape), settings, prediction, VAECodec(vae()), conditioner, SIZE)


def sd1(**shape: Any) -> Model:
    return _model(SD1 | shape, TextConditioner(tower(24, 5, layers=3)))


def sd2() -> Model:
    return _model(SD2, TextConditioner(tower(20, 6, pad="!")), "v")


def sdxl(zeros: bool = True, **shape: Any) -> Model:
    towers = tower(16, 7, layers=3), tower(24, 8, layers=3, projection=20, pad="!")
    return _model(SDXL | shape, TextConditioner(*towers, zero_for_none=zeros))


FAMILIES: dict[str, Callable[[], Model]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sd1-inpaint": lambda: sd1(in_channels=9),
    "sdxl": sdxl,
    "sdxl-empty": lambda: sdxl(zeros=False),
    "sdxl-inpaint": lambda: sdxl(in_channels=9),
    "lcm": lambda: sd1(time_cond_proj_dim=16),
}
DRAWING = [name for name in FAMILIES if "inpaint" not in name]  # those that draw from a prompt alone


def control_net(family: str, seed: int) -> ControlNet:
    torch.manual_seed(seed)
    shape = {key: value for key, value in FAMILIES[family]().net.config.model_dump().items()}
    config = ControlNetConfig(**shape, conditioning_embedding_out_channels=(4, 6, 8))
    return fill(ControlNet(config), seed)


# ---------------------------------------------------------------------------------------- theirs

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "lcm": ("LCMScheduler", {}),
    "euler_a trailing": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
}


def opened(folder: Path, kind: str | None = None, **parts: Any) -> Any:
    """The pipeline that the folder names, or one of the class ``kind`` of diffusers."""
    cls = getattr(diffusers, kind or "DiffusionPipeline")
    pipe = cls.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    # clip_skip looks for the final norm where transformers 4 had it
    vars(pipe.text_encoder).setdefault("text_model", pipe.text_encoder)
    return pipe


def of_kind(pipe: Any, kind: str, **parts: Any) -> Any:
    """The same parts as a pipeline of another class."""
    cls = getattr(diffusers, kind)
    found = cls(**{**pipe.components, **parts}, **({} if "XL" in kind else {"requires_safety_checker": False}))
    found.set_progress_bar_config(disable=True)
    return found


def with_scheduler(pipe: Any, sampler: str) -> Any:
    """``pipe`` with the scheduler that is one of our samplers, on the model's process."""
    name, options = SCHEDULERS[sampler]
    kept = ("beta_start", "beta_end", "beta_schedule", "steps_offset", "set_alpha_to_one", "prediction_type")
    config = {key: pipe.scheduler.config[key] for key in kept if key in pipe.scheduler.config}
    pipe.scheduler = getattr(diffusers, name).from_config(config, **{"clip_sample": False} | options)
    return pipe


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start_noise(pipe: Any, states: list[torch.Generator], size: tuple[int, int]) -> Tensor:
    """The noise that our pictures of these seeds start from, as diffusers takes it.

    Where its Euler multiplies by sigma rather than by sqrt(sigma^2 + 1) (which unit variance asks for), that is
    made good.
    """
    shape = (4, size[0] // FACTOR, size[1] // FACTOR)
    noise = torch.stack([torch.randn(shape, generator=g) for g in states])
    scheduler = pipe.scheduler
    if "Euler" in type(scheduler).__name__ and scheduler.config.timestep_spacing != "leading":
        sigma = float(scheduler.init_noise_sigma)
        noise = noise * (sigma**2 + 1) ** 0.5 / sigma
    return noise


def drawn_by_diffusers(
    pipe: Any,
    sampler: str,
    prompts: Sequence[str] = (PROMPT,),
    seeds: Sequence[int] = (0,),
    size: tuple[int, int] = SIZE,
    **options: Any,
) -> Tensor:
    with_scheduler(pipe, sampler)
    states = generators(seeds)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt", "generator": states}
    noise = start_noise(pipe, states, size)
    if "strength" not in options:  # else drawn by the pipeline, from the generators
        settings["latents"] = noise
    else:
        settings["generator"] = generators(seeds)
    if "negative_prompt" in options:
        settings["negative_prompt"] = [options.pop("negative_prompt")] * len(prompts)
    settings |= {} if "Img2Img" in type(pipe).__name__ else {"height": size[0], "width": size[1]}
    return pipe(prompt=list(prompts), **settings | options).images


def drawn_by_us(
    pipe: Pipeline,
    sampler: str,
    prompts: Sequence[str | None] = (PROMPT,),
    seeds: Sequence[int] = (0,),
    size: tuple[int, int] | None = SIZE,
    **options: Any,
) -> Tensor:
    sides = {} if size is None else {"height": size[0], "width": size[1]}
    settings = {"steps": STEPS, "guidance": GUIDANCE, "sampler": sampler, **sides}
    return pipe.generate(prompts, seeds, **settings | options) / 2 + 0.5


def their_latents(pipe: Any, images: Tensor) -> Tensor:
    """Of pictures in -1..1, as diffusers' image-to-image takes them in place of pictures."""
    with torch.no_grad():
        return pipe.vae.encode(images).latent_dist.mode() * pipe.vae.config.scaling_factor


class Folders:
    """Model folders, each written and opened once for a test module."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ours: dict[str, Pipeline] = {}
        self._theirs: dict[str, Any] = {}

    def folder(self, family: str) -> Path:
        path = self.place / family
        if not path.exists():
            save_model(FAMILIES[family](), path)
        return path

    def ours(self, family: str) -> Pipeline:
        if family not in self._ours:
            self._ours[family] = ldm.load(self.folder(family), device="cpu", dtype="fp32")
        return self._ours[family]

    def theirs(self, family: str, kind: str | None = None, **parts: Any) -> Any:
        if family not in self._theirs:
            self._theirs[family] = opened(self.folder(family))
        pipe = self._theirs[family]
        return pipe if kind is None else of_kind(pipe, kind, **parts)

    def control(self, family: str, seed: int) -> Path:
        path = self.place / f"control-{family}-{seed}"
        if not path.exists():
            save_module(control_net(family, seed), path)
        return path

    def their_control(self, family: str, seed: int) -> ControlNetModel:
        return ControlNetModel.from_pretrained(self.control(family, seed))


def assert_near(found: Tensor, expected: Any, atol: float = 1e-3) -> None:
    assert found.std() > 0.02  # something is on it
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
