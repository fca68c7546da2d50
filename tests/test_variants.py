"""Finding and reading the weights of a part: variants, shards, pickles, and folders that are not what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.errors import UserError
from ldm.weights.variants import (
    STEMS,
    find_weights,
    index_name,
    read_weights,
    variants_in,
    weights_name,
    write_weights,
)

NET, TEXT = STEMS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def small_net() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )


def small_text() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", [None, "4KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_what_diffusers_writes_is_read(variant: str | None, shard: str | None, safe: bool, folder: Path) -> None:
    net = small_net()
    extra = {"max_shard_size": shard} if shard else {}
    net.save_pretrained(folder, variant=variant, safe_serialization=safe, **extra)
    paths = find_weights(folder, NET, variant, allow_pickle=not safe)
    assert (len(paths) > 1) == bool(shard)
    assert {path.suffix for path in paths} == {".safetensors" if safe else ".bin"}
    assert_same(read_weights(folder, NET, variant, allow_pickle=not safe), net.state_dict())


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", [None, "4KB"])
def test_what_transformers_writes_is_read(variant: str | None, shard: str | None, folder: Path) -> None:
    model = small_text()
    extra = {"max_shard_size": shard} if shard else {}
    model.save_pretrained(folder, variant=variant, **extra)
    assert (len(find_weights(folder, TEXT, variant)) > 1) == bool(shard)
    found = read_weights(folder, TEXT, variant)
    again = {key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    assert_same({key.removeprefix("text_model."): value for key, value in found.items()}, again)


def test_diffusers_reads_what_we_name(folder: Path) -> None:
    net = small_net()
    net.save_config(folder)
    save_file(net.state_dict(), folder / weights_name(NET, "fp16"), metadata={"format": "pt"})
    assert_same(dict(UNet2DModel.from_pretrained(folder, variant="fp16").state_dict()), net.state_dict())


@pytest.mark.parametrize("shard", [None, "4KB", "1GB"])
def test_diffusers_and_we_read_the_shards_that_we_write(shard: str | None, folder: Path) -> None:
    net = small_net()
    net.save_config(folder)
    write_weights(folder, NET, net.state_dict(), shard)
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "4KB") == (folder / index_name(NET)).is_file()
    sizes = {name: value.numel() * value.element_size() for name, value in net.state_dict().items()}
    assert all(file.stat().st_size < max(4000, *sizes.values()) + 4000 for file in files) or shard != "4KB"
    assert_same(dict(UNet2DModel.from_pretrained(folder).state_dict()), net.state_dict())
    assert_same(read_weights(folder, NET), net.state_dict())


def test_reading_converts(folder: Path) -> None:
    save_file({"a": torch.ones(3), "n": torch.ones(3, dtype=torch.int64)}, folder / weights_name(NET))
    found = read_weights(folder, NET, dtype=torch.bfloat16)
    assert {key: value.dtype for key, value in found.items()} == {"a": torch.bfloat16, "n": torch.int64}


@pytest.mark.parametrize(
    ("stem", "variant", "ending", "name"),
    [
        (NET, None, "safetensors", "diffusion_pytorch_model.safetensors"),
        (NET, "fp16", "bin", "diffusion_pytorch_model.fp16.bin"),
        (TEXT, "fp16", "safetensors", "model.fp16.safetensors"),
        (TEXT, None, "bin", "pytorch_model.bin"),
    ],
)
def test_names(stem: str, variant: str | None, ending: str, name: str) -> None:
    assert weights_name(stem, variant, ending) == name


def test_variants_are_told_from_names() -> None:
    names = [
        "model.safetensors",
        "model.fp16.safetensors",
        "model.safetensors.index.non_ema.json",
        "model-00001-of-00002.non_ema.safetensors",
        "model.bf16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.ema.safetensors",
        "pytorch_model.fp32.bin",
    ]
    assert variants_in(names, TEXT) == [None, "fp16", "non_ema"]
    assert variants_in(names, NET) == ["ema"]
    assert variants_in(names, TEXT, "bin") == ["fp32"]
    assert index_name(TEXT, "non_ema") in names


def test_a_variant_that_is_not_there(folder: Path) -> None:
    for variant in (None, "fp16", "non_ema"):
        save_file({"a": torch.ones(1)}, folder / weights_name(NET, variant))
    with pytest.raises(UserError, match=r"model\.fp8\.safetensors is missing; variants there: \(none\), fp16, non_ema"):
        find_weights(folder, NET, "fp8")
    (folder / weights_name(NET)).unlink()
    with pytest.raises(UserError, match="variants there: fp16, non_ema"):
        find_weights(folder, NET)
    with pytest.raises(UserError, match=r"model\.safetensors is missing$"):
        find_weights(folder, TEXT)
    with pytest.raises(UserError, match="is missing"):
        find_weights(folder / "none", NET)


def test_pickles_are_passed_over_unless_allowed(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / weights_name(NET, ending="bin"))
    with pytest.raises(UserError, match=r"pickles \(\.bin\) of these variants: \(none\) \(read with --allow-pickle\)"):
        find_weights(folder, NET)
    assert read_weights(folder, NET, allow_pickle=True)["a"] == 0
    save_file({"a": torch.ones(1)}, folder / weights_name(NET))
    assert read_weights(folder, NET, allow_pickle=True)["a"] == 1


def sharded(folder: Path, weight_map: object) -> None:
    shards = {"model-1.safetensors": {"a": torch.ones(1)}, "model-2.safetensors": {"b": torch.ones(1)}}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / index_name(TEXT)).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"a": "model-1.safetensors", "b": "model-3.safetensors"}, r"model-3\.safetensors is missing, a shard"),
        ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, r"lists 1 tensors that no shard holds \(c\)"),
        ({"a": "../model-1.safetensors"}, "is no file beside it"),
        ({"a": "/etc/passwd"}, "is no file beside it"),
        ({"a": 3}, "is no file beside it"),
        ({}, "has no weight_map"),
        (["a"], "has no weight_map"),
    ],
)
def test_lists_of_shards_that_are_wrong(weight_map: object, told: str, folder: Path) -> None:
    sharded(folder, weight_map)
    with pytest.raises(UserError, match=told):
        read_weights(folder, TEXT)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    sharded(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert read_weights(folder, TEXT).keys() == {"a", "b"}
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, folder / "model-2.safetensors")
    with pytest.raises(UserError, match="holds a again"):
        read_weights(folder, TEXT)


def test_a_pickle_named_as_safetensors(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / weights_name(NET))
    with pytest.raises(UserError, match="calls itself safetensors"):
        read_weights(folder, NET, allow_pickle=True)
