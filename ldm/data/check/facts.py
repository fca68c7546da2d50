"""What is known of an example once it has been looked at: small, and the same from every process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from ldm.data.check.fingerprint import Look, look_at
from ldm.data.example import BadExample, Example
from ldm.errors import UserError

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
        fault: why it cannot be used; None, and the rest known, when it can.
        size: upright (height, width).
        look: of its pixels.
        label: its class.
        tokens: the length of each of its captions.
    """

    part: int
    key: str
    fault: Fault | None = None
    size: tuple[int, int] = (0, 0)
    look: Look | None = None
    label: int | None = None
    tokens: tuple[int, ...] = ()


def facts_of(part: int, key: str, read: Callable[[], Example], count_tokens: CountTokens) -> Facts:
    """Open an example and look at it; never raises over what is in it.

    Args:
        part: as in ``Facts``.
        key: as in ``Example``.
        read: opens the example.
        count_tokens: the length of a caption.
    """
    try:
        example = read()
        tokens = tuple(count_tokens(caption) for caption in example.captions)
        return Facts(part, key, None, example.original, look_at(example.image), example.label, tokens)
    except BadExample as error:
        return Facts(part, key, Fault(_kind(error), str(error)))
    except Exception as error:  # no file of others may end a check: what nobody foresaw is a finding too
        return Facts(part, key, Fault("unusable", f"{key}: {type(error).__name__}: {error}"))


# What ``ldm.open_picture`` says of a picture, and the sources of words and tars. Paths are in these messages too, so
# they are told by words that stand before or after any path.
_OF_PICTURES = (
    ("bomb", r" has \d+ x \d+ pixels, and at most [\d,]+ are opened$"),
    ("animated", r" has \d+ frames, and which is meant is unknown: "),
)
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
# What Pillow and its decoders say of a file that ends too early.
_CUT_OFF = re.compile(r"truncated|unexpected end|broken data stream|not enough (image )?data|premature", re.IGNORECASE)


def _kind(error: BadExample) -> str:
    if isinstance(error.__cause__, UserError):  # of ``ldm.open_picture``
        return _kind_of_picture(str(error), _causes(error))
    return next((kind for kind, words in _OF_WORDS if re.search(words, str(error))), "unusable")


def _kind_of_picture(message: str, causes: list[BaseException]) -> str:
    for cause, kind in ((FileNotFoundError, "missing"), (Image.DecompressionBombError, "bomb")):
        if any(isinstance(each, cause) for each in causes):
            return kind
    otherwise = "truncated" if any(_CUT_OFF.search(str(cause)) for cause in causes) else "unreadable"
    return next((kind for kind, words in _OF_PICTURES if re.search(words, message)), otherwise)


def _causes(error: BaseException) -> list[BaseException]:
    """What an error was raised from, and so on, but for errors of ours, whose messages have paths."""
    found = []
    cause = error.__cause__
    while cause is not None:
        if not isinstance(cause, UserError):
            found.append(cause)
        cause = cause.__cause__
    return found
