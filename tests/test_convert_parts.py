"""Parts of a model alone, from one form into the other: as they were by a bit, and as diffusers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import change, contents, refused
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel  # type: ignore[attr-defined]
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import SMALL, announced, assert_same, clip_state, full_size, part_of, shapes_of, with_average
from tiny_families import control_net
from tiny_models import vae, written
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm.convert_command import convert_files
from ldm.errors import UserError
from ldm.weights.components import describe
from ldm.weights.contents import part_alone, read_part
from ldm.weights.converting import convert_model
from ldm.weights.families import FAMILIES as TABLE
from ldm.weights.families import Part, text_config, vae_config
from ldm.weights.files import write_json
from ldm.weights.identify import identify
from ldm.weights.opening import Loading
from ldm.weights.single_file import joined, write_single_file

UNET = "model.diffusion_model."
# name -> (the part, where its configuration is in SMALL)
PARTS = {
    "unet sd1": ("unet", "sd1", "unet"),
    "unet sd2": ("unet", "sd2", "unet"),
    "unet sdxl": ("unet", "sdxl", "unet"),
    "vae": ("vae", "sd1", "vae"),
    "clip": ("text_encoder", "sd1", "text_encoder"),
    "openclip": ("text_encoder", "sd2", "text_encoder"),
    "openclip xl": ("text_encoder", "sdxl", "text_encoder_2"),
    "controlnet sd1": ("controlnet", "sd1", ""),
    "controlnet sdxl": ("controlnet", "sdxl", ""),
}
OWN_NAMES = ("clip", "openclip", "openclip xl", "controlnet sdxl")  # those of transformers and diffusers
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PREFIXES = {"unet sd1": UNET, "vae": "", "clip": "text_model.", "controlnet sd1": "control_model."}
THEIRS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "controlnet": ControlNetModel}


def small_part(kind: str, dtype: torch.dtype = torch.float32) -> Part:
    name, family, place = PARTS[kind]
    torch.manual_seed(0)
    if name == "controlnet":
        net = control_net(family, 11)
        found = Part(describe(net), dict(net.state_dict()))
    else:
        found = part_of(SMALL[family][place])
    noisy = {key: (value + 0.1 * torch.randn_like(value)).to(dtype) for key, value in found.tensors.items()}
    return Part(found.config, noisy)


def folder_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A part as diffusers or transformers would have it, with a mark of another program."""
    part = small_part(kind, dtype)
    folder.mkdir()
    config = {**part.config, "_diffusers_version": "0.6.0", "dtype": "float16"}
    write_json(folder / "config.json", {k: v for k, v in config.items() if k != "dtype" or "architectures" in config})
    save_file(part.tensors, folder / stem(kind), metadata={"format": "pt"})
    return folder


def stem(kind: str) -> str:
    return "model.safetensors" if PARTS[kind][0] == "text_encoder" else "diffusion_pytorch_model.safetensors"


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


# ---------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PARTS)
def test_a_folder_returns_as_it_was(kind: str, dtype: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "part", DTYPES[dtype])
    done = convert_model(folder, tmp_path / "one.safetensors", "single-file")
    assert done.parts == [PARTS[kind][0]]
    assert done.dtypes == str(DTYPES[dtype]).removeprefix("torch.")
    assert done.left_out == done.assumed == []
    assert done.size == sum(value.numel() * value.itemsize for value in load_file(done.path).values())
    convert_model(done.path, tmp_path / "back", "diffusers")
    assert contents(tmp_path / "back") == contents(folder)


@pytest.mark.parametrize("kind", PARTS)
def test_a_file_returns_as_it_was(kind: str, tmp_path: Path) -> None:
    name = PARTS[kind][0]
    part, first = small_part(kind, torch.float16), tmp_path / "first.safetensors"
    write_single_file({name: part}, first, title="Käfer")
    metadata = {**header(first), "modelspec.author": "Ada", "other": "x"}
    others = {"betas": torch.ones(3)} if kind not in OWN_NAMES else {}  # there, all is taken for the part's
    save_file({**load_file(first), **others}, first, metadata=metadata)
    convert_model(first, tmp_path / "part", "diffusers")
    convert_model(tmp_path / "part", tmp_path / "second.safetensors", "single-file")
    expected = {key: value for key, value in load_file(first).items() if key != "betas"}
    assert_same(load_file(tmp_path / "second.safetensors"), expected)
    done = convert_model(first, tmp_path / "third.safetensors", "single-file", dtype=torch.float32)
    assert done.left_out == list(others)
    assert_same(load_file(done.path), {key: value.float() for key, value in expected.items()})
    after = header(done.path)
    assert (after["modelspec.title"], after["modelspec.author"]) == ("Käfer", "Ada")


