"""LoRAs against diffusers with the same files, and files that are none."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (  # type: ignore[attr-defined]
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_loras import (
    FILES,
    compvis_name,
    networks_of,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.cpu_fastpath import PackedLinear
from ldm.errors import UserError
from ldm.models.unet import UNet, UNetConfig
from ldm.weights.lora import Lora, LoraLayer, merge_loras
from ldm.weights.lora_files import read_lora, save_lora
from ldm.weights.lora_live import LiveLoras
from ldm.weights.lora_names import Finder, layers_of, parse_key
from ldm.weights.lora_syntax import parse_lora, split_tags

TOLERANCE = 1e-4
WIDTH = 24
SD = UNetConfig(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention=(True, False),
    num_attention_heads=2,
    cross_attention_dim=WIDTH,
    norm_num_groups=8,
)
XL = UNetConfig(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32),
    layers_per_block=2,
    attention=(False, True),
    num_attention_heads=2,
    cross_attention_dim=2 * WIDTH,
    norm_num_groups=8,
    transformer_layers_per_block=(1, 2),
    use_linear_projection=True,
    pooled_dim=12,
    size_embed_dim=8,
)


def text_encoder(kind: Any, seed: int) -> Any:
    return copy.deepcopy(_text_encoder(kind, seed))


@functools.cache
def _text_encoder(kind: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
        projection_dim=12,
    )
    return kind(config).eval()


def unet_of_diffusers(config: UNetConfig) -> Any:
    return copy.deepcopy(_unet_of_diffusers(config))


@functools.cache
def _unet_of_diffusers(config: UNetConfig) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(config.to_diffusers()).eval()


def vae() -> Any:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def pipeline(xl: bool = False) -> Any:
    """A pipeline of diffusers, of random weights that are the same in every call."""
    first = text_encoder(CLIPTextModel, 1)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    common = {"vae": vae(), "tokenizer": None, "scheduler": scheduler, "text_encoder": first}
    if xl:
        second = text_encoder(CLIPTextModelWithProjection, 2)
        return StableDiffusionXLPipeline(
            **common, unet=unet_of_diffusers(XL), text_encoder_2=second, tokenizer_2=None, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **common,
        unet=unet_of_diffusers(SD),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ours(xl: bool = False) -> dict[str, Any]:
    """The same networks in our classes."""
    config = XL if xl else SD
    unet = UNet(config).eval()
    unet.load_state_dict(_unet_of_diffusers(config).state_dict())
    found = {"unet": unet, "text_encoder": text_encoder(CLIPTextModel, 1)}
    return {**found, "text_encoder_2": text_encoder(CLIPTextModelWithProjection, 2)} if xl else found


@torch.no_grad()
def outputs(networks: Mapping[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    unet = networks["unet"]
    config = unet.config
    x = torch.randn(2, 4, 8, 8, generator=generator)
    t = torch.tensor([7, 700])
    context = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    pooled, sizes = torch.randn(2, 12, generator=generator), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    xl = "text_encoder_2" in networks
    if isinstance(unet, UNet):
        found = {"unet": unet(x, t, context, **({"pooled": pooled, "sizes": sizes} if xl else {}))}
    else:
        added = {"text_embeds": pooled, "time_ids": sizes} if xl else None
        found = {"unet": unet(x, t, context, added_cond_kwargs=added).sample}
    ids = torch.randint(0, 97, (2, 16), generator=generator)
    ids[:, -1] = 98
    found["text_encoder"] = networks["text_encoder"](ids).last_hidden_state
    if xl:
        found["text_encoder_2"] = networks["text_encoder_2"](ids).text_embeds
    return found


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        difference = (found[name] - value).abs().max() / value.abs().max()
        assert difference < TOLERANCE, f"{name}: {difference:.1e}"


def assert_differs(found: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """A LoRA that changes nothing would make every comparison pass."""
    for name, value in other.items():
        assert (found[name] - value).abs().max() / value.abs().max() > 100 * TOLERANCE, name


def apply(targets: dict[str, Any], live: bool, *loras: tuple[Lora, float]) -> None:
    if not live:
        merge_loras(targets, loras)
        return
    beside = LiveLoras(targets)
    for lora, weight in loras:
        beside.add(lora, weight)


@pytest.mark.parametrize("naming", FILES)
def test_a_file_does_what_it_does_in_diffusers(naming: str, tmp_path: Path) -> None:
    write, xl = FILES[naming]
    write(tmp_path, pipeline(xl))
    pipe = pipeline(xl)
    plain = outputs(networks_of(pipe))
    pipe.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    theirs = outputs(networks_of(pipe))
    assert_differs(theirs, plain)
    for live in (False, True):
        targets = ours(xl)
        lora = read_lora(tmp_path / "style.safetensors", targets)
        apply(targets, live, (lora, 1.0))
        assert_same(outputs(targets), theirs)
    ends = (".down.weight", "lora_down.weight", "lora_A.weight")
    assert sum(1 for _ in lora) == sum(key.endswith(ends) for key in load_file(tmp_path / "style.safetensors"))


def random_lora(
    targets: Mapping[str, nn.Module],
    name: str,
    seed: int,
    mixed: bool = True,
    leave_out: str = "-",
    metadata: Mapping[str, str] | None = None,
) -> Lora:
    """In every layer but those that ``leave_out`` begins; of several ranks and alphas when ``mixed``."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, dict[str, LoraLayer]] = {}
    for target, module in targets.items():
        for i, (path, layer) in enumerate(layers_of(module).items()):
            if path.startswith(leave_out):
                continue
            rank = 2 + i % 3 if mixed else 2
            out, *inner = layer.weight.shape
            down = 0.3 * torch.randn(rank, *inner, generator=generator)
            up = 0.3 * torch.randn(out, rank, *[1] * (len(inner) - 1), generator=generator)
            layers.setdefault(target, {})[path] = LoraLayer(down, up, rank * (0.5 + i % 4 / 4) if mixed else 1.0)
    return Lora(name, layers, metadata or {})


