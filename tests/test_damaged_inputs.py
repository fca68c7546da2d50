"""Weights and pictures that are damaged, odd or not what they should be, through the command line.

Whatever lies there, it is either read rightly, or named in one line with exit code 2 and nothing written. What
``tests/test_damaged_folder.py`` does to the parts of a model folder is done here to files that are given beside one,
and ``tests/test_open_picture.py`` opens what is drawn from here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_lab import furnish, refused, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import vae
from torch import Tensor

from ldm.errors import UserError
from ldm.weights.components import describe
from ldm.weights.families import Part
from ldm.weights.fingerprint import fingerprint
from ldm.weights.single_file import write_single_file

FLAGS = ["--seed", "3", "--steps", "2", "--dtype", "fp32", "-o", "o.png"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    with contextlib.chdir(folder):
        furnish(folder)
        module = vae()
        write_single_file({"vae": Part(describe(module), dict(module.state_dict()))}, folder / "vae.safetensors")
    return folder


@pytest.fixture
def place(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab, as a copy that a test may spoil."""
    folder = shutil.copytree(lab, tmp_path / "lab")
    monkeypatch.chdir(folder)
    return folder


# ------------------------------------------------------------------------------------- weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = {  # a file of weights, and what is drawn with it; {} is the folder, as ControlNets are remembered by name
    "one.safetensors": "two -m one.safetensors",
    "style.safetensors": "two -m sd1 --lora style.safetensors",
    "zebra.safetensors": "zebra -m sd1 --embedding zebra.safetensors",
    "vae.safetensors": "two -m sd1 --vae vae.safetensors",
    f"other/vae/{WEIGHTS}": "two -m sd1 --vae other/vae",
    f"control-sd1-7/{WEIGHTS}": "two -m sd1 --control {}/control-sd1-7=init.png",
}


def drawn(name: str, place: Path) -> list[str]:
    return ["generate", *FILES[name].replace("{}", str(place)).split(), *FLAGS]


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, tensors = header_of(path)
    change(next(value for key, value in header.items() if key != "__metadata__"))
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + tensors)