@pytest.mark.parametrize("kind", PREFIXES)
def test_names_are_those_that_such_files_have(kind: str, tmp_path: Path) -> None:
    """An autoencoder has no prefix; a text encoder has the names of transformers."""
    convert_model(folder_of(kind, tmp_path / "part"), tmp_path / "one.safetensors", "single-file")
    names = list(load_file(tmp_path / "one.safetensors"))
    assert all(name.startswith(PREFIXES[kind]) for name in names)
    if kind == "vae":
        assert {"encoder.down.0.block.0.norm1.weight", "decoder.conv_out.bias", "quant_conv.weight"} <= set(names)
    if kind == "clip":
        assert set(names) == small_part(kind).tensors.keys()


# -------------------------------------------------------------------------------- with diffusers


@pytest.mark.parametrize("kind", [kind for kind in PARTS if PARTS[kind][0] in THEIRS])
def test_diffusers_reads_the_file(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "part")
    convert_model(folder, tmp_path / "one.safetensors", "single-file")
    cls: Any = THEIRS[PARTS[kind][0]]
    opened = cls.from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), local_files_only=True)
    assert_same(dict(opened.state_dict()), small_part(kind).tensors)


@pytest.mark.parametrize("kind", PARTS)
def test_diffusers_and_transformers_open_the_folder(kind: str, tmp_path: Path) -> None:
    part = small_part(kind, torch.float16)
    write_single_file({PARTS[kind][0]: part}, tmp_path / "one.safetensors")
    convert_model(tmp_path / "one.safetensors", tmp_path / "part", "diffusers")
    text = CLIPTextModelWithProjection if kind == "openclip xl" else CLIPTextModel
    cls: Any = THEIRS.get(PARTS[kind][0], text)
    opened = cls.from_pretrained(tmp_path / "part")
    expected = {key: value.float() for key, value in part.tensors.items()}
    assert_same(clip_state(opened) if cls is text else dict(opened.state_dict()), expected)