def test_ours_in_peft_naming_opens_in_diffusers_with_the_scale_of_each_layer(tmp_path: Path) -> None:
    targets = ours()
    lora = random_lora(targets, "mixed", 1)
    save_lora(lora, tmp_path / "mixed.safetensors")
    pipe = pipeline()
    plain = outputs(networks_of(pipe))
    pipe.load_lora_weights(str(tmp_path), weight_name="mixed.safetensors")
    merge_loras(targets, [(lora, 1.0)])
    assert_same(outputs(targets), outputs(networks_of(pipe)))
    assert_differs(outputs(targets), plain)


@pytest.mark.parametrize("xl", [False, True])
def test_ours_in_kohya_naming_opens_in_diffusers(tmp_path: Path, xl: bool) -> None:
    targets = ours(xl)
    lora = random_lora(targets, "even", 2, mixed=False, leave_out="add_embedding.")  # which diffusers passes over
    save_lora(lora, tmp_path / "even.safetensors", "kohya")
    pipe = pipeline(xl)
    pipe.load_lora_weights(str(tmp_path), weight_name="even.safetensors")
    merge_loras(targets, [(lora, 1.0)])
    assert_same(outputs(targets), outputs(networks_of(pipe)))


def test_several_with_weights_as_in_diffusers(tmp_path: Path) -> None:
    targets = ours()
    names, weights = ["first", "v1.5 second"], [0.7, -0.4]
    loras = [random_lora(targets, name, seed) for seed, name in enumerate(names)]
    pipe = pipeline()
    for k, lora in enumerate(loras):
        save_lora(lora, tmp_path / f"{lora.name}.safetensors")
        pipe.load_lora_weights(str(tmp_path), weight_name=f"{lora.name}.safetensors", adapter_name=f"a{k}")
    pipe.set_adapters(["a0", "a1"], weights)
    theirs = outputs(networks_of(pipe))
    for live in (False, True):
        targets = ours()
        apply(targets, live, *zip(loras, weights, strict=True))
        assert_same(outputs(targets), theirs)


