"""What a single file is, told from names and shapes: all families at full size, against diffusers and known facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from single_files import (
    announced,
    full_size,
    shapes_of,
    stored,
    theirs,
)
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.compvis import TOWERS, UNET, VAE
from ldm.weights.families import FAMILIES, Family, Part
from ldm.weights.outline import Outline, outline_of
from ldm.weights.single_file import joined, read_single_file
from ldm.weights.stored import Shapes

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
