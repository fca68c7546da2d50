"""The syntax of prompts that weigh their words, as AUTOMATIC1111's web UI reads it.

    (word)        1.1 times as strong        ((word)), [word]   1.1 squared, 1 / 1.1
    (word:1.3)    1.3 times as strong        \\( \\) \\[ \\] \\\\     the character itself
    BREAK         what follows begins a new window of the text encoder

Brackets nest, and their weights multiply. One that is never closed reaches to the end, and one that was never
opened is a character like any other.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

ROUND, SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Span(NamedTuple):
    """A part of a prompt whose words are all of one weight."""

    text: str
    weight: float = 1.0


def parse(prompt: str) -> list[list[Span]]:
    """A prompt as parts between its BREAKs (at least one), each of spans; no two neighbours have the same weight."""
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

    The tokenizer finds a word in either case and inside longer words, and so does this.
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
    pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
    return pattern.sub(lambda match: words.get(match[0].lower(), match[0]), prompt)


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
