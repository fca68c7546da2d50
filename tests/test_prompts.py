"""The syntax that weighs words, and what the conditioner makes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import WIDTH, WINDOW, text_conditioner

from ldm.errors import UserError
from ldm.prompts import Span, expand, parse, plain
from ldm.text_conditioner import TextConditioner
from ldm.weights.lora_syntax import split_tags

WORDS = re.compile(r"BREAK|AND|<.*:.*>", re.DOTALL)  # that mean more than themselves


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[less] and ((more))", [("less", 1 / 1.1), (" and ", 1.0), ("more", 1.21)]),
        ("never opened) here]", [("never opened) here]", 1.0)]),
        ("a ratio of 3:2 (wide:1.5)", [("a ratio of 3:2 ", 1.0), ("wide", 1.5)]),
        ("(turned off:0) (away:-.5)", [("turned off", 0.0), (" ", 1.0), ("away", -0.5)]),
        ("[square:round]", [("square:round", 1 / 1.1)]),
        (r"back\\slash \n", [("back\\slash \\n", 1.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_the_web_uis_own_examples_and_corners(prompt: str, expected: list[tuple[str, float]]) -> None:
    (found,) = parse(prompt)
    assert [span.text for span in found] == [text for text, _ in expected]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in expected])


def test_break_parts_a_prompt_wherever_it_stands_as_a_word() -> None:
    assert parse("one BREAK two") == [[Span("one")], [Span("two")]]
    assert parse("BREAK") == [[], []]
    assert parse("(one BREAK two:2) BREAKFAST") == [[Span("one", 2.0)], [Span("two", 2.0), Span(" BREAKFAST")]]
    assert plain("one BREAK (two)") == [[Span("one BREAK (two)")]]


UNSUPPORTED = [
    ("a [cat:dog:0.5]", r"prompt editing .* is not supported, got '\[cat:dog:0\.5\]'; with prompt_syntax plain"),
    ("a [cat:0.5]", "prompt editing"),
    ("a [(cat:1.2)::12 ] b", "prompt editing"),
    ("([cat|dog] x:1.2)", r"alternation .* got '\[cat\|dog\]'; with prompt_syntax plain"),
    ("[a\\]|b]", "alternation"),
    ("[(cat:1.2)|dog]", "alternation"),
    ("a cat AND a dog", "AND between prompts"),
    ("a <lyco:x:1>", "the tag '<lyco:x:1>' is not supported"),
    ("a <hypernet:x:1>", "the tag '<hypernet:x:1>'"),
    ("a < LoRA :x:1>", "LoRAs in a prompt, .* in Python give loras= to ldm.load, or set_loras"),
]


@pytest.mark.parametrize(("prompt", "told"), UNSUPPORTED, ids=[prompt for prompt, _ in UNSUPPORTED])
def test_syntax_that_is_not_supported_is_no_words(prompt: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(prompt)
    assert plain(prompt) == [[Span(prompt)]]


@pytest.mark.parametrize(
    "prompt",
    ["salt and pepper", "SANDY ANDES", "a|b", "3:2", "<cat-toy>", "a <3 b: c>", r"\[a|b\]", r"\[a:b:0.5\]"],
)
def test_what_only_looks_like_it_is(prompt: str) -> None:
    assert parse(prompt) == [[Span(prompt.replace("\\", ""))]]


@given(st.text())
def test_any_text_can_be_parsed_and_no_character_is_made_up(prompt: str) -> None:
    try:
        parts = parse(prompt)
    except UserError:  # syntax that is not supported
        return
    text = "".join(span.text for part in parts for span in part)
    rest = iter(prompt)
    assert all(character in rest for character in text)  # a subsequence


@given(st.text(alphabet=st.characters(blacklist_characters="()[]\\:")).filter(lambda text: not WORDS.search(text)))
def test_text_without_brackets_is_one_span(prompt: str) -> None:
    assert parse(prompt) == [[Span(prompt)] if prompt else []]


@given(st.text().filter(lambda text: not WORDS.search(text)))
def test_escaped_text_means_itself(prompt: str) -> None:
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in prompt)
    assert parse(escaped) == [[Span(prompt)] if prompt else []]


@pytest.mark.parametrize("tag", ["<LoRA:my style:0.8>", "< lora:my style:0.8>", "<lora : my style : 0.8 >"])
def test_tags_of_loras_in_capitals_and_with_spaces(tag: str) -> None:
    assert split_tags(f"a cat {tag}, red") == ("a cat , red", [("my style", 0.8)])


class Learned:
    """A tokenizer that has learned words."""

    def get_added_vocab(self) -> dict[str, int]:
        return {"my-word": 5, "my-word_1": 6, "zebra": 7}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a embedding:my-word, two", "a my-word my-word_1, two"),
        ("Embedding:ZEBRA", "zebra"),
        ("embedding:unknown", "embedding:unknown"),
        ("zebra", "zebra"),
    ],
)
def test_learned_words_are_found_as_comfyui_writes_them(prompt: str, expected: str) -> None:
    tokenizer: Any = Learned()
    assert expand(prompt, tokenizer) == expected


# ------------------------------------------------------------------------------ as contexts


@pytest.fixture(scope="module")
def text() -> TextConditioner:
    return text_conditioner()


def tokens(text: TextConditioner, prompt: str, **options: object) -> torch.Tensor:
    found = text.encode([prompt], **options).tokens
    assert found is not None
    return found[0]


def test_without_weights_the_syntax_changes_no_bit(text: TextConditioner) -> None:
    assert torch.equal(tokens(text, "a thick two", weighted=True), tokens(text, "a thick two"))
    assert torch.equal(tokens(text, r"\(a\) thick two", weighted=True), tokens(text, "(a) thick two"))


def test_weighed_states_are_scaled_and_brought_back_to_their_mean(text: TextConditioner) -> None:
    encoder, tokenizer = text.towers[0]
    ids = [tokenizer(words, add_special_tokens=False).input_ids for words in ("a ", "thick", " two")]
    row = [tokenizer.bos_token_id, *(i for part in ids for i in part), tokenizer.eos_token_id]
    row += [tokenizer.pad_token_id] * (WINDOW - len(row))
    states = encoder(torch.tensor([row])).last_hidden_state[0]
    first = 1 + len(ids[0])
    weights = torch.ones(WINDOW)
    weights[first : first + len(ids[1])] = 1.4
    scaled = states * weights[:, None]
    expected = scaled * (states.mean() / scaled.mean())
    torch.testing.assert_close(tokens(text, "a (thick:1.4) two", weighted=True), expected, rtol=1e-4, atol=1e-5)
    assert (tokens(text, "a (thick:1.4) two", weighted=True) - states).abs().max() > 0.1


def test_break_begins_a_window_and_weights_stay_in_theirs(text: TextConditioner) -> None:
    found = tokens(text, "(two:1.3) BREAK three", weighted=True)
    assert found.shape == (2 * WINDOW, WIDTH)
    torch.testing.assert_close(found[:WINDOW], tokens(text, "(two:1.3)", weighted=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[WINDOW:], tokens(text, "three"), rtol=0, atol=1e-5)
    assert text.length("two BREAK three", weighted=True) == 2 * WINDOW
    assert text.length("two BREAK three") == WINDOW


def test_clip_skip_reads_an_earlier_layer_through_the_last_norm(text: TextConditioner) -> None:
    encoder, tokenizer = text.towers[0]
    ids = tokenizer(["two"], padding="max_length", max_length=WINDOW, return_tensors="pt").input_ids
    states = encoder(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tokens(text, "two", clip_skip=2), encoder.final_layer_norm(states)[0])
    assert torch.equal(tokens(text, "two", clip_skip=1), tokens(text, "two"))
    for skip in (0, 3):  # it has two layers
        with pytest.raises(UserError, match=rf"clip_skip should be from 1 .* to 2, .*; got {skip}"):
            tokens(text, "two", clip_skip=skip)


def test_prompts_are_read_alike_alone_and_together(text: TextConditioner) -> None:
    prompts = ["two", "a (thick:1.2) three", "", "seven"]
    together = text_conditioner().encode(prompts, weighted=True).tokens
    for k, prompt in enumerate(prompts):
        alone = text_conditioner().encode([prompt], weighted=True).tokens
        assert torch.equal(alone[0], together[k])
