"""Models in one file: against diffusers' own readers, there and back bit by bit, and files that do not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tokenizer_of_words
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.errors import UserError
from ldm.weights.compvis import TOWERS, UNET, VAE
from ldm.weights.families import FAMILIES, Family, Part, text_config, vae_config
from ldm.weights.files import read_tensors
from ldm.weights.modelspec import CONFIGS
from ldm.weights.outline import Outline, outline_of
from ldm.weights.single_file import joined, read_single_file, write_single_file
from ldm.weights.stored import Shapes, Stored

TEXT_CLASSES = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}
THEIR_NAMES = {
    "sd1": "v1",
    "sd1-inpainting": "inpainting",
    "sd2": "v2",
    "sd2-inpainting": "inpainting_v2",
    "sdxl": "xl_base",
    "sdxl-inpainting": "xl_inpaint",
}
# Facts of the published files: some names and shapes, and how many tensors the parts have.
PUBLISHED: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "sd1": (
        1130,
        {
            "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
            "model.diffusion_model.output_blocks.5.2.conv.bias": (1280,),
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
            "model.diffusion_model.input_blocks.4.1.proj_in.weight": (640, 320 * 2, 1, 1),
            "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
            "first_stage_model.encoder.down.2.block.0.nin_shortcut.weight": (512, 256, 1, 1),
            "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        },
    ),
    "sd2": (
        1214,
        {
            "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            "model.diffusion_model.input_blocks.4.1.proj_in.weight": (640, 640),
            "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
            "cond_stage_model.model.positional_embedding": (77, 1024),
        },
    ),
    "sdxl": (
        2513,
        {
            "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
            "model.diffusion_model.input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,),
            "conditioner.embedders.1.model.text_projection": (1280, 1280),
            "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias": (3840,),
        },
    ),
}


def clip_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A text encoder's tensors with the names of its file, whatever this version of transformers calls them."""
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    return {key if key.startswith("text_") else f"text_model.{key}": value for key, value in state.items()}


def theirs(config: dict[str, Any]) -> torch.nn.Module:
    """A model of diffusers or transformers, built from one of our configurations."""
    kind = config.get("_class_name")
    if kind == "UNet2DConditionModel":
        return UNet2DConditionModel.from_config(config)
    if kind == "AutoencoderKL":
        return AutoencoderKL.from_config(config)
    settings = {key: value for key, value in config.items() if key != "architectures"}
    return TEXT_CLASSES[config["architectures"][0]](CLIPTextConfig(**settings))


def part_of(config: dict[str, Any]) -> Part:
    model = theirs(config)
    return Part(config, clip_state(model) if "architectures" in config else dict(model.state_dict()))


def full_size(family: Family) -> dict[str, Part]:
    side = family.side or 768
    with torch.device("meta"):
        found = {
            "unet": part_of(family.unet_config(side)),
            "vae": part_of(vae_config(family.scaling_factor, side)),
        }
        widths = WIDTHS[family.name.split("-")[0]]
        return found | {
            name: part_of(text_config(width)) for name, width in zip(family.text_encoders, widths, strict=True)
        }