def with_tensors(path: Path, change: Callable[[dict[str, Tensor], str], object]) -> None:
    """Change what a file holds; told is the name of the largest tensor."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    change(tensors, max(tensors, key=lambda key: tensors[key].numel()))
    save_file(tensors, path, metadata=metadata)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def length_of_header(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, Callable[[Path], object]] = {  # no file of safetensors any more
    "nothing": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: cut(path, 7),
    "cut in its header": lambda path: cut(path, 100),
    "cut in its tensors": lambda path: cut(path, path.stat().st_size * 2 // 3),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a header beyond its end": lambda path: length_of_header(path, 2**40),
    "a header of all memory": lambda path: length_of_header(path, 2**64 - 1),
    "a header that is no JSON": lambda path: path.write_bytes(path.read_bytes().replace(b'{"', b"{!", 1)),
    "an unknown dtype": lambda path: with_header(path, lambda one: one.update(dtype="Q7")),
    "tensors beyond the end": lambda path: with_header(path, lambda one: one["data_offsets"].append(2**50)),
    "a hole": lambda path: with_header(path, lambda one: one.update(data_offsets=[4, one["data_offsets"][1]])),
    "a shape of another size": lambda path: with_header(path, lambda one: one["shape"].append(3)),
    "a folder": folder_instead,
}
ELSEWHERE = {  # files in a place that is for others, and what is said
    "-m style.safetensors": "style.safetensors is a LoRA and holds no part of Stable Diffusion: "
    "give a model as --model, and this as --lora",
    "-m zebra.safetensors": "zebra.safetensors is a textual inversion and holds no part of Stable Diffusion: "
    "give a model as --model, and this as --embedding",
    "-m sd1 --vae style.safetensors": "style.safetensors is a LoRA and holds no part of Stable Diffusion",
    "-m sd1 --lora one.safetensors": "one.safetensors holds no LoRA: it is a model of a shape of its own",
    "-m sd1 --lora zebra.safetensors": "zebra.safetensors holds no LoRA: it is a textual inversion",
    "-m sd1 --lora vae.safetensors": "vae.safetensors holds no LoRA: it is a vae alone",
    "-m sd1 --lora stile.safetensors": "stile.safetensors is missing: there is no such file (near: style.safetensors",
    "-m sd1 --embedding zebr.safetensors": "zebr.safetensors is missing: there is no such file (near: zebra",
    "-m sd1 --vae vea.safetensors": "vea.safetensors is missing: there is no such file (near: vae.safetensors",
    "-m sd1 --control styel.safetensors=init.png": "styel.safetensors is missing: there is no such file (near: style",
    "-m sd1 --lora other": "other is a folder, and there is no pytorch_lora_weights.safetensors in it",
    "-m sd1 --embedding other": "other is a folder, and there is no learned_embeds.safetensors in it",
    "-m onee.safetensors": "onee.safetensors: no such folder or file (near: one.safetensors",
}


@pytest.mark.parametrize("line", ELSEWHERE)
def test_files_that_belong_elsewhere_or_nowhere(place: Path, line: str) -> None:
    assert ELSEWHERE[line] in refused("generate", "two", *line.split(), *FLAGS)


def test_words_that_an_embedding_cannot_have(place: Path) -> None:
    vectors = load_file("zebra.safetensors")
    (tensor,) = vectors.values()
    for name, known in (("two words.safetensors", "one word"), ("o.safetensors", "has a token 'o'")):
        save_file({"emb_params": tensor}, name)
        said = refused("generate", "two", "-m", "sd1", "--embedding", name, *FLAGS)
        assert known in said
        assert "rename the file" in said
        assert "token=" not in said


def test_the_hash_of_what_is_missing(place: Path) -> None:
    with pytest.raises(UserError, match=r"^stile\.safetensors is missing: there is no such file \(near: style"):
        fingerprint(Path("stile.safetensors"))


CHANGED: dict[str, Callable[[dict[str, Tensor], str], object]] = {  # whole, but not what it should be
    "a tensor lost": lambda tensors, name: tensors.pop(name),
    "a tensor narrower": lambda tensors, name: tensors.update({name: tensors[name][..., 1:].contiguous()}),
    "a tensor of no shape": lambda tensors, name: tensors.update({name: torch.tensor(1.0)}),
    "whole numbers": lambda tensors, name: tensors.update({name: tensors[name].to(torch.int32)}),
    "yes and no": lambda tensors, name: tensors.update({name: tensors[name] > 0}),
    "a stranger": lambda tensors, name: tensors.update(stranger=torch.zeros(3)),
    "nothing": lambda tensors, name: tensors.clear(),
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named(place: Path, name: str, damage: str) -> None:
    BROKEN[damage](place / name)
    told = name if damage != "a folder" or "/" not in name else str(Path(name).parent)
    assert told in refused(*drawn(name, place))
    assert told in refused("info", name)


@pytest.mark.parametrize("damage", CHANGED)
@pytest.mark.parametrize("name", FILES)
def test_tensors_that_do_not_fit_are_named(place: Path, name: str, damage: str) -> None:
    if damage == "a stranger" and name in ("one.safetensors", "vae.safetensors"):
        pytest.skip("single files carry tensors that nothing draws with")
    with_tensors(place / name, CHANGED[damage])
    assert run("info", name)[0] in (0, 2)  # and no traceback
    # of an embedding, the word and not the file is what does not fit
    assert Path(name).stem.split("-")[0] in refused(*drawn(name, place))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", FILES)
def test_real_numbers_of_any_width_are_read(place: Path, name: str, dtype: torch.dtype) -> None:
    with_tensors(
        place / name, lambda tensors, _: tensors.update({key: value.to(dtype) for key, value in tensors.items()})
    )
    assert run(*drawn(name, place)) == (0, "")
    assert run("info", name)[0] == 0


SICK = {  # file -> the part that is to be named, and a tensor that every picture needs
    f"sd1/unet/{WEIGHTS}": ("unet", "conv_in.weight"),
    "sd1/text_encoder/model.safetensors": ("text_encoder", "text_model.final_layer_norm.bias"),
    f"sd1/vae/{WEIGHTS}": ("vae", "decoder.conv_out.bias"),
    f"other/vae/{WEIGHTS}": ("vae", "decoder.conv_out.bias"),
    f"control-sd1-7/{WEIGHTS}": ("ControlNet", "conv_in.weight"),
    "style.safetensors": ("style.safetensors", ""),
    "zebra.safetensors": ("zebra.safetensors", ""),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", SICK)
def test_weights_that_are_no_numbers_are_named(place: Path, name: str, value: float) -> None:
    part, tensor = SICK[name]

    def spoil(tensors: dict[str, Tensor], largest: str) -> None:
        tensors[tensor or largest].view(-1)[0] = value

    with_tensors(place / name, spoil)
    flags = drawn(name, place) if name in FILES else ["generate", "two", "-m", "sd1", *FLAGS]
    said = refused(*flags)
    assert part in said
    assert tensor.removeprefix("text_model.") in said
    assert "NaN" in said


def test_an_encoder_that_gives_no_numbers_is_named(place: Path) -> None:
    """Which only what begins from a picture needs."""

    def spoil(tensors: dict[str, Tensor], _: str) -> None:
        tensors["encoder.conv_in.weight"].view(-1)[0] = float("nan")

    with_tensors(place / f"sd1/vae/{WEIGHTS}", spoil)
    assert run("generate", "two", "-m", "sd1", *FLAGS) == (0, "")
    Path("o.png").unlink()
    assert "encoder.conv_in.weight" in refused("generate", "two", "-m", "sd1", "-i", "init.png", *FLAGS)


SETTINGS: dict[str, str] = {
    "cut": '{"a": ',
    "a list": "[1]",
    "empty": "",
    "deep": "[" * 100_000,
    "a number of 5000 digits": '{"a": 1' + "0" * 5000 + "}",
    "no class": "{}",
    "another class": '{"_class_name": "X"}',
}
VALUES: dict[str, dict[str, Any]] = {
    "nothing": {"block_out_channels": None},
    "below 0": {"block_out_channels": [-1, 3]},
    "enormous": {"block_out_channels": [2**31, 2**31]},
    "not divisible": {"norm_num_groups": 7},
    "no number": {"norm_num_groups": float("nan")},
}
CONFIGS = {
    "control-sd1-7/config.json": "two -m sd1 --control {}/control-sd1-7=init.png",
    "other/vae/config.json": "two -m sd1 --vae other/vae",
    "sd1/unet/config.json": "two -m sd1",
}


@pytest.mark.parametrize("damage", [*SETTINGS, *VALUES])
@pytest.mark.parametrize("name", CONFIGS)
def test_settings_that_are_none_are_named(place: Path, name: str, damage: str) -> None:
    path = place / name
    given = json.loads(path.read_text())
    path.write_text(SETTINGS[damage] if damage in SETTINGS else json.dumps({**given, **VALUES[damage]}))
    assert name in refused("generate", *CONFIGS[name].replace("{}", str(place)).split(), *FLAGS)


# ------------------------------------------------------------------------- what nothing can hold

LONG = "x" * 300
BEYOND = {  # typed, and what is said
    f"two -m sd1 -o {LONG}.png": "cannot be written",
    f"two -m {LONG}": "xxxxx",
    f"two -m sd1 -i {LONG}": "xxxxx",
    f"two -m sd1 --vae {LONG}": "xxxxx",
    f"two -m sd1 --lora {LONG}": "xxxxx",
    f"two -m sd1 --embedding {LONG}": "xxxxx",
    f"two -m sd1 --control {LONG}=init.png": "xxxxx",
    f"-m sd1 --from-file {LONG}": "xxxxx",
    "a\udcff -m sd1": "no character",
    "two -m sd1 -W 4000000 -H 4000000": "4000000 x 4000000",
    "two -m sd1 -i init.png --outpaint 1000000 1000000 0 0": "1000048x1000040",
    "two -m sd1 --hires-scale 1e9": "hires_scale: should be less than or equal to 16",
    "two -m sd1 --cfg-scale 1e30": "no number",
    "two -m sd1 -W 99999999999999999999": "width 99999999999999999999",
}


@pytest.mark.parametrize("number", range(len(BEYOND)), ids=[line[:40] for line in map(ascii, BEYOND)])
def test_what_is_beyond_all_measure_is_refused(place: Path, number: int) -> None:
    line, told = list(BEYOND.items())[number]
    assert told in refused("generate", *FLAGS, *line.split())


@pytest.mark.parametrize("words", [["info", LONG], ["show", LONG], ["replay", LONG]])
def test_names_that_no_file_can_have(place: Path, words: list[str]) -> None:
    assert "xxxxx" in refused(*words)


@pytest.mark.parametrize("line", [f"{LONG} a --to diffusers", f"sd1 {LONG}.safetensors --to single-file"])
def test_conversions_from_and_to_such_names(place: Path, line: str) -> None:
    assert "xxxxx" in refused("convert", *line.split())