def shape_of(targets: Mapping[str, nn.Module]) -> dict[str, Any]:
    """All that a module shows of itself beside its numbers."""
    return {
        name: (
            [type(part) for part in module.modules()],
            [(key, p.requires_grad) for key, p in module.named_parameters()],
            hasattr(module, "peft_config"),
        )
        for name, module in targets.items()
    }


def test_live_loras_are_weighed_anew_and_leave_no_trace() -> None:
    targets = ours()
    before = shape_of(targets)
    plain = outputs(targets)
    first, second = (random_lora(targets, name, seed) for seed, name in enumerate(["one", "two"]))
    live = LiveLoras(targets)
    live.add(first, 0.5)
    live.add(second)
    assert live.weights == {"one": 0.5, "two": 1.0}
    live.set_weights({"one": -0.3})
    assert live.weights == {"one": -0.3, "two": 0.0}
    alone = ours()
    merge_loras(alone, [(first, -0.3)])
    assert_same(outputs(targets), outputs(alone))
    live.set_weights({})
    assert all(torch.equal(value, plain[name]) for name, value in outputs(targets).items())
    live.set_weights({"two": 1.0})
    assert_differs(outputs(targets), plain)
    live.remove()
    assert all(torch.equal(value, plain[name]) for name, value in outputs(targets).items())
    assert shape_of(targets) == before
    live.add(first, -0.3)
    assert_same(outputs(targets), outputs(alone))


def test_merging_beneath_live_loras_and_reading_beside_them(tmp_path: Path) -> None:
    targets = ours()
    first, second = (random_lora(targets, name, seed) for seed, name in enumerate(["one", "two"]))
    save_lora(second, tmp_path / "two.safetensors", "kohya")
    LiveLoras(targets).add(first)
    merge_loras(targets, [(read_lora(tmp_path / "two.safetensors", targets), 0.5)])
    both = ours()
    merge_loras(both, [(first, 1.0), (second, 0.5)])
    assert_same(outputs(targets), outputs(both))


def test_mistakes_with_live_loras() -> None:
    targets = ours()
    live = LiveLoras(targets)
    lora = random_lora(targets, "style", 0)
    live.add(lora)
    with pytest.raises(UserError, match="'style' is live already"):
        live.add(lora)
    with pytest.raises(UserError, match=r"unknown live LoRA 'stile'; did you mean 'style'"):
        live.set_weights({"stile": 1.0})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"finite number, got {bad}"):
            live.set_weights({"style": bad})
        with pytest.raises(UserError, match=f"finite number, got {bad}"):
            merge_loras(targets, [(lora, bad)])


def test_a_convolution_changes_as_two_convolutions_in_turn() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    change = LoraLayer(torch.randn(2, 5, 3, 3), torch.randn(7, 2, 1, 1), alpha=3.0)
    x = torch.randn(2, 5, 8, 6)
    expected = layer(x) + 0.4 * (3.0 / 2) * F.conv2d(F.conv2d(x, change.down, stride=2, padding=1), change.up)
    network = nn.ModuleDict({"conv": layer})
    merge_loras({"unet": network}, [(Lora("conv", {"unet": {"conv": change}}), 0.4)])
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_rounded_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64).bfloat16()
    weight = layer.weight.detach().clone()
    # each change alone is too small to be seen beside the weights, all eight are not
    loras = [
        (Lora(str(k), {"unet": {"fc": LoraLayer(torch.randn(2, 64), 2e-5 * torch.ones(64, 2), 2.0)}}), 1.0)
        for k in range(8)
    ]
    expected = weight.double()
    for lora, _ in loras:
        change = lora.layers["unet"]["fc"]
        expected = expected + change.up.double() @ change.down.double()
    merge_loras({"unet": nn.ModuleDict({"fc": layer})}, loras)
    same = (layer.weight == expected.to(torch.bfloat16)).float().mean()
    assert same > 0.999  # a sum in float32 may fall on the other side of a tie
    assert layer.weight.dtype == torch.bfloat16
    assert not torch.equal(layer.weight, weight)


