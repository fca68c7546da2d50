r"""One prompt that stands for many.

    a cat|in the rain|at night    "a cat" alone, and with every choice of what follows: 4 prompts
    a {red|blue} {car|bike}       one of each braces: 4 prompts
    a {red|{light|dark} blue} car braces nest: 3 prompts

The first part is always there; the others are joined to it with ", ". A backslash makes ``{``, ``|`` and ``}`` ordinary
characters; one that is to stand before such a character as itself is doubled. Elsewhere a backslash is a backslash, so
that the escapes of weights, ``\(`` and ``\)``, pass through.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Sequence
from dataclasses import replace

from ldm.errors import UserError
from ldm.plans.job import MOST_PICTURES, NOTHING, Job, Labels, Plan, shortened

_TOKEN = re.compile(r"(?P<slashes>\\*)(?P<mark>[{|}])|(?P<text>\\+|[^\\{|}]+)")


def matrix(job: Job) -> Plan:
    """A job for every combination that its prompt stands for, as a sheet. All have the seed of ``job``.

    Braces to the left change slowest and, as in the web UI, the first of the parts changes fastest. The
    fastest choices are the columns and the others the rows, so that the sheet is as nearly square as can be.

    Raises:
        UserError: the prompt is a label, stands for itself alone or for more than 1000, or a brace has no partner.
    """
    if not isinstance(job.prompt, str):
        raise UserError(f"a matrix is made of a prompt with {{...|...}} or ...|..., not of {job.prompt!r}")
    base, *parts = parse(job.prompt)
    braces = [piece for piece in base if len(piece) > 1]
    added = [["", *_products(part)] for part in reversed(parts)]
    choices = braces + added
    if not choices:
        raise UserError(
            f"the prompt {shortened(job.prompt)!r} stands for itself alone: a matrix needs {{...|...}} or ...|..."
        )
    count = math.prod(map(len, choices))
    _check_count(count, job.prompt)
    prompts = [_join(text, chosen) for text in _products(base) for chosen in itertools.product(*added)]
    jobs = tuple(replace(job, prompt=prompt, output=None) for prompt in prompts)
    written = [*range(len(braces)), *reversed(range(len(braces), len(choices)))]
    first = _first_across([len(choice) for choice in choices])
    across, down = slice(first, None), slice(first)
    labels = Labels(_labels(choices[across], written[across]), _labels(choices[down], written[down]), job.prompt)
    return Plan(jobs, labels)


def _first_across(sizes: Sequence[int]) -> int:
    """Which choices are columns: those from this one on."""
    return min(range(len(sizes)), key=lambda k: max(math.prod(sizes[:k]), math.prod(sizes[k:])))


def parse(prompt: str) -> list[list[list[str]]]:
    """The parts of a prompt between its bare ``|``; each is pieces in a row, and a piece is the texts it may be.

    Raises:
        UserError: a brace has no partner, or braces within braces stand for more than 1000 texts.
    """
    parser = _Parser(prompt)
    for token in _TOKEN.finditer(prompt):
        mark, slashes = token["mark"], len(token["slashes"] or "")
        if mark is None:
            parser.put([token["text"]])
        elif slashes % 2:  # the last of them escapes the mark
            parser.put(["\\" * (slashes // 2) + mark])
        else:
            if slashes:
                parser.put(["\\" * (slashes // 2)])
            {"{": parser.open, "|": parser.bar, "}": parser.close}[mark](token.end())
    return parser.finish()


class _Braces:
    """Braces that are still open: where they began, their choices so far, and the texts of the one being read."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.choices: list[str] = []
        self.texts = [""]


class _Parser:
    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.parts: list[list[list[str]]] = [[]]
        self.opened: list[_Braces] = []

    def put(self, texts: list[str]) -> None:
        if not self.opened:
            self.parts[-1].append(texts)
            return
        braces = self.opened[-1]
        _check_count(len(braces.texts) * len(texts), self.prompt)
        braces.texts = [before + text for before in braces.texts for text in texts]

    def open(self, position: int) -> None:
        self.opened.append(_Braces(position))

    def bar(self, position: int) -> None:
        if not self.opened:
            self.parts.append([])
            return
        braces = self.opened[-1]
        braces.choices += braces.texts
        braces.texts = [""]
        _check_count(len(braces.choices), self.prompt)

    def close(self, position: int) -> None:
        if not self.opened:
            raise UserError(_unmatched(self.prompt, "}", position))
        braces = self.opened.pop()
        self.put(braces.choices + braces.texts)

    def finish(self) -> list[list[list[str]]]:
        if self.opened:
            raise UserError(_unmatched(self.prompt, "{", self.opened[-1].position))
        return self.parts


def _unmatched(prompt: str, brace: str, position: int) -> str:
    where = f"{brace} at character {position} of {shortened(prompt)!r}"
    return f"{where} has no partner; write \\{brace} for the character itself"


def _products(pieces: Sequence[Sequence[str]]) -> list[str]:
    _check_count(math.prod(map(len, pieces)), "".join(piece[0] for piece in pieces))
    return ["".join(chosen) for chosen in itertools.product(*pieces)]


def _join(first: str, slow_to_fast: Sequence[str]) -> str:
    """The parts in the order in which they are written in the prompt; the commas between them are ours."""
    return ", ".join(filter(None, map(_bare, (first, *reversed(slow_to_fast)))))


def _bare(text: str) -> str:
    return text.strip(string.whitespace + ",")


def _labels(choices: Sequence[Sequence[str]], written: Sequence[int]) -> tuple[str, ...]:
    """One for every combination; each names its choices in the order in which they are written in the prompt."""
    named = [[(at, _bare(text)) for text in choice] for at, choice in zip(written, choices, strict=True)]
    return tuple(
        ", ".join(text for _, text in sorted(chosen) if text) or NOTHING for chosen in itertools.product(*named)
    )


def _check_count(count: int, prompt: str) -> None:
    if count > MOST_PICTURES:
        raise UserError(
            f"the prompt {shortened(prompt)!r} stands for {count:,} prompts, and {MOST_PICTURES:,} are the most"
        )