def shapes_of(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stored(shapes: Shapes, metadata: dict[str, str] | None = None, numbers: dict[str, float] | None = None) -> Stored:
    return Stored(shapes, metadata or {}, numbers or {}, lambda names, dtype: {}, {})


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def whole(request: pytest.FixtureRequest) -> tuple[Family, dict[str, Part], dict[str, Tensor]]:
    """A family, its parts at full size on ``meta``, and the tensors of its single file."""
    parts = full_size(request.param)
    return request.param, parts, joined(parts)


Whole = tuple[Family, dict[str, Part], dict[str, Tensor]]


def test_diffusers_finds_every_tensor_of_ours(whole: Whole) -> None:
    family, parts, tensors = whole
    assert infer_diffusers_model_type(tensors) == THEIR_NAMES[family.name]
    found = {
        "unet": convert_ldm_unet_checkpoint(tensors, parts["unet"].config),
        "vae": convert_ldm_vae_checkpoint(tensors, parts["vae"].config),
    }
    for tower in TOWERS:
        if not any(name.startswith(tower.prefix) for name in tensors):
            continue
        if tower.openclip:
            with torch.device("meta"):
                model = theirs(parts[tower.part].config)
            found[tower.part] = convert_open_clip_checkpoint(model, tensors, tower.prefix)
        else:
            found[tower.part] = convert_ldm_clip_checkpoint(tensors)
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert shapes_of(found[name]) == shapes_of(part.tensors), name


def test_we_find_every_tensor_again(whole: Whole) -> None:
    family, parts, tensors = whole
    found = outline_of(stored(shapes_of(tensors)))
    assert found.family == family
    for name, part in parts.items():
        again = {key: source.read(tensors[source.name]) for key, source in found.sources[name].items()}
        assert shapes_of(again) == shapes_of(part.tensors), name
        assert found.configs[name] == part.config, name


def test_names_are_those_of_the_published_files(whole: Whole) -> None:
    family, _, tensors = whole
    if family.name in PUBLISHED:
        count, facts = PUBLISHED[family.name]
        assert len(tensors) == count
        assert {name: tuple(tensors[name].shape) for name in facts} == facts


def test_the_rest_of_published_files_is_passed_over(whole: Whole) -> None:
    """Published files hold the noise schedule, the temperature of CLIP and the last layer that SD 2 does not use."""
    _, parts, tensors = whole
    shapes = shapes_of(tensors)
    for tower in TOWERS:
        if tower.openclip and f"{tower.prefix}positional_embedding" in shapes:
            shapes[f"{tower.prefix}logit_scale"] = ()
        elif any(name.startswith(tower.prefix) for name in shapes):
            shapes[f"{tower.prefix}text_model.embeddings.position_ids"] = (1, 77)
    last = {
        name.replace(".22.", ".23."): shape
        for name, shape in shapes.items()
        if "cond_stage_model" in name and ".22." in name
    }
    more = {"betas": (1000,), "alphas_cumprod": (1000,), "model_ema.decay": (), "model_ema.num_updates": ()}
    if last:
        more["cond_stage_model.model.text_projection"] = (1024, 1024)
    found = outline_of(stored({**shapes, **last, **more}))
    assert {name: len(sources) for name, sources in found.sources.items()} == {
        name: len(part.tensors) for name, part in parts.items()
    }


def test_parts_alone_are_known(whole: Whole) -> None:
    family, parts, tensors = whole
    shapes = shapes_of(tensors)
    nets = {name: shape for name, shape in shapes.items() if name.startswith(UNET)}
    vae = {name: shape for name, shape in shapes.items() if name.startswith(VAE)}
    alone: dict[str, tuple[str, Shapes]] = {
        "U-Net": ("unet", nets),
        "U-Net without prefix": ("unet", {name.removeprefix(UNET): shape for name, shape in nets.items()}),
        "U-Net of diffusers": ("unet", shapes_of(parts["unet"].tensors)),
        "VAE": ("vae", vae),
        "VAE without prefix": ("vae", {name.removeprefix(VAE): shape for name, shape in vae.items()}),
        "VAE of diffusers": ("vae", shapes_of(parts["vae"].tensors)),
        "text encoder of transformers": ("text_encoder", shapes_of(parts["text_encoder"].tensors)),
    }
    for what, (part, shapes_alone) in alone.items():
        found = outline_of(stored(shapes_alone))
        assert set(found.sources) == {part}, what
        assert found.sources[part].keys() == parts[part].tensors.keys(), what
        assert {source.name for source in found.sources[part].values()} == shapes_alone.keys(), what
        assert found.family == (family if part == "unet" else None), what
    assert outline_of(stored(nets)).configs["unet"] == parts["unet"].config


def announced(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of any size, its tensors all holes."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return path


def test_a_file_of_full_size(tmp_path: Path) -> None:
    family = FAMILIES[0]
    parts = full_size(family)
    path = announced(tmp_path / "any.safetensors", shapes_of(joined(parts)))
    found = read_single_file(path)
    assert (found.family, found.prediction, found.prediction_from) == (family, "epsilon", "family")
    for name, part in parts.items():
        assert shapes_of(found.parts[name].tensors) == shapes_of(part.tensors)
        assert found.parts[name].config == part.config
        assert {tensor.dtype for tensor in found.parts[name].tensors.values()} == {torch.float16}
    assert found.parts["scheduler"].config["beta_schedule"] == "scaled_linear"


def test_a_checkpoint_of_full_size(tmp_path: Path) -> None:
    """A pickle has no header; the numbers beside its tensors tell what they do in 2.0-base."""
    parts = full_size(FAMILIES[2])
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes_of(joined(parts)).items()}
    torch.save({"state_dict": tensors, "global_step": 875000, "epoch": 1}, tmp_path / "any.ckpt")
    with pytest.raises(UserError, match="--allow-pickle"):
        read_single_file(tmp_path / "any.ckpt")
    found = read_single_file(tmp_path / "any.ckpt", allow_pickle=True)
    assert (found.family, found.prediction, found.prediction_from) == (FAMILIES[2], "epsilon", "training step")
    for name, part in parts.items():
        assert shapes_of(found.parts[name].tensors) == shapes_of(part.tensors)


def outline_of_sd2(
    metadata: dict[str, str] | None = None, numbers: dict[str, float] | None = None, **arguments: Any
) -> Outline:
    net = {
        "conv_in.weight": (320, 4, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
    }
    return outline_of(stored(net, metadata, numbers), **arguments)


@pytest.mark.parametrize(
    ("metadata", "numbers", "arguments", "expected"),
    [
        ({}, {}, {}, ("v_prediction", "assumed", 96)),
        ({}, {"global_step": 875000}, {}, ("epsilon", "training step", 64)),
        ({}, {"global_step": 110000}, {}, ("v_prediction", "assumed", 96)),
        ({"modelspec.prediction_type": "epsilon"}, {}, {}, ("epsilon", "header", 64)),
        ({"modelspec.prediction_type": "v"}, {"global_step": 875000}, {}, ("v_prediction", "header", 96)),
        ({"modelspec.prediction_type": "v"}, {}, {"prediction": "epsilon"}, ("epsilon", "argument", 64)),
        ({"modelspec.resolution": "512x512"}, {}, {}, ("v_prediction", "assumed", 64)),
        ({"modelspec.resolution": "wide"}, {}, {}, ("v_prediction", "assumed", 96)),
    ],
)
def test_what_sd2_predicts(
    metadata: dict[str, str], numbers: dict[str, float], arguments: dict[str, Any], expected: tuple[str, str, int]
) -> None:
    found = outline_of_sd2(metadata, numbers, **arguments)
    assert (found.prediction, found.prediction_from, found.configs["unet"]["sample_size"]) == expected
    assert found.configs["scheduler"]["prediction_type"] == expected[0]


def test_markers_of_a_v_model_of_sdxl() -> None:
    net = {
        "conv_in.weight": (320, 4, 3, 3),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    }
    plain, marked = outline_of(stored(net)), outline_of(stored({**net, "v_pred": (0,), "ztsnr": (0,)}))
    assert (plain.prediction, plain.prediction_from) == ("epsilon", "family")
    assert (marked.prediction, marked.prediction_from) == ("v_prediction", "marker")
    assert marked.configs["scheduler"]["rescale_betas_zero_snr"] is True


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"conditioner.embedders.0.model.text_projection": (1280, 1280)}, "refiner"),
        (
            {"conv_in.weight": (4, 8, 3, 3), "down_blocks.0.transformer_blocks.0.attn2.to_k.weight": (4, 768)},
            "8 channels",
        ),
        ({"conv_in.weight": (4,), "down_blocks.0.transformer_blocks.0.attn2.to_k.weight": (4, 768)}, "has the shape"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "ControlNet"),
        ({"lora_unet_mid.lora_down.weight": (4, 4)}, "holds no part of Stable Diffusion"),
        ({f"{UNET}time_embed.0.weight": (4, 4)}, "reads no text"),
        ({"cond_stage_model.transformer.text_model.a": (4,)}, "is missing"),
        ({"text_model.embeddings.position_embedding.weight": (77, 100)}, "100 wide"),
    ],
)
def test_what_is_no_model_is_named(shapes: Shapes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        outline_of(stored(shapes))


# ---- small models with real numbers ----

SMALL_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SMALL_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}
SMALL_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2],
}