def as_bits(lora: Lora) -> dict[tuple[str, str], Any]:
    return {
        (target, path): (layer.alpha, layer.down.dtype, layer.down.tolist(), layer.up.tolist())
        for target, path, layer in lora
    }


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trips_are_exact_in_and_between_the_namings(tmp_path: Path, dtype: torch.dtype, xl: bool) -> None:
    targets = ours(xl)
    made = random_lora(targets, "made", 3)
    lora = Lora(
        "made",
        {
            target: {path: LoraLayer(v.down.to(dtype), v.up.to(dtype), v.alpha + 1 / 3) for path, v in layers.items()}
            for target, layers in made.layers.items()
        },
    )
    first, second, third, fourth = (tmp_path / f"{k}.safetensors" for k in "1234")
    save_lora(lora, first, "peft")
    save_lora(read_lora(first, targets), second, "kohya")
    save_lora(read_lora(second, targets), third, "peft")
    save_lora(read_lora(third, targets), fourth, "kohya")
    for path in (first, second, third, fourth):
        assert as_bits(read_lora(path, targets)) == as_bits(lora)
    for one, other in ((first, third), (second, fourth)):
        before, after = load_file(one), load_file(other)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert value.dtype == after[key].dtype, key
            assert torch.equal(value, after[key]), key


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_headers(tmp_path: Path) -> None:
    targets = ours()
    kept = {"ss_tag_frequency": '{"a": 1}', "modelspec.hash_sha256": "0x1", "sshs_model_hash": "2", "format": "pt"}
    lora = random_lora(targets, "even", 2, mixed=False, metadata=kept)
    save_lora(lora, tmp_path / "even.safetensors", "kohya", "stable-diffusion-v1")
    found = header_of(tmp_path / "even.safetensors")
    assert found == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "even",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_tag_frequency": '{"a": 1}',
    }
    again = read_lora(tmp_path / "even.safetensors", targets)
    save_lora(again, tmp_path / "peft.safetensors", "peft")
    found = header_of(tmp_path / "peft.safetensors")
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"  # kept from the file it was read from
    assert json.loads(found["lora_adapter_metadata"])["unet.lora_alpha"] == 1.0
    save_lora(random_lora(targets, "mixed", 2), tmp_path / "mixed.safetensors", "kohya")
    found = header_of(tmp_path / "mixed.safetensors")
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "Dynamic"
    assert found["modelspec.architecture"] == "unknown/lora"


@pytest.mark.parametrize(
    ("width", "name"),
    [(768, "stable-diffusion-v1"), (1024, "stable-diffusion-v2-512"), (2048, "stable-diffusion-xl-v1-base")],
)
def test_the_width_of_the_text_tells_the_family(tmp_path: Path, width: int, name: str) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {"unet": {path: LoraLayer(torch.ones(1, width), torch.ones(8, 1), 1.0)}}
    layers["text_encoder"] = {"encoder.layers.0.mlp.fc1": LoraLayer(torch.ones(1, 4), torch.ones(8, 1), 1.0)}
    save_lora(Lora("x", layers), tmp_path / "x.safetensors", "kohya")
    assert header_of(tmp_path / "x.safetensors")["modelspec.architecture"] == f"{name}/lora"
    prefix = "lora_te1_" if width == 2048 else "lora_te_"
    assert f"{prefix}text_model_encoder_layers_0_mlp_fc1.alpha" in load_file(tmp_path / "x.safetensors")


