"""Textual inversion against diffusers with the same files, and files that are none."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.errors import UserError
from ldm.prompts import expand
from ldm.training.clip_task import learn_tokenizer
from ldm.weights.embeddings import Embedding, add_embedding, load_embedding

WINDOW, WIDTH = 24, 16
PROMPT = "a photo of <cat-toy> on a table, <cat-toy>"


@functools.cache
def _tokenizer() -> Any:
    return learn_tokenizer(["a photo of a cat on a table", "a red thing"], 560, WINDOW)


def tokenizer() -> Any:
    return copy.deepcopy(_tokenizer())


def encoder(kind: Any = CLIPTextModel, width: int = WIDTH, spare: int = 0, end: int | None = None) -> Any:
    """``end``: the id of the end of a prompt in the configuration, where that is wrong."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(_tokenizer()) + spare,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=_tokenizer().bos_token_id,
        eos_token_id=_tokenizer().eos_token_id if end is None else end,
        pad_token_id=_tokenizer().pad_token_id,
        projection_dim=8,
    )
    return kind(config).eval()


def vectors(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def states(encoder: Any, tokenizer: Any, prompt: str) -> Tensor:
    ids = tokenizer(prompt, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt").input_ids
    return encoder(ids).last_hidden_state


def pipeline() -> Any:
    from diffusers import UNet2DConditionModel  # type: ignore[attr-defined]

    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=encoder(),
        tokenizer=tokenizer(),
        unet=UNet2DConditionModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def a1111(values: Tensor) -> dict[str, Any]:
    """As AUTOMATIC1111's web UI saves them."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(values)},
        "name": "from training",
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


FORMS: dict[str, tuple[str, Callable[[Tensor, Path], None]]] = {
    "A1111 pickle": (".pt", lambda values, path: torch.save(a1111(values), path)),
    "A1111 pickle named bin": (".bin", lambda values, path: torch.save(a1111(values), path)),
    "A1111 safetensors": (".safetensors", lambda values, path: save_file({"emb_params": values}, path)),
    "diffusers pickle": (".bin", lambda values, path: torch.save({"<cat-toy>": values}, path)),
    "diffusers safetensors": (".safetensors", lambda values, path: save_file({"<cat-toy>": values}, path)),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_does_what_it_does_in_diffusers(form: str, count: int, tmp_path: Path) -> None:
    ending, write = FORMS[form]
    path = tmp_path / f"<cat-toy>{ending}"
    write(vectors(count), path)
    pipe = pipeline()
    plain = states(pipe.text_encoder, pipe.tokenizer, PROMPT)
    pipe.load_textual_inversion(str(tmp_path), weight_name=path.name, token="<cat-toy>")
    expanded = pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)
    theirs = states(pipe.text_encoder, pipe.tokenizer, expanded)

    ours, words = encoder(), tokenizer()
    embedding = load_embedding(path, allow_pickle=True)
    assert embedding.token == "<cat-toy>"
    tokens = add_embedding(ours, words, embedding)
    assert tokens == ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"][:count]
    assert expand(PROMPT, words) == expanded
    torch.testing.assert_close(states(ours, words, expanded), theirs, atol=1e-6, rtol=1e-6)
    assert (theirs - plain).abs().max() > 0.1


def test_a_single_vector_need_not_be_a_matrix(tmp_path: Path) -> None:
    save_file({"<one>": vectors(1)[0]}, tmp_path / "x.safetensors")
    found = load_embedding(tmp_path / "x.safetensors")
    assert found.token == "<one>"
    assert torch.equal(found.vectors["text_encoder"], vectors(1))


def test_both_towers_of_sdxl(tmp_path: Path) -> None:
    save_file({"clip_l": vectors(2, 16), "clip_g": vectors(2, 20, 1)}, tmp_path / "ugly hands.safetensors")
    with pytest.raises(UserError, match="one word, not 'ugly hands'"):
        load_embedding(tmp_path / "ugly hands.safetensors")
    found = load_embedding(tmp_path / "ugly hands.safetensors", token="uglyhands")
    assert found.token == "uglyhands"
    second = encoder(CLIPTextModelWithProjection, width=20)
    for tower, network, values in (
        ("text_encoder", encoder(), vectors(2, 16)),
        ("text_encoder_2", second, vectors(2, 20, 1)),
    ):
        words = tokenizer()
        tokens = add_embedding(network, words, found, tower)
        ids = words.convert_tokens_to_ids(tokens)
        assert torch.equal(network.get_input_embeddings().weight[ids], values)
    with pytest.raises(UserError, match=r"'uglyhands' .* vectors have width 16, and those of the model's .* have 20"):
        add_embedding(encoder(width=20), tokenizer(), found)


@pytest.mark.parametrize("end", [2, None])
@torch.no_grad()
def test_the_vector_of_the_whole_prompt_is_read_at_its_end(end: int | None) -> None:
    network, words = encoder(CLIPTextModelWithProjection, end=end), tokenizer()
    plain = words("a red thing", return_tensors="pt").input_ids
    before = network(plain).text_embeds
    add_embedding(network, words, Embedding("<cat-toy>", {"text_encoder": vectors(2)}))
    torch.testing.assert_close(network(plain).text_embeds, before)
    ids = words(expand(PROMPT, words), return_tensors="pt").input_ids
    out = network(ids)
    assert ids[0, -1] == words.eos_token_id
    torch.testing.assert_close(out.text_embeds, network.text_projection(out.last_hidden_state[:, -1]))


def test_the_rows_that_were_there_stay_and_the_dtype_too() -> None:
    network, words = encoder().half(), tokenizer()
    before = network.get_input_embeddings().weight.detach().clone()
    add_embedding(network, words, Embedding("<a>", {"text_encoder": vectors(2)}))
    table = network.get_input_embeddings().weight
    assert table.dtype == torch.float16
    assert torch.equal(table[: len(before)], before)
    assert torch.equal(table[len(before) :], vectors(2).half())
    assert network.config.vocab_size == len(words) == len(table)


def test_spare_rows_are_used_first() -> None:
    network, words = encoder(spare=8), tokenizer()
    add_embedding(network, words, Embedding("<a>", {"text_encoder": vectors(2)}))
    assert network.config.vocab_size == len(words) + 6
    assert torch.equal(network.get_input_embeddings().weight[len(words) - 2 : len(words)], vectors(2))


def test_several_words_whose_names_begin_alike() -> None:
    network, words = encoder(), tokenizer()
    for k, (token, count) in enumerate([("EasyNegative", 2), ("EasyNegativeV2", 3), ("plain-one", 1)]):
        add_embedding(network, words, Embedding(token, {"text_encoder": vectors(count, seed=k)}))
    expanded = expand("a EASYNEGATIVE, easynegativev2 (plain-one)", words)
    assert expanded == "a EasyNegative EasyNegative_1, EasyNegativeV2 EasyNegativeV2_1 EasyNegativeV2_2 (plain-one)"
    learned = {id: token for token, id in words.get_added_vocab().items() if token.startswith(("Easy", "plain"))}
    ids = words(expanded, add_special_tokens=False).input_ids
    assert [learned[id] for id in ids if id in learned] == [
        "EasyNegative", "EasyNegative_1", "EasyNegativeV2", "EasyNegativeV2_1", "EasyNegativeV2_2", "plain-one"
    ]  # fmt: skip


TOKEN = "<cat-toy>"


@functools.cache
def taught() -> Any:
    words = tokenizer()
    add_embedding(encoder(), words, Embedding(TOKEN, {"text_encoder": vectors(3)}))
    return words


@given(st.lists(st.text(st.characters(exclude_characters="<_", exclude_categories=("Cs",))), min_size=1, max_size=5))
def test_a_word_stands_for_all_its_vectors_wherever_it_is(between: list[str]) -> None:
    words = taught()
    ids = words.convert_tokens_to_ids([TOKEN, f"{TOKEN}_1", f"{TOKEN}_2"])
    expanded = expand(TOKEN.join(between), words)
    found = [i for i in words(expanded, add_special_tokens=False, verbose=False).input_ids if i in ids]
    assert found == ids * (len(between) - 1)
    assert expanded.replace(f"{TOKEN} {TOKEN}_1 {TOKEN}_2", TOKEN) == TOKEN.join(between)


def test_a_tokenizer_that_learned_nothing_leaves_prompts_alone() -> None:
    assert expand(PROMPT, tokenizer()) == PROMPT


@pytest.mark.parametrize("token", ["a", "cat</w>", "<|endoftext|>"])
def test_a_word_that_the_tokenizer_has_is_refused(token: str) -> None:
    network, words = encoder(), tokenizer()
    size = len(words)
    with pytest.raises(UserError, match=r"has a token .* already"):
        add_embedding(network, words, Embedding(token, {"text_encoder": vectors(2)}))
    assert len(words) == size == network.config.vocab_size


def test_a_word_twice_and_a_word_that_is_a_vector_of_another() -> None:
    network, words = encoder(), tokenizer()
    add_embedding(network, words, Embedding("<a>", {"text_encoder": vectors(2)}))
    for token in ("<a>", "<a>_1"):
        with pytest.raises(UserError, match=f"has a token '{token}' already"):
            add_embedding(network, words, Embedding(token, {"text_encoder": vectors(1)}))


def test_embeddings_that_do_not_fit() -> None:
    network, words = encoder(), tokenizer()
    size = len(words)
    for embedding, tower, message in (
        (Embedding("<a>", {"text_encoder": vectors(2, 768)}), "text_encoder", "width 768, and those .* have 16"),
        (Embedding("<a>", {"text_encoder": vectors(2)}), "text_encoder_2", "for text_encoder, none for text_encoder_2"),
        (Embedding("<a>", {"text_encoder": vectors(23)}), "text_encoder", "23 vectors, and a prompt has room for 22"),
    ):
        with pytest.raises(UserError, match=message):
            add_embedding(network, words, embedding, tower)
    assert len(words) == size == network.config.vocab_size


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing": ({}, "its 0 keys are none"),
    "a model": (
        {f"layer.{k}": torch.ones(2) for k in range(9)},
        r"its 9 keys are layer\.0, layer\.1, ",
    ),
    "whole numbers": ({"emb_params": torch.ones(2, 4, dtype=torch.int32)}, "found a tensor of torch.int32"),
    "no vectors": ({"emb_params": torch.ones(0, 4)}, r"the shape \(0, 4\)"),
    "a number": ({"<a>": torch.tensor(1.0)}, r"the shape \(\)"),
    "a cube": ({"<a>": torch.ones(2, 2, 2)}, r"the shape \(2, 2, 2\)"),
    "NaN": ({"emb_params": torch.full((1, 4), float("nan"))}, "NaN or infinity"),
    "a sentence": ({"two words": torch.ones(1, 4)}, "called by one word, not 'two words'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_wrong_is_refused_by_name(what: str, tmp_path: Path) -> None:
    tensors, message = WRONG[what]
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as told:
        load_embedding(path)
    assert str(path) in str(told.value)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


PICKLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (Evil, "is refused: it holds more than tensors"),
    "code beside vectors": (lambda mark: {**a1111(vectors(1)), "name": Evil(mark)}, "is refused"),
    "a list": (lambda mark: [vectors(1)], "holds no embedding: it is a list"),
    "two words": (lambda mark: {"string_to_param": {"a": vectors(1), "b": vectors(1)}}, "should have one word under"),
    "no words": (lambda mark: {"string_to_param": 3}, "should have one word under string_to_param, found 3"),
    "no tensor": (lambda mark: {"string_to_param": {"*": "x"}}, "found a str"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_is_wrong_runs_nothing(what: str, tmp_path: Path) -> None:
    make, message = PICKLES[what]
    mark, path = tmp_path / "ran", tmp_path / "style.pt"
    torch.save(make(mark), path)
    with pytest.raises(UserError, match=message):
        load_embedding(path, allow_pickle=True)
    with pytest.raises(UserError, match=r"is a pickle.*--allow-pickle"):
        load_embedding(path)
    path.rename(tmp_path / "style.safetensors")
    with pytest.raises(UserError, match=r"style\.safetensors"):
        load_embedding(tmp_path / "style.safetensors", allow_pickle=True)
    assert not mark.exists()


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    for name, write in (
        ("x.safetensors", lambda path: save_file({"emb_params": vectors(2)}, path)),
        ("x.pt", lambda path: torch.save(a1111(vectors(2)), path)),
    ):
        path = tmp_path / name
        write(path)
        whole = path.read_bytes()
        for size in (0, 7, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match=name):
                load_embedding(path, allow_pickle=True)
    with pytest.raises(UserError, match=r"gone\.pt is missing"):
        load_embedding(tmp_path / "gone.pt", allow_pickle=True)
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"x\.png is neither a safetensors file nor a pickle"):
        load_embedding(tmp_path / "x.png", allow_pickle=True)
