"""ControlNets from single files, against diffusers' reader of the same files, and drawn with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel  # type: ignore[attr-defined]
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from single_files import announced, assert_same
from tiny_families import PROMPT, Folders, control_net
from tiny_models import fill, written
from torch import Tensor

import ldm
from ldm.cpu_fastpath import cpu_fastpath_supported
from ldm.errors import UserError
from ldm.images import to_pil
from ldm.models.controlnet import ControlNet, ControlNetConfig
from ldm.weights.components import Reading, describe, save_module
from ldm.weights.controlnets import read_controlnet
from ldm.weights.families import Part
from ldm.weights.identify import identify
from ldm.weights.single_file import joined, write_single_file

COMMIT = 40 * "a"
PREFIX = "control_model."
# Small, but with the text widths that tell the families, and heads as those have.
TOLD = {
    "sd1": {"attention": (True, False), "num_attention_heads": 8, "cross_attention_dim": 768},
    "sd2": {
        "attention": (True, True),
        "num_attention_heads": (1, 2),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        "attention": (False, True),
        "num_attention_heads": (1, 2),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "pooled_dim": 1280,
    },
    "sdxl small": {
        "attention": (False, False),
        "mid_attention": False,
        "num_attention_heads": (1, 2),
        "cross_attention_dim": 2048,
        "pooled_dim": 1280,
    },
    "one channel": {
        "attention": (False, False),
        "num_attention_heads": (1, 2),
        "cross_attention_dim": 1024,
        "transformer_layers_per_block": (1, 3),
        "use_linear_projection": True,
        "conditioning_channels": 1,
        "conditioning_embedding_out_channels": (8, 16, 24, 32),
    },
}
COMPVIS = ("sd1", "sd2", "one channel")  # the families whose ControlNets are named so
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "one channel": "Stable Diffusion 2.x"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nets")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("families"))


def folder_of(kind: str, place: Path) -> Path:
    """A folder of diffusers' ``ControlNetModel``."""
    folder = place / kind
    if not folder.exists():
        torch.manual_seed(0)
        config = ControlNetConfig(block_out_channels=(64, 128), **TOLD[kind])
        save_module(fill(ControlNet(config)), folder)
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def compvis_of(kind: str, place: Path) -> dict[str, Tensor]:
    """The tensors of a ControlNet by CompVis' names; diffusers' reading of them is compared below."""
    folder = folder_of(kind, place)
    net = read_controlnet(folder)
    return joined({"controlnet": Part(describe(net), tensors_of(folder))})


def by_diffusers(file: Path, folder: Path) -> dict[str, Tensor]:
    return dict(ControlNetModel.from_single_file(str(file), config=str(folder), local_files_only=True).state_dict())


def assert_read(file: Path, folder: Path, how: Reading = Reading()) -> None:  # noqa: B008
    """As diffusers reads it, and as it was: the shape, which diffusers is told, and every tensor."""
    found, expected = read_controlnet(file, how), read_controlnet(folder)
    assert found.config == expected.config
    assert_same(dict(found.state_dict()), tensors_of(folder))
    if file.suffix == ".safetensors":
        assert_same(dict(found.state_dict()), by_diffusers(file, folder))


# ---------------------------------------------------------------------------- files of others


@pytest.mark.parametrize("kind", TOLD)
def test_files_with_the_names_of_diffusers(kind: str, place: Path, tmp_path: Path) -> None:
    folder = folder_of(kind, place)
    save_file(tensors_of(folder), tmp_path / "net.safetensors")
    assert_read(tmp_path / "net.safetensors", folder)
    told = identify(tmp_path / "net.safetensors")
    assert (told["kind"], told["naming"]) == ("ControlNet", "diffusers")
    assert told["for"] == TITLES.get(kind, "Stable Diffusion XL")


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("kind", COMPVIS)
def test_files_with_the_names_of_compvis(kind: str, prefix: str, place: Path, tmp_path: Path) -> None:
    tensors = {prefix + name.removeprefix(PREFIX): value for name, value in compvis_of(kind, place).items()}
    save_file(tensors, tmp_path / "net.safetensors")
    assert_read(tmp_path / "net.safetensors", folder_of(kind, place))
    told = identify(tmp_path / "net.safetensors")
    assert (told["kind"], told["naming"]) == ("ControlNet", "CompVis")


def test_a_checkpoint_with_the_model_it_was_trained_with(place: Path, tmp_path: Path) -> None:
    base = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 4, 3, 3)}
    save_file({**compvis_of("sd1", place), **base, "betas": torch.ones(3)}, tmp_path / "net.safetensors")
    assert_read(tmp_path / "net.safetensors", folder_of("sd1", place))


