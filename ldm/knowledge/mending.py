"""Prompts in the words that a model knows: unknown ones become the nearest, and a note names them.

What is no word of the prompt's is left as it is: weights and brackets, tags such as ``<lora:...>``, BREAK, and words
that were learned beside the model (textual inversion).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from ldm.knowledge.file import Knowledge
from ldm.knowledge.nearest import Nearest
from ldm.knowledge.vocabulary import WORD, Vocabulary, plain

_KEPT = r"<[^<>]*>|\b(?:BREAK|AND)\b"
_ARTICLE = re.compile(r"\b(an?)(\s[\s(\[]*)$", re.IGNORECASE)  # brackets may begin between it and its noun
_MOST_NAMED = 8  # words of one note


class Unknown(NamedTuple):
    """A word that a model does not know, as it was written, and the nearest that it knows; None where there is none."""

    word: str
    nearest: str | None


class Mended(NamedTuple):
    """A prompt in known words, as far as there are any near, and what was unknown in it, each word once."""

    prompt: str
    unknown: tuple[Unknown, ...]


class Mender:
    """Finds the unknown words of prompts, and says them otherwise.

    Args:
        knowledge: of the model.
        own: words that the model was taught beside it, in small letters; they are found inside others, too.
    """

    def __init__(self, knowledge: Knowledge, own: Collection[str] = ()) -> None:
        self.vocabulary = Vocabulary(knowledge)
        self._knowledge = knowledge
        longest_first = sorted(map(re.escape, own), key=len, reverse=True)
        learned = f"|(?:embedding:)?(?i:{'|'.join(longest_first)})" if own else ""
        self._pieces = re.compile(f"(?P<kept>{_KEPT}{learned})|{WORD.pattern}")

    def __call__(self, prompt: str) -> Mended:
        """Mend a prompt; one of known words comes back as it is."""
        text = unicodedata.normalize("NFC", prompt)
        unknown: dict[str, Unknown] = {}
        mended, done = "", 0
        for piece in self._pieces.finditer(text):
            word = plain(piece[0])
            if piece["kept"] or self.vocabulary.knows(word):
                continue
            found = unknown.setdefault(word, Unknown(piece[0], self._nearest(word)))
            if found.nearest is not None:
                mended = self._with_article(mended + text[done : piece.start()], found.nearest) + found.nearest
                done = piece.end()
        return Mended(mended + text[done:] if done else prompt, tuple(unknown.values()))

    @cached_property
    def _nearest(self) -> Nearest:
        return Nearest(self._knowledge, self.vocabulary)

    def _with_article(self, before: str, name: str) -> str:
        """What stands before a name, its article made to fit."""
        thing = self._knowledge.by_name.get(plain(name))
        article = thing.article if thing and plain(thing.noun) == plain(name) else "an" if name[0] in "aeiou" else "a"
        if not article:
            return _ARTICLE.sub(lambda found: found[2].lstrip(), before)
        return _ARTICLE.sub(lambda found: (article.title() if found[1].istitle() else article) + found[2], before)


def told(unknown: Sequence[Unknown]) -> str:
    """One sentence that names unknown words and what is nearest to them.

    Args:
        unknown: one or more.
    """
    near = [each for each in dict.fromkeys(unknown) if each.nearest is not None]
    far = [each for each in dict.fromkeys(unknown) if each.nearest is None]
    parts = []
    if near:
        verb = "is" if len(near) == 1 else "are"
        nearest = _listed((each.nearest or "" for each in near), "and")
        words = _listed((each.word for each in near), "or")
        parts.append(f"this model does not know {words}; the nearest that it knows {verb} {nearest}")
    if far:
        words = _listed((each.word for each in far), "or")
        parts.append(f"{'it knows nothing like' if near else 'this model knows nothing like'} {words}")
    return "; ".join(parts)


def _listed(words: Iterable[str], joint: str) -> str:
    quoted = [f'"{word}"' for word in words]
    if len(quoted) > _MOST_NAMED:
        quoted = [*quoted[:_MOST_NAMED], f"{len(quoted) - _MOST_NAMED} more"]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {joint} {quoted[-1]}"