def test_saving_refuses_other_namings_and_endings(tmp_path: Path) -> None:
    lora = random_lora({"unet": nn.ModuleDict({"fc": nn.Linear(4, 4)})}, "x", 0)
    with pytest.raises(UserError, match="unknown naming of a LoRA 'khoya'; did you mean 'kohya'"):
        save_lora(lora, tmp_path / "x.safetensors", "khoya")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"written to a \.safetensors file, not to 'x\.pt'"):
        save_lora(lora, tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot be written"):
        save_lora(lora, tmp_path / "no such folder" / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_every_layer_is_found_by_its_compvis_name() -> None:
    finder = Finder(UNet(XL))
    for path in finder.layers:
        key = parse_key(f"lora_unet_{compvis_name(path).replace('.', '_')}.lora_down.weight")
        assert key is not None
        assert finder.find(key) == path


@pytest.mark.parametrize("block", ["input_blocks_40_0_op", "middle_block_7_x", "output_blocks_x_1", "input_blocks_1"])
def test_no_layer_is_made_up(block: str) -> None:
    key = parse_key(f"lora_unet_{block}.lora_down.weight")
    assert key is not None
    assert Finder(UNet(XL)).find(key) is None


def test_peft_alone_has_its_settings_beside_the_file(tmp_path: Path) -> None:
    network = nn.ModuleDict({"fc": nn.Linear(4, 4), "out": nn.Linear(4, 4)})
    tensors = {}
    for name in ("fc", "out"):
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(4, 4)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(4, 4)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"out": 2}}
    for root, expected in ((False, (2.0, 0.5)), (True, (4.0, 1.0))):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_rslora": root}))
        layers = read_lora(tmp_path / "adapter_model.safetensors", {"unet": network}).layers["unet"]
        assert (layers["fc"].scale, layers["out"].scale) == expected


# ---------------------------------------------------------------------------------------------- files that are wrong

SMALL = nn.ModuleDict(
    {
        "proj": nn.Linear(6, 8),
        "conv": nn.Conv2d(6, 8, 3),
        "point": nn.Conv2d(6, 8, 1),
        "add": nn.ModuleDict({"proj": nn.Linear(8, 8)}),
    }
)
GOOD = {"unet.proj.lora_A.weight": torch.ones(2, 6), "unet.proj.lora_B.weight": torch.ones(8, 2)}


