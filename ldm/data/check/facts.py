"""What is known of an example once it has been looked at: small, and the same from every process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ldm.data.check.fingerprint import Look, look_at
from ldm.data.example import BadExample, Example

CountTokens = Callable[[str], int]


class Fault(NamedTuple):
    """Why an example cannot be used: a kind of ``KINDS``, and words."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of an example.

    Attributes:
        part: of the mixed sources, the one it is in.
        key: as in ``Example``.
        faults: why it cannot be used; none, and the rest known, when it can.
        size: upright (height, width).
        look: of its pixels.
        label: its class.
        tokens: the length of each of its captions.
    """

    part: int
    key: str
    faults: tuple[Fault, ...] = ()
    size: tuple[int, int] = (0, 0)
    look: Look | None = None
    label: int | None = None
    tokens: tuple[int, ...] = ()


class Opening(NamedTuple):
    """How an example is opened.

    Attributes:
        key: as in ``Example``.
        read: opens all of it.
        picture: opens its picture, though its words may be bad; None where one cannot be had without the other.
    """

    key: str
    read: Callable[[], Example]
    picture: Callable[[], object] | None = None


def facts_of(part: int, how: Opening, count_tokens: CountTokens) -> Facts:
    """Open an example and look at it; never raises over what is in it.

    Args:
        part: as in ``Facts``.
        how: opens the example.
        count_tokens: the length of a caption.
    """
    example, fault = _opened(how.key, how.read)
    if isinstance(example, Example):
        tokens = tuple(count_tokens(caption) for caption in example.captions)
        return Facts(part, how.key, (), example.original, look_at(example.image), example.label, tokens)
    # bad words are told first, and would hide what is wrong with the picture
    other = _opened(how.key, how.picture)[1] if how.picture is not None else None
    return Facts(part, how.key, tuple(dict.fromkeys(each for each in (fault, other) if each is not None)))


def _opened(key: str, read: Callable[[], object]) -> tuple[object, Fault | None]:
    """What there is, or why it cannot be had."""
    try:
        return read(), None
    except BadExample as error:
        return None, Fault(_kind(error), str(error))
    except Exception as error:  # no file of others may end a check: what nobody foresaw is a finding too
        return None, Fault("unusable", f"{key}: {type(error).__name__}: {error}")


# What sources say of words and tars. Paths are in these messages too, so they are told by words that stand before or
# after any path.
_OF_WORDS = (
    (
        "shard",
        r" is cut off in the middle of | ends after \d+ of \d+ samples$| is damaged behind its first \d+ sample",
    ),
    ("encoding", r" is not valid UTF-8(: it begins as UTF-16 does.*)?$"),
    ("empty", r" is empty$"),
    ("uncaptioned", r" has no caption: looked for "),
    ("missing", r" is missing$| has no picture: no .+ file$|, and there is no such file$|^there is no picture$"),
    ("words", r" is no text: | holds zero bytes, and is no text$| holds no keys and values in JSON$|, and should be "),
    ("words", r" is in no folder of a class$| is in the folder .*, which is none of classes$| gives .+ the class "),
    (
        "row",
        r" is no (JSON|CSV): | should be an object such as | fields, and the first line has | should be a path in ",
    ),
)


def _kind(error: BadExample) -> str:
    if error.fault is not None:
        return error.fault
    return next((kind for kind, words in _OF_WORDS if re.search(words, str(error))), "unusable")
