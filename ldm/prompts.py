"""The syntax of prompts that weigh their words, as AUTOMATIC1111's web UI reads it.

    (word)        1.1 times as strong        ((word)), [word]   1.1 squared, 1 / 1.1
    (word:1.3)    1.3 times as strong        \\( \\) \\[ \\] \\\\     the character itself
    BREAK         what follows begins a new window of the text encoder

What else the web UI reads, and we do not, is refused rather than drawn as words: prompt editing ``[a:b:0.5]``,
alternation ``[a|b]``, composition ``a AND b``, and tags ``<name:...>``; those of LoRAs are for ``ldm generate``.

Brackets nest, and their weights multiply. One that is never closed reaches to the end, and one that was never
opened is a character like any other.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ldm.errors import UserError

ROUND, SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_AND = re.compile(r"\sAND\s")
_TAG = re.compile(r"<\s*([A-Za-z]\w*)\s*:[^<>]*>")
_EDITING = re.compile(r":\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*", re.ASCII)

_AS_WORDS = "with prompt_syntax plain it is taken as words"


class Span(NamedTuple):
    """A part of a prompt whose words are all of one weight."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> list[list[Span]]:
    """A prompt as parts between its BREAKs (at least one), each of spans; no two neighbours have the same weight.

    Raises:
        UserError: it has syntax of the web UI that is not supported.
    """
    _refuse(prompt)
    parts: list[list[Span]] = [[]]
    for text, weight in _spans(prompt):
        first, *others = _BREAK.split(text)
        _append(parts[-1], first, weight)
        for rest in others:
            parts.append([])
            _append(parts[-1], rest, weight)
    return parts


def plain(prompt: str) -> list[list[Span]]:
    """A prompt in which brackets are brackets, in the form that ``parse`` gives."""
    return [[Span(prompt)]]


def expand(prompt: str, tokenizer: Any) -> str:
    """Write every token of each learned word of several vectors where a prompt has the word.

    The tokenizer finds a word in either case and inside longer words, and so does this. ComfyUI writes
    ``embedding:`` before such a word, which is left out.
    """
    added = tokenizer.get_added_vocab()
    words = {}
    for token in added:
        rest = 1
        while f"{token}_{rest}" in added:
            rest += 1
        words[token.lower()] = " ".join([token, *(f"{token}_{i}" for i in range(1, rest))])
    if not words:
        return prompt
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(f"(?:embedding:)?({'|'.join(map(re.escape, longest_first))})", re.IGNORECASE)
    return pattern.sub(lambda match: words.get(match[1].lower(), match[1]), prompt)


def _refuse(prompt: str) -> None:
    """Say so, where the web UI would read something that is not supported here."""
    if tag := _TAG.search(prompt):
        if tag[1].lower() == "lora":
            raise UserError(
                f"{tag[0]!r}: LoRAs in a prompt, not in a negative one, are read by `ldm generate`; in Python give "
                "loras= to ldm.load, or set_loras"
            )
        raise UserError(f"the tag {tag[0]!r} is not supported; {_AS_WORDS}")
    if _AND.search(prompt):
        raise UserError(f"AND between prompts, in capitals, is not supported; {_AS_WORDS}")
    opened: list[tuple[int, list[str]]] = []  # where brackets are open, and what stands in each but in no inner one
    for match in _TOKEN.finditer(prompt):
        kind, text = match.lastgroup, match.group()
        if kind == "open":
            opened.append((match.start(), []))
        elif opened and kind in ("weight", "close") and text[-1] == {"(": ")", "[": "]"}[prompt[opened[-1][0]]]:
            start, inside = opened.pop()
            if text == "]":
                _refuse_square("".join(inside), prompt[start : match.end()])
        elif opened:
            opened[-1][1].append("\\" if kind == "escaped" else text)


def _refuse_square(inside: str, whole: str) -> None:
    if "|" in inside:
        raise UserError(f"alternation [a|b] is not supported, got {whole!r}; {_AS_WORDS}")
    last = inside.rfind(":")
    if last >= 0 and _EDITING.fullmatch(inside, last):
        raise UserError(f"prompt editing [a:b:0.5] is not supported, got {whole!r}; {_AS_WORDS}")


def _spans(prompt: str) -> list[tuple[str, float]]:
    """Text and weight of every piece, in order."""
    found: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # each open bracket, and which piece is its first
    for match in _TOKEN.finditer(prompt):
        kind, text = match.lastgroup, match.group()
        if kind == "open":
            opened.append((text, len(found)))
        elif kind == "weight" and opened and opened[-1][0] == "(":
            _multiply(found, opened.pop()[1], float(match["weight"]))
        elif kind == "close" and opened and opened[-1][0] == {")": "(", "]": "["}[text]:
            bracket, first = opened.pop()
            _multiply(found, first, ROUND if bracket == "(" else SQUARE)
        else:
            found.append((match["escaped"] or text, 1.0))
    for bracket, first in opened:
        _multiply(found, first, ROUND if bracket == "(" else SQUARE)
    return found


def _multiply(pieces: list[tuple[str, float]], first: int, factor: float) -> None:
    pieces[first:] = [(text, weight * factor) for text, weight in pieces[first:]]


def _append(part: list[Span], text: str, weight: float) -> None:
    if not text:
        return
    if part and part[-1].weight == weight:
        part[-1] = Span(part[-1].text + text, weight)
    else:
        part.append(Span(text, weight))