def written(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "style.safetensors"
    save_file(dict(tensors), path, metadata)
    return path


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in GOOD.items() if not name.endswith(key)}


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "no up": (without("lora_B.weight"), r"unet\.proj has only down: a LoRA has both"),
    "no down": (without("lora_A.weight"), r"unet\.proj has only up"),
    "alpha alone": ({**GOOD, "unet.conv.alpha": torch.tensor(1.0)}, r"unet\.conv has only alpha"),
    "ranks differ": (
        {**GOOD, "unet.proj.lora_A.weight": torch.ones(3, 6)},
        r"down is \(3, 6\), up is \(8, 2\)",
    ),
    "rank 0": (
        {"unet.proj.lora_A.weight": torch.ones(0, 6), "unet.proj.lora_B.weight": torch.ones(8, 0)},
        r"no rank: down is \(0, 6\)",
    ),
    "a vector": ({**GOOD, "unet.proj.lora_A.weight": torch.ones(6)}, r"no rank: down is \(6,\)"),
    "NaN": ({**GOOD, "unet.proj.lora_A.weight": torch.full((2, 6), float("nan"))}, "lora_A.weight .* found NaN"),
    "infinite": ({**GOOD, "unet.proj.lora_B.weight": torch.full((8, 2), float("inf"))}, "NaN or infinity"),
    "whole numbers": ({**GOOD, "unet.proj.lora_A.weight": torch.ones(2, 6, dtype=torch.int8)}, "found torch.int8"),
    "infinite alpha": ({**GOOD, "unet.proj.alpha": torch.tensor(float("inf"))}, "alpha should hold real numbers"),
    "many alphas": ({**GOOD, "unet.proj.alpha": torch.ones(2)}, r"alpha of shape \(2,\) in place of one number"),
    "other width": (
        {**GOOD, "unet.proj.lora_A.weight": torch.ones(2, 7)},
        r"unet\.proj changes a weight of \(8, 7\), which is \(8, 6\) here",
    ),
    "other kernel": (
        {"unet.conv.lora_A.weight": torch.ones(2, 6, 5, 5), "unet.conv.lora_B.weight": torch.ones(8, 2, 1, 1)},
        r"unet\.conv changes a weight of \(8, 6, 5, 5\), which is \(8, 6, 3, 3\) here",
    ),
    "another layer": (
        {**GOOD, "unet.gone.lora_A.weight": torch.ones(2, 6), "unet.gone.lora_B.weight": torch.ones(8, 2)},
        r"1 of its 2 layers are not in this model \(unet\.gone\)",
    ),
    "kohya's, of another layer": (
        {"lora_unet_gone.lora_down.weight": torch.ones(2, 6), "lora_unet_gone.lora_up.weight": torch.ones(8, 2)},
        r"1 of its 1 layers are not in this model \(unet\.gone\)",
    ),
    "another part": (
        {"lora_te2_x.lora_down.weight": torch.ones(2, 6), "lora_te2_x.lora_up.weight": torch.ones(8, 2)},
        "another family of models: it changes text_encoder_2, and of what a LoRA can change this model has unet",
    ),
    "no LoRA": ({"conv_in.weight": torch.ones(2)}, "holds no LoRA: its tensors are conv_in"),
    "nothing": ({}, "holds no LoRA: it is empty"),
    "more than a LoRA": (
        {**GOOD, "unet.proj.weight": torch.ones(8, 6)},
        r"1 tensors that are no part of a LoRA \(unet\.proj\.weight\)",
    ),
    "said twice": ({**GOOD, "unet.proj.lora_down.weight": torch.ones(2, 6)}, "says twice what down of unet.proj is"),
    "two names": (
        {
            "unet.add.proj.lora_A.weight": torch.ones(2, 8),
            "unet.add.proj.lora_B.weight": torch.ones(8, 2),
            "lora_unet_add_proj.lora_down.weight": torch.ones(2, 8),
            "lora_unet_add_proj.lora_up.weight": torch.ones(8, 2),
        },
        r"unet\.add\.proj is there under two names",
    ),
    "Tucker": ({**GOOD, "lora_unet_conv.lora_mid.weight": torch.ones(2, 2, 3, 3)}, r"LoCon in Tucker form .*lora_mid"),
    "LoHa": ({"lora_unet_proj.hada_w1_a": torch.ones(2, 6)}, r"LoHa \(1 tensors such as lora_unet_proj\.hada_w1_a\)"),
    "LoKr": ({"lora_unet_proj.lokr_w1": torch.ones(2, 6)}, "is a LoKr"),
    "DoRA": ({**GOOD, "lora_unet_proj.dora_scale": torch.ones(8, 1)}, "is a DoRA"),
    "DoRA of peft": ({**GOOD, "unet.proj.lora_magnitude_vector": torch.ones(8)}, "is a DoRA"),
    "differences": ({**GOOD, "lora_unet_proj.diff": torch.ones(8, 6)}, "whole differences"),
    "biases": ({**GOOD, "unet.proj.lora_B.bias": torch.ones(8)}, "with biases"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_wrong_is_refused_by_name(what: str, tmp_path: Path) -> None:
    tensors, message = WRONG[what]
    path = written(tmp_path, tensors)
    with pytest.raises(UserError, match=message) as told:
        read_lora(path, {"unet": SMALL})
    assert str(path) in str(told.value)


def test_the_good_file_of_these_tests_is_read(tmp_path: Path) -> None:
    layers = read_lora(written(tmp_path, GOOD), {"unet": SMALL}).layers["unet"]
    assert layers["proj"].scale == 1
    added = torch.zeros(8, 6)
    layers["proj"].add_to(added, 1.0)
    assert torch.equal(added, torch.full((8, 6), 2.0))


@pytest.mark.parametrize("layer", ["proj", "point"])
def test_matrices_and_kernels_of_one_pixel_stand_for_each_other(layer: str, tmp_path: Path) -> None:
    down, up = torch.rand(2, 6), torch.rand(8, 2)
    shapes = ((2, 6), (8, 2)), ((2, 6, 1, 1), (8, 2, 1, 1))
    for one, other in shapes:
        tensors = {f"unet.{layer}.lora_A.weight": down.reshape(one), f"unet.{layer}.lora_B.weight": up.reshape(other)}
        module = copy.deepcopy(SMALL)
        merge_loras({"unet": module}, [(read_lora(written(tmp_path, tensors), {"unet": module}), 1.0)])
        added = module[layer].weight - SMALL[layer].weight
        torch.testing.assert_close(added.detach().flatten(1), up @ down, atol=1e-6, rtol=1e-5)


SETTINGS = {
    "no JSON": ("{", "not readable JSON"),
    "a list": ("[]", "should be a JSON object, found list"),
    "no rank": ('{"unet.lora_alpha": 4}', "r in lora_adapter_metadata .* should be a number, found None"),
    "a word": ('{"unet.r": 2, "unet.lora_alpha": "four"}', "lora_alpha in .* found 'four'"),
    "NaN": ('{"unet.r": 2, "unet.lora_alpha": NaN}', "found nan"),
    "huge": (f'{{"unet.r": 2, "unet.lora_alpha": {10**400}}}', "should be a number, found 1000"),
    "rank 0": ('{"unet.r": 0}', "r in .* should be a whole number of at least 1, found 0"),
    "half a rank": ('{"unet.r": 2, "unet.rank_pattern": {"proj": 1.5}}', "rank_pattern of proj .* found 1.5"),
    "deep": (200_000 * "[", "not readable JSON"),
    "patterns": ('{"unet.r": 2, "unet.alpha_pattern": {"(a+)+$": 2}}', r"has '\(a\+\)\+\$': only the names"),
    "pattern of words": ('{"unet.r": 2, "unet.rank_pattern": {"proj": "x"}}', "rank_pattern of proj .* found 'x'"),
    "list of patterns": ('{"unet.r": 2, "unet.rank_pattern": [1]}', "rank_pattern .* found list"),
    "DoRA": ('{"unet.r": 2, "unet.use_dora": true}', "use_dora: a DoRA is not read"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_are_wrong_are_refused(what: str, tmp_path: Path) -> None:
    text, message = SETTINGS[what]
    with pytest.raises(UserError, match=message):
        read_lora(written(tmp_path, GOOD, {"lora_adapter_metadata": text}), {"unet": SMALL})


def test_damaged_files(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    whole = path.read_bytes()
    for size in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged or no safetensors file"):
            read_lora(path, {"unet": SMALL})
    with pytest.raises(UserError, match="is missing"):
        read_lora(tmp_path / "gone.safetensors", {"unet": SMALL})


def test_a_lora_of_another_family_is_told_with_shapes(tmp_path: Path) -> None:
    wide = ours(xl=True)
    del wide["text_encoder"], wide["text_encoder_2"]
    save_lora(random_lora(wide, "xl", 0), tmp_path / "xl.safetensors")
    with pytest.raises(UserError, match="fits the family of models it was trained on") as told:
        read_lora(tmp_path / "xl.safetensors", ours())
    assert "changes a weight of" in str(told.value)
    assert "layers are not in this model" in str(told.value)
    with pytest.raises(UserError, match="is for another model: unet"):
        merge_loras(ours(), [(random_lora(wide, "xl", 0), 1.0)])


def test_a_refused_lora_changes_nothing() -> None:
    targets = ours()
    before = copy.deepcopy(targets["unet"].state_dict())
    good = random_lora({"unet": targets["unet"]}, "good", 0)
    bad = Lora("bad", {"unet": {"conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2), 1.0)}})
    with pytest.raises(UserError, match=r"'bad' is for another model: unet\.conv_in, \(4, 3\) in the LoRA"):
        merge_loras(targets, [(good, 1.0), (bad, 1.0)])
    with pytest.raises(UserError, match="'bad' is for another model"):
        LiveLoras(targets).add(bad)
    assert all(torch.equal(value, before[key]) for key, value in targets["unet"].state_dict().items())


def test_a_packed_model_is_refused(tmp_path: Path) -> None:
    packed = nn.ModuleDict({"proj": PackedLinear(torch.ones(8, 6, dtype=torch.bfloat16), None)})
    lora = read_lora(written(tmp_path, GOOD), {"unet": SMALL})
    for refused in (
        lambda: merge_loras({"unet": packed}, [(lora, 1.0)]),
        lambda: LiveLoras({"unet": packed}).add(lora),
        lambda: read_lora(tmp_path / "style.safetensors", {"unet": packed}),
    ):
        with pytest.raises(UserError, match=r"packed for the CPU.* apply LoRAs before"):
            refused()


# ---------------------------------------------------------------------------------------------------- what users type

WEIGHTS = st.floats(-8, 8, allow_nan=False).map(lambda x: round(x, 4))
LETTERS = st.characters(exclude_characters="<>:", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"))
NAMES = st.text(LETTERS, min_size=1)


@given(st.sampled_from(["", "C:\\loras\\", "d:/", "/home/me/", "../", "a:b/"]), NAMES, WEIGHTS)
def test_a_file_and_its_weight_come_apart(folder: str, name: str, weight: float) -> None:
    file = f"{folder}{name}.safetensors"
    assert parse_lora(f"{file}:{weight}") == (file, weight)
    assert parse_lora(file) == (file, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style:-0.5", ("style", -0.5)),
        ("style:+.5", ("style", 0.5)),
        ("style:1e-1", ("style", 0.1)),
        ("style:0", ("style", 0.0)),
        ("C:\\style", ("C:\\style", 1.0)),
        ("C:/style:2", ("C:/style", 2.0)),
    ],
)
def test_weights(text: str, expected: tuple[str, float]) -> None:
    assert parse_lora(text) == expected


@pytest.mark.parametrize("text", ["style:", "style:x", "style:nan", "style:1_0", "style:1e999", "style:٣", "style: 1"])
def test_a_weight_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="the weight of a LoRA is a number such as"):
        parse_lora(text)


@pytest.mark.parametrize("text", ["", ":0.5", "  :1"])
def test_no_file(text: str) -> None:
    with pytest.raises(UserError, match="FILE or FILE:WEIGHT"):
        parse_lora(text)


@given(st.lists(st.tuples(st.text(), NAMES, st.none() | WEIGHTS)), st.text())
def test_tags_come_out_of_a_prompt_and_nothing_else_does(tags: list[tuple[str, str, float | None]], end: str) -> None:
    plain = "".join(text for text, _, _ in tags) + end
    assume("<lora:" not in plain)
    said = [f"{text}<lora:{name}{'' if weight is None else f':{weight}'}>" for text, name, weight in tags]
    prompt, found = split_tags("".join(said) + end)
    assert prompt == plain
    assert found == [(name, 1.0 if weight is None else weight) for _, name, weight in tags]


@pytest.mark.parametrize("tag", ["<lora:>", "<lora: :1>", "<lora:style:1:2>", "<lora:style:te=1>", "<lora:style:>"])
def test_a_tag_that_is_wrong(tag: str) -> None:
    with pytest.raises(UserError, match="LoRA") as told:
        split_tags(f"a cat {tag}")
    assert tag in str(told.value)


def test_other_brackets_stay() -> None:
    prompt = "a <cat-toy> (on: 1.2) <hypernet:x:1>"
    assert split_tags(prompt) == (prompt, [])
    assert split_tags("a cat, <lora:my style v1.5:0.8>, red") == ("a cat, , red", [("my style v1.5", 0.8)])
