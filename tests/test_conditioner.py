"""Conditions to context: nothing, a label as one learned token, a prompt through CLIP's text tower."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import WIDTH, WINDOW, text_conditioner
from torch import Tensor
from transformers import CLIPTextModel

from ldm.conditioner import Condition, LabelConditioner, NoConditioner
from ldm.errors import UserError
from ldm.text_conditioner import TextConditioner, Tower

ROOM = WINDOW - 2  # tokens of a prompt in a window, beside the start and the end
LONG = "a thick tall one slanted to the right "  # 7 words


@pytest.fixture(scope="module")
def text() -> TextConditioner:
    return text_conditioner()


def by_transformers(text: TextConditioner, prompts: list[str]) -> Tensor:
    """One window each, as the world of Stable Diffusion calls its text encoder."""
    tokens = text.towers[0].tokenizer(
        prompts, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text.towers[0].encoder(tokens.input_ids).last_hidden_state


def by_hand(text: TextConditioner, prompt: str, windows: int) -> Tensor:
    """Every window of a prompt on its own, start and end included: (windows * WINDOW, D)."""
    names = text.towers[0].tokenizer.tokenize(prompt)
    states = []
    for w in range(windows):
        part = ["<|startoftext|>", *names[w * ROOM : (w + 1) * ROOM], "<|endoftext|>"]
        part += ["<|endoftext|>"] * (WINDOW - len(part))  # its padding token
        with torch.no_grad():
            ids = torch.tensor([text.towers[0].tokenizer.convert_tokens_to_ids(part)])
            states.append(text.towers[0].encoder(ids).last_hidden_state[0])
    return torch.cat(states)


def count_runs(text: TextConditioner) -> tuple[list[int], object]:
    """The rows of every call of the tower from now on, and the handle to stop counting."""
    rows: list[int] = []
    handle = text.towers[0].encoder.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    return rows, handle


# ----------------------------------------------------------------------------- nothing, labels


def test_nothing() -> None:
    assert NoConditioner().encode([None, ""]) is None
    assert NoConditioner().length(None) == 0
    for condition in (0, 3, "seven"):
        with pytest.raises(UserError, match=f"unconditional and cannot be asked for {condition!r}"):
            NoConditioner().encode([None, condition])


def test_a_label_is_one_learned_token() -> None:
    labels = LabelConditioner(10, WIDTH)
    context = labels.encode([0, 9, "4", 4, None, ""]).tokens
    table = labels.embedding.weight
    assert table.shape == (11, WIDTH)
    assert context.shape == (6, 1, WIDTH)
    assert torch.equal(context[:, 0], table[torch.tensor([0, 9, 4, 4, 10, 10])])
    assert labels.length(3) == labels.length(None) == 1


def test_training_moves_the_tokens_that_were_asked_for_and_no_other() -> None:
    labels = LabelConditioner(5, WIDTH)
    labels.encode([1, None, 1]).tokens.sum().backward()
    assert labels.embedding.weight.grad is not None
    assert labels.embedding.weight.grad[:, 0].tolist() == [0, 2, 0, 0, 0, 1]


@pytest.mark.parametrize("condition", [10, -1, "seven", "3.5", "-1", "10"])
def test_labels_that_are_none(condition: Condition) -> None:
    with pytest.raises(UserError, match=f"a label from 0 to 9, or nothing; got {condition!r}"):
        LabelConditioner(10, WIDTH).encode([1, condition])


# ---------------------------------------------------------------------------------------- text


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_short_prompts_are_read_as_transformers_reads_them(text: TextConditioner, prompts: list[str]) -> None:
    prompts = [p for p in prompts if len(text.towers[0].tokenizer.tokenize(p)) <= ROOM] or [""]
    torch.testing.assert_close(text.encode(prompts).tokens, by_transformers(text, prompts), rtol=0, atol=1e-5)


def test_none_and_the_empty_prompt_mean_anything(text: TextConditioner) -> None:
    context = text.encode([None, "", "two"]).tokens
    torch.testing.assert_close(context, by_transformers(text, ["", "", "two"]), rtol=0, atol=1e-5)
    assert torch.equal(context[0], context[1])
    assert text.length(None) == text.length("") == text.length("two") == WINDOW


@pytest.mark.parametrize("words", [8, 20, 60])
def test_long_prompts_are_read_window_by_window(text: TextConditioner, words: int) -> None:
    prompt = " ".join((LONG * 10).split()[:words])
    count = len(text.towers[0].tokenizer.tokenize(prompt))
    windows = -(-count // ROOM)
    context = text.encode([prompt]).tokens
    assert context.shape == (1, windows * WINDOW, WIDTH)
    assert text.length(prompt) == windows * WINDOW
    torch.testing.assert_close(context[0], by_hand(text, prompt, windows), rtol=0, atol=1e-5)


def test_a_prompt_that_fills_its_window_takes_no_second(text: TextConditioner) -> None:
    prompt = "! " * ROOM  # a token each
    assert len(text.towers[0].tokenizer.tokenize(prompt)) == ROOM
    assert [text.length(prompt), text.length(prompt + "!")] == [WINDOW, 2 * WINDOW]
    torch.testing.assert_close(text.encode([prompt]).tokens, by_transformers(text, [prompt]), rtol=0, atol=1e-5)


def test_prompts_of_one_call_have_one_length(text: TextConditioner) -> None:
    long = LONG * 4
    windows = text.length(long) // WINDOW
    assert windows > 1
    context = text.encode(["two", long, None]).tokens
    for row, prompt in zip(context, ("two", long, ""), strict=True):
        torch.testing.assert_close(row, by_hand(text, prompt, windows), rtol=0, atol=1e-5)


def test_what_was_read_is_remembered() -> None:
    text = text_conditioner()
    rows, _ = count_runs(text)
    first = text.encode(["two", "three", "two"]).tokens
    assert rows == [1, 1]  # equal prompts are read once, and in float32 on a CPU one by one
    assert torch.equal(text.encode(["three", "two", None]).tokens[:2], first[[1, 0]])
    assert rows == [1, 1, 1]
    text.encode(["two", LONG * 4])  # another number of windows is another context
    assert rows == [1, 1, 1, *[text.length(LONG * 4) // WINDOW] * 2]
    first.zero_()  # a caller's tensor is its own
    assert text.encode(["two"]).tokens.abs().max() > 0


def test_memory_is_bounded_and_forgetting_changes_nothing() -> None:
    fresh, text = text_conditioner(), text_conditioner()
    text.remember = 3
    for start in range(0, 12, 2):
        prompts = [str(start + k) for k in range(4)]  # more than fit, half of them known
        torch.testing.assert_close(text.encode(prompts).tokens, fresh.encode(prompts).tokens, rtol=0, atol=1e-5)
        assert len(text._known) <= 4


def test_what_drawing_read_can_be_trained_with() -> None:
    text = text_conditioner()
    with torch.inference_mode():
        text.encode(["two"])
    weight = torch.ones(WIDTH, requires_grad=True)
    (text.encode(["two"]).tokens * weight).sum().backward()  # tensors of inference mode would refuse
    assert weight.grad is not None
    assert not any(p.requires_grad for p in text.towers[0].encoder.parameters())


def test_towers_in_half_precision_give_float32() -> None:
    text = text_conditioner()
    expected = text.encode(["a thick two"]).tokens
    encoder = CLIPTextModel(text.towers[0].encoder.config)
    encoder.load_state_dict(text.towers[0].encoder.state_dict())
    half = TextConditioner(Tower(encoder.to(torch.bfloat16), text.towers[0].tokenizer)).encode(["a thick two"]).tokens
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0, atol=0.1)