@pytest.mark.parametrize("kind", ["vae", "openclip"])
def test_the_half_variant(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "part")
    convert_model(folder, tmp_path / "half", "diffusers", half_variant=True)
    name = stem(kind).replace(".safetensors", ".fp16.safetensors")
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == ["config.json", name]
    expected = {key: value.half() for key, value in small_part(kind).tensors.items()}
    assert_same(load_file(tmp_path / "half" / name), expected)
    convert_model(tmp_path / "half", tmp_path / "one.safetensors", "single-file", Loading(variant="fp16"))
    convert_model(tmp_path / "one.safetensors", tmp_path / "whole", "diffusers")
    assert_same(load_file(tmp_path / "whole" / stem(kind)), expected)
    if kind == "vae":
        opened = AutoencoderKL.from_pretrained(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
        assert_same(dict(opened.state_dict()), expected)


def test_the_run_of_an_autoencoder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    folder = folder_of("vae", checkpoint / "vae")
    write_json(checkpoint / "model_index.json", {"_class_name": "Pipeline", "vae": ["diffusers", "AutoencoderKL"]})
    convert_model(tmp_path / "run", tmp_path / "one.safetensors", "single-file")
    convert_model(tmp_path / "one.safetensors", tmp_path / "back", "diffusers")
    assert contents(tmp_path / "back") == contents(folder)


# ------------------------------------------------------------------------------ files of others


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_of_full_size(prefix: str, tmp_path: Path) -> None:
    """What its tensors do not say is told as assumed."""
    bare = {"vae": full_size(TABLE[0])["vae"]}
    shapes = {prefix + name: shape for name, shape in shapes_of(joined(bare)).items()}
    file = announced(tmp_path / "vae.safetensors", {**shapes, "model_ema.decay": ()})
    assert part_alone(file) == "vae"
    found = read_part(file, "vae", Loading(), None)
    assert found.parts["vae"].config == vae_config(0.18215, 512)
    assert shapes_of(found.parts["vae"].tensors) == shapes_of(bare["vae"].tensors)
    assert found.left_out == ["model_ema.decay"]
    assert found.assumed == ["scaling_factor 0.18215, as of Stable Diffusion 1 and 2; SDXL has 0.13025"]


def test_an_autoencoder_of_sdxl_that_says_so(tmp_path: Path) -> None:
    part = Part(vae_config(0.13025, 1024))
    with torch.device("meta"):
        part.tensors = dict(AutoencoderKL.from_config(part.config).state_dict())
    tensors = {key: torch.zeros(1).expand(value.shape).half() for key, value in part.tensors.items()}
    save_file(
        {key: value.contiguous() for key, value in joined({"vae": Part(part.config, tensors)}).items()},
        tmp_path / "vae.safetensors",
        metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"},
    )
    found = read_part(tmp_path / "vae.safetensors", "vae", Loading(), None)
    assert (found.parts["vae"].config["scaling_factor"], found.assumed) == (0.13025, [])


@pytest.mark.parametrize("width", [768, 1024, 1280])
def test_a_text_encoder_of_full_size(width: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        part = part_of(text_config(width))
    shapes = {**shapes_of(part.tensors), "text_model.embeddings.position_ids": (1, 77)}
    file = announced(tmp_path / "clip.safetensors", shapes)
    assert part_alone(file) == "text_encoder"
    found = read_part(file, "text_encoder", Loading(), None)
    assert found.parts["text_encoder"].config == text_config(width)
    assert shapes_of(found.parts["text_encoder"].tensors) == shapes_of(part.tensors)


def test_an_old_attention_and_a_pickle(tmp_path: Path) -> None:
    folder, part = folder_of("vae", tmp_path / "part"), small_part("vae")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(key: str) -> str:
        return next((key.replace(new, old) for new, old in names.items() if f".{new}." in key), key)

    (folder / stem("vae")).unlink()
    torch.save({older(key): value for key, value in part.tensors.items()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="--allow-pickle"):
        convert_model(folder, tmp_path / "new", "diffusers")
    done = convert_model(folder, tmp_path / "new", "diffusers", Loading(allow_pickle=True))
    assert_same(load_file(tmp_path / "new" / stem("vae")), part.tensors)
    assert done.left_out == []


def test_a_projection_without_use_is_told(tmp_path: Path) -> None:
    folder, part = folder_of("clip", tmp_path / "part"), small_part("clip")
    save_file({**part.tensors, "text_projection.weight": torch.ones(32, 24)}, folder / "model.safetensors")
    done = convert_model(folder, tmp_path / "one.safetensors", "single-file")
    assert done.left_out == ["text_projection.weight"]
    assert_same(load_file(done.path), part.tensors)


def test_the_moving_average_and_the_prediction_of_a_unet(tmp_path: Path) -> None:
    file, part = tmp_path / "unet.safetensors", small_part("unet sd1")
    write_single_file({"unet": part}, file)
    save_file(with_average(load_file(file)), file, metadata=header(file))
    done = convert_model(file, tmp_path / "ema.safetensors", "single-file", Loading(ema=True, prediction="v"))
    expected = {f"{name}": -value for name, value in joined({"unet": part}).items()}
    assert_same(load_file(done.path), expected)
    assert identify(done.path)["prediction"] == "v_prediction (says the header)"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("unet sd1", "stable-diffusion-v1"),
        ("vae", "stable-diffusion-v1/vae"),
        ("clip", "stable-diffusion-v1/text-encoder"),
        ("controlnet sd1", "stable-diffusion-v1/controlnet"),
        ("controlnet sdxl", "stable-diffusion-xl-v1-base/controlnet"),
    ],
)
def test_the_header_says_what_it_is(kind: str, expected: str, tmp_path: Path) -> None:
    convert_model(folder_of(kind, tmp_path / "part"), tmp_path / "one.safetensors", "single-file")
    told = identify(tmp_path / "one.safetensors")
    assert told["architecture"] == expected
    assert told["kind"] == {"controlnet": "ControlNet"}.get(PARTS[kind][0], f"{PARTS[kind][0]} alone")


# ------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("refusals")
    folder_of("vae", found / "vae")
    folder_of("clip", found / "clip")
    write_single_file({"vae": small_part("vae")}, found / "vae.safetensors")
    write_single_file({"unet": small_part("unet sd1")}, found / "unet.safetensors")
    written("text", found / "model")
    convert_model(found / "model", found / "model.safetensors", "single-file")
    (found / "letters").mkdir()
    (found / "letters" / "a.txt").write_text("dear")
    (found / "letters" / "b.safetensors").write_text("dear")
    save_file({"lora_unet_mid.lora_down.weight": torch.ones(2, 2)}, found / "lora.safetensors")
    return found


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("vae", "vae", "is what is converted"),
        ("vae", "vae/inside", "is inside"),
        ("vae.safetensors", "clip", "is there and no vae"),
        ("vae.safetensors", "model", "is there and no vae"),
        ("vae.safetensors", "letters", "is there and no vae"),
        ("vae.safetensors", "letters/a.txt", "is there and no vae"),
        ("vae", "unet.safetensors", "is there and no vae"),
        ("vae", "model.safetensors", "is there and no vae"),
        ("vae", "lora.safetensors", "is there and no vae"),
        ("vae", "letters/b.safetensors", "is there and no vae"),
        ("model", "vae.safetensors", "is there and no model"),
        ("model.safetensors", "vae", "holds something that is no model"),
        ("lora.safetensors", "new", "it holds no part of Stable Diffusion"),
        ("letters", "new", "no model, and no run"),
        ("none.safetensors", "new", "no such folder"),
    ],
)
def test_where_nothing_is_written(place: Path, source: str, target: str, message: str) -> None:
    form: Any = "single-file" if target.endswith(".safetensors") else "diffusers"
    refused(lambda: convert_model(place / source, place / target, form), place, message)


