"""What is known of an example once it has been looked at: small, and the same from every process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

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


# What the readers of pictures and captions say. Paths are in these messages too, so they are told by words that stand
# before or after any path.
_SAID = (
    ("bomb", r" has \d+ x \d+ pixels, and at most [\d,]+ are opened$| is too large to open: "),
    ("animated", r" has \d+ frames, and which is meant is unknown: "),
    ("missing", r", and there is no such file$"),
    ("uncaptioned", r" has no caption: looked for |: no .+ for .+$|^the caption .* is missing$"),
    ("encoding", r"^the caption .* is not valid UTF-8"),
    ("empty", r" is empty$"),
    ("caption", r"^the caption | is no text: | holds zero bytes, and is no text$"),
    ("row", r" is no (JSON|CSV): | should be an object such as | fields, and the first line has | is not valid UTF-8$"),
    ("label", r" is missing$|, and should be | is in (the folder .*, which is none of classes|no folder of a class)$"),
)
# What Pillow and its decoders say of a file that ends too early.
_CUT_OFF = re.compile(r"truncated|unexpected end|broken data stream|not enough (image )?data|premature|EOF", re.IGNORECASE)


def _kind(error: BadExample) -> str:
    causes = _causes(error)
    first = causes[-1]
    if isinstance(first, FileNotFoundError):
        return "missing"
    if isinstance(first, Image.DecompressionBombError):
        return "bomb"
    for kind, words in _SAID:
        if re.search(words, str(error)):
            return kind
    if len(causes) > 1 and _CUT_OFF.search(str(first)):
        return "truncated"
    return "unreadable"


def _causes(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on."""
    found = [error]
    while (cause := found[-1].__cause__) is not None:
        found.append(cause)
    return found
