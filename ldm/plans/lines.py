"""Prompts from a file or from standard input, as text or as JSON Lines.

Text: every line that is not blank is a prompt, without the space around it. There are no comments, as prompts may well
begin with #. JSON Lines: every line that is not blank is an object with a ``prompt``, and if wanted a ``seed``, an
``output`` and settings, by the names of ``Drawing`` or of the command line:

    {"prompt": "a cat", "negative_prompt": "blurry", "steps": 30, "seed": 7, "output": "cat.png"}

A file is JSON Lines when its name ends in .jsonl, .ndjson or .json, or when its first line begins with {" .
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ldm.drawing import RANDOM, Drawing, find_key
from ldm.errors import UserError
from ldm.plans.job import LARGEST_SEED, Request, shortened
from ldm.schema import explain_all

STDIN = "-"
_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines knows more, and prompts may hold those
_OBJECT = re.compile(r'\{\s*"')
_FLAG = re.compile(r"(?:^|\s)(--[A-Za-z][\w-]*)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_SHOWN = 200  # characters of a message about one line


class _Line(Drawing):
    prompt: str | int | None
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    output: str | None = Field(default=None, min_length=1)


_OWN = ("prompt", "seed", "output")


def read_requests(source: str) -> list[Request]:
    """Read a file of prompts; ``-`` is standard input.

    Raises:
        UserError: it cannot be read, is no UTF-8, holds no prompt, or a line is wrong; with file and line number.
    """
    name = "standard input" if source == STDIN else source
    lines = [(number, line) for number, line in _lines(_bytes(source), name) if line]
    if not lines:
        raise UserError(f"{name} holds no prompt: every line that is not blank is one")
    objects = Path(source).suffix.lower() in (".jsonl", ".ndjson", ".json") or _OBJECT.match(lines[0][1])
    read = _from_object if objects else _from_text
    return [read(line, f"{name}, line {number}") for number, line in lines]


def _bytes(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"the file of prompts {source!r} cannot be read: {error}") from error


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines without the space around them."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name} is UTF-16: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(_LINE_END.findall(data[: error.start].decode("utf-8"))) + 1
        byte = data[error.start]
        raise UserError(f"{name}, line {number}: byte 0x{byte:02x} is no UTF-8: save the file as UTF-8") from error
    for number, line in enumerate(_LINE_END.split(text), 1):
        yield number, line.strip()


def _from_text(line: str, place: str) -> Request:
    if flag := _FLAG.search(line):
        raise UserError(
            f"{place} holds {shortened(flag[1])}: a line of text is a prompt. Settings of single lines go in JSON "
            'Lines, as in {"prompt": "a cat", "steps": 30}'
        )
    return Request(line, place=place)


def _from_object(line: str, place: str) -> Request:
    values = _parse(line, place)
    typed: dict[str, str] = {}  # which key of the line gave a field
    for key in values:
        try:
            field = find_key(key, _OWN)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if field in typed:
            raise UserError(f"{place}: {typed[field]!r} and {key!r} are the same setting: give one")
        typed[field] = key
    if values.get(typed.get("seed", "")) == RANDOM:
        values[typed["seed"]] = secrets.randbelow(2**32)
    checked = _check({field: values[key] for field, key in typed.items()}, typed, place)
    drawing = {field: getattr(checked, field) for field in typed if field not in _OWN}
    return Request(checked.prompt, checked.seed, drawing, checked.output, place)


def _parse(line: str, place: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{place}: the key {twice!r} is given twice")
        return values

    try:
        values = json.loads(line, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
        raise UserError(f"{place} is no JSON: {error}. JSON Lines has one whole object on each line") from error
    if not isinstance(values, dict):
        raise UserError(f'{place} should be an object such as {{"prompt": "a cat"}}, got {shortened(line)}')
    return values


def _check(values: dict[str, Any], typed: dict[str, str], place: str) -> _Line:
    """Validate strictly: "20" is no number of steps, and true is none either."""
    for field, value in values.items():
        if isinstance(value, str) and (_SURROGATE.search(value) or "\0" in value):
            raise UserError(f"{place}: {typed[field]}: holds what is no character, got {shortened(ascii(value))}")
    try:
        # As JSON again, where a list can be a tuple: in Python's types strictness would refuse it
        return _Line.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        named = [(item, _typed(item, typed), [*values]) for item in error.errors(include_url=False)]
        raise UserError(
            f"{place}: {'; '.join(shortened(line, _LONGEST_SHOWN) for line in explain_all(named))}"
        ) from error


def _typed(item: Any, typed: dict[str, str]) -> str:
    field: str = item["loc"][0]
    return typed.get(field, field)
