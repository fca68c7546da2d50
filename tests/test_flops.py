"""Operations counted against formulas, and the receipts of pictures against what was asked of the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FACTOR, FAMILIES, PROMPT, SIZE, Folders
from torch import nn

import ldm
from ldm.flops import count_flops
from ldm.images import to_pil
from ldm.models.attention import Attention
from ldm.pipeline import Pipeline
from ldm.studio import Studio


def call(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return model(*inputs)


def test_a_convolution_and_a_linear_layer() -> None:
    found = count_flops(lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), call, [torch.empty(2, 3, 16, 8)])
    assert found == 2 * (2 * 8 * 4) * 5 * 3 * 9
    assert count_flops(lambda: nn.Linear(7, 11), call, [torch.empty(4, 6, 7)]) == 2 * 4 * 6 * 7 * 11


def test_attention_is_counted() -> None:
    """The counter sees no FLOP in the CPU's fused attention; here they must all be there."""
    batch, length, others, channels, width = 2, 7, 5, 24, 16
    inputs = [torch.randn(batch, length, channels), torch.randn(batch, others, width)]
    found = count_flops(lambda: Attention(channels, 3, width), call, inputs)
    linear = 2 * batch * (2 * length * channels**2 + 2 * others * width * channels)
    assert found == linear + 4 * batch * length * others * channels


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"))


def parts(family: str) -> dict[str, int]:
    """Of one call of each network, at the size of the family's pictures, counted one by one."""
    model, (height, width) = FAMILIES[family](), SIZE
    net, tower, x = model.net, model.conditioner.towers[0], torch.empty(1, 4, height // FACTOR, width // FACTOR)
    tokens = tower.encoder.config.max_position_embeddings
    context = torch.empty(1, tokens, model.conditioner.width)
    text = [torch.empty(1, tokens, dtype=torch.long)]
    vae: Any = model.codec.vae
    return {
        "unet": count_flops(lambda: type(net)(net.config), call, [x, torch.empty(1), context]),
        "text": count_flops(lambda: type(tower.encoder)(tower.encoder.config), call, text),
        "decode": count_flops(lambda: type(vae)(vae.config), lambda m, z: m.decode(z), [x]),
        "encode": count_flops(
            lambda: type(vae)(vae.config), lambda m, images: m.encode(images), [torch.empty(1, 3, height, width)]
        ),
    }


def flops(studio: Studio, **options: Any) -> int:
    """Of one picture, its prompts not yet known."""
    studio.model.conditioner._known.clear()
    return studio(PROMPT, sampler="euler", steps=4, **options)[0].info["record"].cost.flops


def test_the_receipt_is_what_was_asked_of_each_network(folders: Folders) -> None:
    studio, each = folders.ours("sd1"), parts("sd1")
    assert flops(studio, guidance=1) == 4 * each["unet"] + each["text"] + each["decode"]
    assert flops(studio, guidance=3) == 8 * each["unet"] + 2 * each["text"] + each["decode"]
    half = flops(studio, guidance=3, guidance_interval=(0.0, 0.5))
    assert 4 * each["unet"] < half - each["text"] * 2 - each["decode"] < 8 * each["unet"]
    # a prompt that was drawn before is not encoded again
    again = studio(PROMPT, sampler="euler", steps=4, guidance=1)[0].info["record"].cost.flops
    assert again == 4 * each["unet"] + each["decode"]


def test_a_picture_to_begin_from_is_encoded_and_a_shorter_way_costs_less(folders: Folders, tmp_path: Path) -> None:
    studio, each = folders.ours("sd1"), parts("sd1")
    studio(PROMPT, sampler="euler", steps=4)[0].save(tmp_path / "init.png")
    found = flops(studio, guidance=1, strength=0.5, pictures={"init": tmp_path / "init.png"})
    assert found == each["encode"] + each["text"] + 2 * each["unet"] + each["decode"]


def test_a_control_net_is_counted_where_it_is_heard(folders: Folders, tmp_path: Path) -> None:
    studio = folders.ours("sd1")
    plain = flops(studio, guidance=1)
    studio(PROMPT, sampler="euler", steps=4)[0].save(tmp_path / "hint.png")
    net = {"net": folders.control("sd1", 11), "hint": tmp_path / "hint.png"}
    whole = flops(studio, guidance=1, pictures={"controls": [net]}) - plain
    half = flops(studio, guidance=1, pictures={"controls": [{**net, "end": 0.5}]}) - plain
    reading = 2 * half - whole  # reading the hint, once, is in both
    assert 0 < reading < half < whole


def test_batches_share_the_cost(folders: Folders) -> None:
    studio = ldm.load(folders.folder("sd1"), device="cpu", dtype="bf16")
    alone = studio("two", sampler="euler", steps=3)[0].info["record"].cost.flops
    several = studio(["two"] * 3, sampler="euler", steps=3)
    unet, decode = parts("sd1")["unet"], parts("sd1")["decode"]
    assert {image.info["record"].cost.flops for image in several} == {3 * unet + decode}
    assert alone > 3 * unet + decode  # it had the prompts to read


def test_counting_changes_no_picture(folders: Folders) -> None:
    for dtype in ("fp32", "bf16"):
        studio = ldm.load(folders.folder("sd1"), device="cpu", dtype=dtype)
        first, second = (studio(PROMPT, sampler="euler", steps=3, tiled=True)[0] for _ in range(2))
        assert first.tobytes() == second.tobytes()  # the first was counted as it was drawn
        plain = Pipeline.generate(studio, [PROMPT], [0], sampler="euler", steps=3, tiled=True)
        assert to_pil(plain)[0].tobytes() == first.tobytes()
