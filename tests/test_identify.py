"""What is said of each kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from single_files import announced, file_of, full_size
from tiny_models import written
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.families import FAMILIES
from ldm.weights.identify import Told, identify
from ldm.weights.single_file import joined


def told_of(tensors: dict[str, Tensor], folder: Path, **metadata: str) -> Told:
    save_file(tensors, folder / "file.safetensors", metadata=metadata or None)
    return identify(folder / "file.safetensors")


def two(name: str, rank: int, downs: str, ups: str) -> dict[str, Tensor]:
    return {f"{name}{downs}": torch.ones(rank, 8), f"{name}{ups}": torch.ones(8, rank)}


@pytest.mark.parametrize("family", FAMILIES[::2], ids=lambda family: family.name)
def test_single_files_of_full_size(family, tmp_path: Path) -> None:
    parts = full_size(family)
    shapes = {name: tuple(tensor.shape) for name, tensor in joined(parts).items()}
    told = identify(announced(tmp_path / "renamed.safetensors", {**shapes, "model_ema.decay": ()}))
    counts = ", ".join(f"{name} ({len(part.tensors)} tensors)" for name, part in parts.items())
    assert {
        "kind": family.title,
        "form": "single file",
        "parts": counts,
        "moving average": "yes",
    }.items() <= told.items()
    assert told["dtype"] == "float16"
    assert told["prediction"].startswith("v_prediction (assumed" if family.name == "sd2" else "epsilon (as all")


def test_our_own_single_file(tmp_path: Path) -> None:
    told = identify(file_of("sdxl", tmp_path))
    assert told["kind"] == "a model of a shape of its own"
    assert told["prediction"] == "v_prediction (says the header)"
    assert told["moving average"] == "no"
    assert (told["title"], told["architecture"]) == ("model", "stable-diffusion-xl-v1-base")
    assert told["dtype"] == "float32"


def test_parts_alone(tmp_path: Path) -> None:
    vae = {f"encoder.{name}": torch.ones(1) for name in ("conv_in.weight", "down_blocks.0.resnets.0.norm1.weight")}
    assert told_of(vae, tmp_path)["kind"] == "vae alone"


KOHYA, PEFT = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
OLD = ("_lora.down.weight", "_lora.up.weight")
ODD = {"a.b": torch.ones(()), "c.lora_down.weight": torch.ones(())}


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (
            {**two("lora_unet_mid_block", 4, *KOHYA), "lora_unet_mid_block.alpha": torch.ones(())},
            {"kind": "LoRA", "naming": "kohya", "rank": "4", "layers": "1", "parts": "unet"},
        ),
        (
            {**two("unet.mid", 8, *PEFT), **two("unet.up", 8, *PEFT), **two("text_encoder.a", 2, *PEFT)},
            {"kind": "LoRA", "naming": "diffusers", "rank": "8, 2", "parts": "unet, text encoder"},
        ),
        (two("base_model.model.mid", 3, *PEFT), {"kind": "LoRA", "naming": "peft", "rank": "3"}),
        (two("unet.processor.to_q", 5, *OLD), {"kind": "LoRA", "naming": "diffusers (before peft)", "rank": "5"}),
        ({"lora_unet_mid.hada_w1_a": torch.ones(2, 2)}, {"kind": "an adapter that is no plain LoRA (LoHa)"}),
        ({"emb_params": torch.ones(3, 768)}, {"kind": "textual inversion", "width": "768", "tokens": "3"}),
        ({"<cat>": torch.ones(1024)}, {"kind": "textual inversion", "word": "<cat>", "width": "1024", "tokens": "1"}),
        (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
            {"kind": "textual inversion for Stable Diffusion XL", "tokens": "2"},
        ),
        ({"control_model.time_embed.0.weight": torch.ones(2, 2)}, {"kind": "ControlNet", "naming": "CompVis"}),
        ({"controlnet_cond_embedding.conv_in.weight": torch.ones(2, 2)}, {"kind": "ControlNet", "naming": "diffusers"}),
        ({"a.b": torch.ones(2), "c.d": torch.ones(2)}, {"kind": "tensors of no model that is known"}),
        (ODD, {"kind": "tensors of no model that is known", "dtype": "float32"}),
    ],
)
def test_kinds(tensors: dict[str, Tensor], expected: dict[str, str], tmp_path: Path) -> None:
    assert expected.items() <= told_of(tensors, tmp_path).items()


def reading(width: int, key: str, tail: str) -> dict[str, Tensor]:
    """A LoRA of a layer that reads text of this width."""
    return {
        f"{key}{tail}": torch.ones(4, width),
        f"{key}{tail.replace('down', 'up').replace('_A', '_B')}": torch.ones(8, 4),
    }


KOHYA_KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PEFT_KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("width", "family"),
    [
        (768, "Stable Diffusion 1.x"),
        (1024, "Stable Diffusion 2.x"),
        (2048, "Stable Diffusion XL"),
        (1280, "no family that is known"),
    ],
)
@pytest.mark.parametrize(
    ("key", "tail"),
    [
        (KOHYA_KEY, ".lora_down.weight"),
        (f"{PEFT_KEY}.to_k", ".lora_A.weight"),
        (f"{PEFT_KEY}.to_k", ".lora.down.weight"),
        (f"{PEFT_KEY}.processor", ".to_k_lora.down.weight"),
    ],
)
def test_the_family_of_a_lora(width: int, family: str, key: str, tail: str, tmp_path: Path) -> None:
    assert told_of(reading(width, key, tail), tmp_path)["for"] == family


def test_a_lora_of_another_network(tmp_path: Path) -> None:
    assert told_of(two("lora_unet_double_blocks_0", 4, *KOHYA), tmp_path)["for"] == "no family that is known"
    assert "for" not in told_of(two("lora_te_text_model", 4, *KOHYA), tmp_path)


def test_what_a_trainer_wrote(tmp_path: Path) -> None:
    counts = {"1_cats": {"cat": 5, "hat ": 3, "bat": 1}, "2_hats": {"hat": 4, "mat": 2, "rat": 2, "vat": 2, "x": "y"}}
    notes = {
        "ss_base_model_version": "sd_v1",
        "ss_output_name": "my\x1b[2J\ncats",
        "ss_tag_frequency": json.dumps(counts),
    }
    told = told_of(two(KOHYA_KEY, 4, *KOHYA), tmp_path, **notes)
    assert told["trained on"] == "sd_v1"
    assert told["called"] == r"my\x1b[2J cats"
    assert told["frequent tags"] == "hat, cat, mat, rat, vat"
    for odd in ("[" * 100_000, "[1]", '{"a": 1, "b": {"c": null}}', "no"):
        assert "frequent tags" not in told_of(two(KOHYA_KEY, 4, *KOHYA), tmp_path, ss_tag_frequency=odd)


@pytest.fixture
def shapes(tmp_path: Path) -> dict[str, tuple[int, ...]]:
    parts = full_size(FAMILIES[0])
    return {name: tuple(tensor.shape) for name, tensor in joined(parts).items()}


def test_a_model_that_lacks_something(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    def fault(changed: dict[str, tuple[int, ...]]) -> str:
        return identify(announced(tmp_path / "a.safetensors", changed)).get("fault", "")

    def without(start: str) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if not name.startswith(start)}

    assert fault(shapes) == ""
    assert fault(without("first_stage_model.")) == "it holds no vae; one can be given as --vae"
    assert fault(without("cond_stage_model.")) == "it holds no text_encoder"
    lost = "model.diffusion_model.out.2.bias"
    assert "unet does not fit its configuration: 1 missing (conv_out.bias)" in fault(without(lost))
    narrow = "first_stage_model.decoder.conv_out.bias"
    assert "vae does not fit its configuration: 1 of another shape" in fault({**shapes, narrow: (2,)})


def test_pickles_are_asked_about(tmp_path: Path) -> None:
    embedding = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": torch.ones(2, 768)},
        "name": "cat",
    }
    torch.save(embedding, tmp_path / "cat.pt")
    with pytest.raises(UserError, match="--allow-pickle"):
        identify(tmp_path / "cat.pt")
    assert identify(tmp_path / "cat.pt", allow_pickle=True)["kind"] == "textual inversion"


def test_folders(tmp_path: Path) -> None:
    folder = written("text", tmp_path / "model")
    told = identify(folder)
    assert told["kind"] == "StableDiffusionPipeline"
    assert set(told["parts"].split(", ")) == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert told["variants"] == "(none)"
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
    (folder / "vae" / "diffusion_pytorch_model.bin").touch()
    assert identify(folder)["variants"] == "(none), (none) as pickle, fp16"
    assert identify(folder / "unet")["kind"] == "UNet2DConditionModel"
    assert identify(folder / "text_encoder")["kind"] == "CLIPTextModel"
    with pytest.raises(UserError, match="is no folder of a model"):
        identify(tmp_path)
    with pytest.raises(UserError, match="is missing"):
        identify(tmp_path / "none.safetensors")
