"""The syntax that weighs words, and what the conditioner makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import WIDTH, WINDOW, text_conditioner

from ldm.errors import UserError
from ldm.prompts import Span, parse, plain
from ldm.text_conditioner import TextConditioner


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
        ("[square:1.3]", [("square:1.3", 1 / 1.1)]),
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


@given(st.text())
def test_any_text_can_be_parsed_and_no_character_is_made_up(prompt: str) -> None:
    text = "".join(span.text for part in parse(prompt) for span in part)
    rest = iter(prompt)
    assert all(character in rest for character in text)  # a subsequence


@given(st.text(alphabet=st.characters(blacklist_characters="()[]\\:")).filter(lambda text: "BREAK" not in text))
def test_text_without_brackets_is_one_span(prompt: str) -> None:
    assert parse(prompt) == [[Span(prompt)] if prompt else []]


@given(st.text().filter(lambda text: "BREAK" not in text))
def test_escaped_text_means_itself(prompt: str) -> None:
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in prompt)
    assert parse(escaped) == [[Span(prompt)] if prompt else []]


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