def test_the_same_part_is_replaced(place: Path, tmp_path: Path) -> None:
    other = Part(describe(vae(3)), dict(vae(3).state_dict()))
    write_single_file({"vae": other}, tmp_path / "new.safetensors")
    convert_model(place / "vae.safetensors", tmp_path / "vae", "diffusers")
    convert_model(tmp_path / "new.safetensors", tmp_path / "vae", "diffusers")
    assert_same(load_file(tmp_path / "vae" / stem("vae")), other.tensors)
    convert_model(place / "vae", tmp_path / "new.safetensors", "single-file")
    assert_same(load_file(tmp_path / "new.safetensors"), load_file(place / "vae.safetensors"))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("vae", {"vae": Path("x.safetensors")}, r"vae: not for .*vae, which is no whole model but a vae alone"),
        ("vae.safetensors", {"ema": True, "prediction": "v"}, r"ema, prediction: not for .*but a vae alone"),
        ("clip", {"loras": ("a.safetensors:0.5",)}, r"loras: not for .*but a text_encoder alone"),
        ("unet.safetensors", {"ema": True}, "holds no moving average"),
        ("unet.safetensors", {"prediction": "v"}, "prediction: a folder of a unet alone has no place for it"),
        ("unet.safetensors", {"variant": "fp16"}, "variant is for folders"),
        ("vae", {"variant": "fp16"}, r"is missing; variants there: \(none\)"),
        ("vae", {"revision": "main"}, "revision is for names on the hub"),
    ],
)
def test_flags_that_do_not_go_together(place: Path, source: str, options: dict[str, Any], message: str) -> None:
    refused(lambda: convert_files(str(place / source), place / "new", "diffusers", options), place, message)


@pytest.mark.parametrize("kind", ["T2IAdapter", "LlamaForCausalLM", 3])
def test_parts_that_are_none_of_ours(kind: Any, place: Path, tmp_path: Path) -> None:
    folder = folder_of("vae", tmp_path / "part")
    change(folder / "config.json", _class_name=kind)
    refused(lambda: convert_model(folder, tmp_path / "new", "diffusers"), tmp_path, "unknown part of a model in")


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_damaged_sources(share: float, place: Path, tmp_path: Path) -> None:
    whole: dict[str, Tensor] = load_file(place / "vae" / stem("vae"))
    folder = folder_of("vae", tmp_path / "part")
    content = (folder / stem("vae")).read_bytes()
    (folder / stem("vae")).write_bytes(content[: int(share * len(content))])
    refused(lambda: convert_model(folder, tmp_path / "one.safetensors", "single-file"), tmp_path, "is damaged")
    save_file(dict(list(whole.items())[:-1]), folder / stem("vae"))
    refused(lambda: convert_model(folder, tmp_path / "one.safetensors", "single-file"), tmp_path, "1 missing")


def test_one_line_says_what_was_done(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_files(str(place / "vae.safetensors"), tmp_path / "vae", "diffusers", {"dtype": "bf16"})
    megabytes = sum(value.numel() * 2 for value in small_part("vae").tensors.values()) / 1e6
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'vae'}: vae, {megabytes:,.1f} MB, bfloat16, ")
    assert json.loads((tmp_path / "vae" / "config.json").read_text()) == small_part("vae").config