@pytest.mark.parametrize("ending", [".pth", ".ckpt"])
def test_pickles_are_asked_about(ending: str, place: Path, tmp_path: Path) -> None:
    file = tmp_path / f"net{ending}"
    torch.save({"state_dict": compvis_of("sd1", place)}, file)
    with pytest.raises(UserError, match=r"is a pickle.*--allow-pickle"):
        read_controlnet(file)
    assert_read(file, folder_of("sd1", place), Reading(allow_pickle=True))


def test_the_full_size(tmp_path: Path) -> None:
    """Facts of the published files: names, shapes, how many tensors there are, and the shape that they tell."""
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig())
    tensors = joined({"controlnet": Part(describe(net), dict(net.state_dict()))})
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert len(shapes) == 340
    facts = {
        "time_embed.0.weight": (1280, 320),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_v.weight": (1280, 768),
        "zero_convs.11.0.weight": (1280, 1280, 1, 1),
        "input_hint_block.0.weight": (16, 3, 3, 3),
        "input_hint_block.12.bias": (256,),
        "input_hint_block.14.weight": (320, 256, 3, 3),
        "middle_block.1.proj_out.weight": (1280, 1280, 1, 1),
        "middle_block_out.0.weight": (1280, 1280, 1, 1),
    }
    assert facts.items() <= {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}.items()
    told = identify(announced(tmp_path / "net.safetensors", shapes))
    assert (told["kind"], told["for"]) == ("ControlNet", "Stable Diffusion 1.x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_our_own_files(dtype: torch.dtype, folders: Folders, tmp_path: Path) -> None:
    """Of any shape: the header has it."""
    net = control_net("sd1", 11)
    tensors = {name: value.to(dtype) for name, value in net.state_dict().items()}
    write_single_file({"controlnet": Part(describe(net), tensors)}, tmp_path / "net.safetensors")
    found = read_controlnet(tmp_path / "net.safetensors")
    assert found.config == read_controlnet(folders.control("sd1", 11)).config
    assert_same(dict(found.state_dict()), tensors)


def test_a_name_on_the_hub(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="owner/canny is not in the cache"):
        read_controlnet(Path("owner/canny"))
    folder, repo = folder_of("sd1", place), tmp_path / "cache" / "models--owner--canny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    for name in ("owner/canny", "owner/canny/diffusion_pytorch_model.safetensors"):
        assert_same(dict(read_controlnet(Path(name)).state_dict()), tensors_of(folder))


# ------------------------------------------------------------------------------------ drawing


def steered(pipe: Any, net: Path, folders: Folders, **options: Any) -> Any:
    hint = folders.place / "hint.png"
    if not hint.exists():
        rows, columns = torch.arange(32)[:, None], torch.arange(32)[None]
        to_pil(torch.sin(rows * 0.9 + columns * 0.4 + torch.arange(3)[:, None, None])[None])[0].save(hint)
    control = {"net": net, "hint": hint, **options}
    settings = {"steps": 4, "guidance": 3.0, "sampler": "ddim", "height": 32, "width": 32}
    return pipe(PROMPT, seed=3, pictures={"controls": (control,)}, **settings)[0]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_file_draws_what_its_folder_draws(family: str, folders: Folders, tmp_path: Path) -> None:
    net = control_net(family, 11)
    file = tmp_path / "net.safetensors"
    write_single_file({"controlnet": Part(describe(net), dict(net.state_dict()))}, file)
    pictures = [steered(folders.ours(family), path, folders) for path in (folders.control(family, 11), file)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert pictures[0].tobytes() != steered(folders.ours(family), file, folders, scale=0.0).tobytes()


def test_a_pickled_net_draws_where_it_is_allowed(folders: Folders, tmp_path: Path) -> None:
    net = folders.place / "wide.pth"
    torch.save(compvis_of("sd1", tmp_path), net)
    with pytest.raises(UserError, match="--allow-pickle"):
        steered(folders.ours("sd1"), net, folders)
    with pytest.raises(UserError, match="does not fit this model: its width of the context is 768, and here 24"):
        steered(folders.ours("sd1"), net, folders, allow_pickle=True)


@pytest.mark.skipif(not cpu_fastpath_supported(), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_bf16_on_the_fast_path(family: str, folders: Folders) -> None:
    """Both networks have packed layers there; what they draw is that of float32, but for rounding."""
    packed = ldm.load(folders.folder(family), device="cpu", dtype="bf16")
    found, expected, alone = (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) / 255
        for image in (
            steered(packed, folders.control(family, 11), folders),
            steered(folders.ours(family), folders.control(family, 11), folders),
            steered(folders.ours(family), folders.control(family, 11), folders, scale=0.0),
        )
    )
    assert (found - expected).abs().max() < 2e-2 < (alone - expected).abs().max()


@pytest.mark.skipif(not cpu_fastpath_supported(), reason="this CPU does not compute in bfloat16")
def test_the_net_is_made_ready_as_the_model_is(folders: Folders) -> None:
    from ldm.drawing import Drawing
    from ldm.workpieces import PictureFiles, prepare

    pipe = ldm.load(folders.folder("sd1"), device="cpu", dtype="bf16", attention="math")
    steered(pipe, folders.control("sd1", 11), folders)
    files = PictureFiles.checked(
        {"controls": [{"net": folders.control("sd1", 11), "hint": folders.place / "hint.png"}]}
    )
    (control,) = prepare(files, pipe.model, Drawing(height=32, width=32)).inputs.controls
    kinds = {type(module).__name__ for module in control.net.modules()}
    assert {"PackedConv2d", "PackedLinear", "FusedResnetBlock"} <= kinds
    assert {module.backend for module in control.net.modules() if hasattr(module, "backend")} == {"math"}
    assert control.net.conv_in.weight.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------ mistakes

KOHYA = {"lora_unet_mid.lora_down.weight": torch.ones(4, 8), "lora_unet_mid.lora_up.weight": torch.ones(8, 4)}
BARE = {"input_hint_block.0.weight": torch.ones(2, 2, 3, 3)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (KOHYA, "is no ControlNet: it is LoRA"),
        ({**BARE, "lora_controlnet": torch.ones(1)}, "is no ControlNet: it is Control-LoRA"),
        ({**BARE, "difference": torch.ones(1)}, "it is ControlNet that is kept as its difference to a U-Net"),
        (
            {"controlnet_cond_embedding.conv_in.weight": torch.ones(2), "task_embedding": torch.ones(6, 320)},
            "it is ControlNet of several tasks (union)",
        ),
        ({"lllite_unet_input_blocks_4.down.0.weight": torch.ones(2, 2)}, "it is ControlNet-LLLite"),
        ({"body.0.block1.weight": torch.ones(2), "conv_in.weight": torch.ones(2)}, "it is T2I-Adapter"),
        ({"adapter.body.0.resnets.0.block1.weight": torch.ones(2)}, "it is T2I-Adapter"),
        ({"image_proj.proj.weight": torch.ones(2, 2)}, "it is IP-Adapter"),
        ({"emb_params": torch.ones(3, 768)}, "it is textual inversion"),
        ({"a.b": torch.ones(2)}, "it is tensors of no model that is known (it holds no part of Stable Diffusion"),
        (BARE, "its ControlNet cannot be built: it lacks the tensor that becomes controlnet_"),
    ],
)
def test_files_that_are_no_controlnets(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        read_controlnet(tmp_path / "net.safetensors")


def test_places_that_are_no_controlnets(folders: Folders, tmp_path: Path) -> None:
    model = written("text", tmp_path / "model")
    with pytest.raises(UserError, match="is no ControlNet: it is StableDiffusionPipeline"):
        read_controlnet(model)
    with pytest.raises(UserError, match="is no ControlNet: it is AutoencoderKL"):
        read_controlnet(model / "vae")
    with pytest.raises(UserError, match="is missing"):
        read_controlnet(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is neither a safetensors file nor a pickle"):
        read_controlnet(model / "model_index.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no folder of a model"):
        read_controlnet(tmp_path / "empty")
    damaged = tmp_path / "half.safetensors"
    whole = (folders.control("sd1", 11) / "diffusion_pytorch_model.safetensors").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_controlnet(damaged)


@pytest.mark.parametrize("naming", ["diffusers", "CompVis"])
def test_a_tensor_that_is_missing_is_named(naming: str, place: Path, tmp_path: Path) -> None:
    tensors = tensors_of(folder_of("sd1", place)) if naming == "diffusers" else compvis_of("sd1", place)
    for name in list(tensors)[:: len(tensors) // 12]:
        save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "net.safetensors")
        with pytest.raises(UserError, match=r"lacks the tensor|is missing|missing \("):
            read_controlnet(tmp_path / "net.safetensors")