def small_text(width: int, activation: str, projects: bool) -> dict[str, Any]:
    tokenizer = tokenizer_of_words()
    return {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": activation,
        "projection_dim": 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {**SMALL_UNET, "cross_attention_dim": 24},
        "vae": SMALL_VAE,
        "text_encoder": small_text(24, "quick_gelu", False),
    },
    "sd2": {
        "unet": {**SMALL_UNET, "cross_attention_dim": 32, "use_linear_projection": True},
        "vae": SMALL_VAE,
        "text_encoder": small_text(32, "gelu", False),
    },
    "sdxl": {
        "unet": {**SMALL_UNET, **SMALL_XL, "cross_attention_dim": 56},
        "vae": SMALL_VAE,
        "text_encoder": small_text(24, "quick_gelu", False),
        "text_encoder_2": small_text(32, "gelu", True),
    },
}
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def small(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Part]:
    torch.manual_seed(0)
    parts = {name: part_of(config) for name, config in SMALL[kind].items()}
    for part in parts.values():
        part.tensors = {key: (value + 0.1 * torch.randn_like(value)).to(dtype) for key, value in part.tensors.items()}
    return {**parts, "scheduler": Part(SCHEDULER)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_return_as_they_were(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    parts, path = small(kind, dtype), tmp_path / "model.safetensors"
    write_single_file(parts, path)
    found = read_single_file(path)
    assert found.parts.keys() == parts.keys()
    assert not found.unused
    for name, part in parts.items():
        assert found.parts[name].config == part.config
        assert_same(found.parts[name].tensors, part.tensors)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_returns_as_it_was(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_single_file(small(kind, dtype), first)
    write_single_file(read_single_file(first).parts, second)
    assert_same(load_file(second), load_file(first))


PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def their_pipeline(kind: str, parts: dict[str, Part]) -> Any:
    """A pipeline of diffusers with these weights."""
    models: dict[str, Any] = {}
    for name, part in parts.items():
        if part.tensors:
            models[name] = theirs(part.config)
            mine = {key.removeprefix("text_model."): value for key, value in part.tensors.items()}
            wrapped = any(key.startswith("text_model.") for key in models[name].state_dict())
            models[name].load_state_dict(part.tensors if wrapped or "_class_name" in part.config else mine)
    models |= {"scheduler": DDIMScheduler(prediction_type="v_prediction"), "tokenizer": tokenizer_of_words()}
    if kind == "sdxl":
        return StableDiffusionXLPipeline(**models, tokenizer_2=tokenizer_of_words())
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**models, **more)


@pytest.mark.parametrize("kind", SMALL)
def test_diffusers_opens_ours(kind: str, tmp_path: Path) -> None:
    """Their pipeline's own way in, offline: they look for the configurations in a folder."""
    parts, path = small(kind), tmp_path / "model.safetensors"
    write_single_file(parts, path)
    their_pipeline(kind, parts).save_pretrained(tmp_path / "configs")
    extra = {} if kind == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    opened = PIPELINES[kind].from_single_file(
        str(path), config=str(tmp_path / "configs"), local_files_only=True, **extra
    )
    for name, part in parts.items():
        if part.tensors:
            model = getattr(opened, name)
            found = clip_state(model) if name.startswith("text") else dict(model.state_dict())
            assert_same(found, part.tensors)


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **metadata: str) -> Path:
    """A file changed as other programs would, with its header kept."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(change(load_file(path)), path, metadata={**header, **metadata})
    return path


def file_of(kind: str, folder: Path) -> Path:
    write_single_file(small(kind), folder / "model.safetensors")
    return folder / "model.safetensors"


def with_average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    net = {name: value for name, value in tensors.items() if name.startswith(UNET)}
    average = {"model_ema." + name.removeprefix("model.").replace(".", ""): -value for name, value in net.items()}
    return {**tensors, **average, "model_ema.decay": torch.tensor(0.99), "betas": torch.ones(10)}


def test_the_moving_average_is_taken_on_request(tmp_path: Path) -> None:
    path, parts = rewritten(file_of("sd1", tmp_path), with_average), small("sd1")
    plain, averaged = read_single_file(path), read_single_file(path, ema=True)
    assert_same(plain.parts["unet"].tensors, parts["unet"].tensors)
    assert_same(averaged.parts["unet"].tensors, {key: -value for key, value in parts["unet"].tensors.items()})
    assert_same(averaged.parts["vae"].tensors, parts["vae"].tensors)
    assert {"betas", "model_ema.decay"} <= set(plain.unused)


def test_diffusers_takes_the_same_average(tmp_path: Path) -> None:
    tensors = with_average(joined(full_size(FAMILIES[0])))  # they look for a hundred tensors of an average
    average = convert_ldm_unet_checkpoint(tensors, FAMILIES[0].unet_config(512), extract_ema=True)
    found = outline_of(stored(shapes_of(tensors)), ema=True)
    for key, source in found.sources["unet"].items():
        assert average[key] is tensors[source.name]


def test_without_an_average_the_request_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors: it holds no moving average"):
        read_single_file(file_of("sd1", tmp_path), ema=True)


def test_names_of_an_older_transformers(tmp_path: Path) -> None:
    def older(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("transformer.text_model.", "transformer."): value for name, value in tensors.items()}

    found = read_single_file(rewritten(file_of("sd1", tmp_path), older))
    assert_same(found.parts["text_encoder"].tensors, small("sd1")["text_encoder"].tensors)


def test_a_projection_as_diffusers_script_writes_it(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "conditioner.embedders.1.model.text_projection"
        return {**tensors, f"{name}.weight": tensors.pop(name).T.contiguous()}

    found = read_single_file(rewritten(file_of("sdxl", tmp_path), renamed))
    assert_same(found.parts["text_encoder_2"].tensors, small("sdxl")["text_encoder_2"].tensors)


def test_conversion_while_reading_and_writing(tmp_path: Path) -> None:
    parts, path = small("sdxl"), tmp_path / "half.safetensors"
    write_single_file(parts, path, dtype=torch.float16)
    halved = read_single_file(path).parts
    for found in (halved, read_single_file(file_of("sdxl", tmp_path), dtype=torch.float16).parts):
        for name, part in parts.items():
            assert_same(found[name].tensors, {key: value.half() for key, value in part.tensors.items()})


def test_the_argument_overrides_the_header(tmp_path: Path) -> None:
    path = file_of("sd2", tmp_path)
    told, forced = read_single_file(path), read_single_file(path, prediction="epsilon")
    assert (told.prediction, told.prediction_from) == ("v_prediction", "header")
    assert forced.parts["scheduler"].config == {**SCHEDULER, "prediction_type": "epsilon"}
    with pytest.raises(UserError, match="one of: epsilon, v_prediction"):
        read_single_file(path, prediction="velocity")


@pytest.mark.parametrize(
    ("kind", "architecture"), [("sd1", "stable-diffusion-v1"), ("sdxl", "stable-diffusion-xl-v1-base")]
)
def test_the_header(kind: str, architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file(small(kind), path, title="Ein Käfer")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    expected = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "title": "Ein Käfer",
        "prediction_type": "v",
        "resolution": "32x32",
    }
    assert {key: header[f"modelspec.{key}"] for key in expected} == expected
    assert {"modelspec.implementation", "modelspec.date", "format"} <= header.keys()


@pytest.mark.parametrize(
    ("family", "prediction", "expected"),
    [
        ("sd1-inpainting", "epsilon", "stable-diffusion-v1-inpainting"),
        ("sd2", "epsilon", "stable-diffusion-v2-512"),
        ("sd2", "v_prediction", "stable-diffusion-v2-768-v"),
    ],
)
def test_architectures(family: str, prediction: str, expected: str, tmp_path: Path) -> None:
    found = next(known for known in FAMILIES if known.name == family)
    parts = {"unet": Part(found.unet_config(512)), "scheduler": Part({"prediction_type": prediction})}
    write_single_file({**parts, "vae": small("sd1")["vae"]}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == expected


def test_what_the_layout_has_no_place_for(tmp_path: Path) -> None:
    parts = small("sd1")
    parts["unet"].tensors["time_embedding.cond_proj.weight"] = torch.ones(2, 2)
    with pytest.raises(UserError, match=r"no place for 1 tensors of the unet \(time_embedding.cond_proj.weight\)"):
        write_single_file(parts, tmp_path / "lcm.safetensors")
    assert not list(tmp_path.iterdir())
    parts = small("sd2")
    del parts["text_encoder"].tensors["text_model.encoder.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(UserError, match="lacks one of q, k and v"):
        write_single_file(parts, tmp_path / "half.safetensors")


@pytest.mark.parametrize("kind", SMALL)
def test_a_lost_tensor_is_told_or_missing(kind: str, tmp_path: Path) -> None:
    """Never anything but our own error; where the reader cannot know, the part lacks what the file lacks."""
    path, parts = file_of(kind, tmp_path), small(kind)
    whole = load_file(path)
    expected = sum(len(part.tensors) for part in parts.values())
    told = 0
    for name in sorted(whole)[:: len(whole) // 12]:
        rewritten(path, lambda _, name=name: {key: value for key, value in whole.items() if key != name})
        try:
            found = read_single_file(path).parts
        except UserError as error:
            told += str(path) in str(error)
            continue
        told += sum(len(part.tensors) for part in found.values()) < expected
    assert told == len(sorted(whole)[:: len(whole) // 12])


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": 1}', '{"unet": {}}', '{"vae": {"down_block_types": 3}}'])
def test_a_damaged_header(text: str, tmp_path: Path) -> None:
    path = rewritten(file_of("sd1", tmp_path), dict, **{CONFIGS: text})
    with pytest.raises(UserError) as caught:
        read_single_file(path)
    assert str(path) in str(caught.value)


def test_a_scalar_for_a_fused_projection(tmp_path: Path) -> None:
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    path = rewritten(file_of("sd2", tmp_path), lambda tensors: {**tensors, name: torch.tensor(1.0)})
    with pytest.raises(UserError, match="should hold q, k and v"):
        read_single_file(path)


def test_missing_and_cut_files(tmp_path: Path) -> None:
    path = file_of("sd1", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    for wrong in (path, tmp_path / "none.safetensors"):
        with pytest.raises(UserError, match=wrong.name):
            read_single_file(wrong)


def test_reading_maps_and_does_not_copy(tmp_path: Path) -> None:
    def private() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    size = 1 << 26
    save_file({"a": torch.ones(size // 4), "b": torch.ones(3)}, tmp_path / "large.safetensors")
    before = private()
    found = read_tensors(tmp_path / "large.safetensors")
    assert found["a"].sum() == size // 4
    assert private() - before < size // 4
    half = read_tensors(tmp_path / "large.safetensors", torch.float16, {"a"})
    assert half.keys() == {"a"}
    assert private() - before < size // 2 + size // 4


def test_configurations_travel_as_json(tmp_path: Path) -> None:
    with safe_open(file_of("sd1", tmp_path), "pt") as file:
        assert json.loads(file.metadata()[CONFIGS])["vae"] == SMALL_VAE
