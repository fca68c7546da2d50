"""The nearest thing to a word that a model does not know.

Ways are tried from the surest to the boldest, and the first that finds something decides:

1. the file's own list of words by meaning: a beagle is a dog
2. endings: dogs is dog, smiling is smile, and what is listed in 1 may have such endings too
3. spelling: names written together (icecream), one letter for another of the same sound (elefant), or one slip:
   a letter missing, extra, another one, or two turned round (pengiun, 강아쥐)
4. words made of two known ones: the second tells what it is (a zebrafish is a fish)

Nothing is better than something far away: spelling is strict, and strictest with short words. The model's own text
encoder is not asked: it has never seen the word, and what it makes of its pieces is chance.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property

from ldm.knowledge.file import Knowledge
from ldm.knowledge.vocabulary import Vocabulary, plain, stems, words_of

_ENDINGS = (  # of English words, what stands in their place, and how many letters are left at least
    *(("s", "", 3), ("es", "", 3), ("ies", "y", 3), ("ves", "f", 3), ("ves", "fe", 2)),
    *(("ing", "e", 3), ("ing", "", 3), ("ed", "e", 3), ("ed", "", 3), ("y", "", 4)),
)
_IRREGULAR = {
    **{"mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "children": "child"},
    **{"men": "man", "women": "woman", "people": "person", "cacti": "cactus", "octopi": "octopus", "dice": "die"},
}
_SAME_SOUND = (("ph", "f"), ("ck", "k"), ("y", "i"), ("w", "u"))  # what people write for each other
_SHORT = 6  # letters of a word in which a letter too many, or another, may well make another word
_LEAST_WORD, _LEAST_SYLLABLES = 4, 3  # letters of a word, or syllables of a Korean one, whose spelling is looked at
_LEAST_PART, _LEAST_HEAD = 3, 4  # letters of the two words in one
_SLIPS, _SLIPS_OF_SHORT = ("turned", "missing", "extra", "other"), ("turned", "missing")
_LATIN = re.compile("[a-z]+")


class Nearest:
    """The nearest that a model knows.

    Args:
        knowledge: of the model.
        vocabulary: of that knowledge.
    """

    def __init__(self, knowledge: Knowledge, vocabulary: Vocabulary) -> None:
        self._knowledge, self._vocabulary = knowledge, vocabulary

    def __call__(self, word: str) -> str | None:
        """What to say in place of an unknown word; None where nothing is near.

        Args:
            word: as ``words_of`` gives it.
        """
        ways = (self._by_meaning, self._by_ending, self._by_spelling, self._by_parts)
        return next((found for way in ways for stem in stems(word) if (found := way(stem))), None)

    def _by_meaning(self, word: str) -> str | None:
        return self._meanings.get(word)

    def _by_ending(self, word: str) -> str | None:
        for stem in _without_ending(word):
            if name := self._meanings.get(stem):
                return name
            if stem in self._vocabulary.words:
                return stem
        return None

    def _by_spelling(self, word: str) -> str | None:
        if word in self._joined:
            return self._joined[word]
        latin = bool(_LATIN.fullmatch(word))
        if len(word) < (_LEAST_WORD if latin else _LEAST_SYLLABLES):
            return None
        letters = _letters(word)
        if letters in self._spelt:
            return self._spelt[letters]
        slips = _SLIPS_OF_SHORT if latin and len(word) <= _SHORT else _SLIPS
        among = [
            each
            for each, found in self._spelt.items()
            if each[0] == letters[0] and abs(len(found) - len(word)) <= 1 and _slip(letters, each) in slips
        ]
        near = difflib.get_close_matches(letters, among, 1, 0.0)
        return self._spelt[near[0]] if near else None

    def _by_parts(self, word: str) -> str | None:
        if not _LATIN.fullmatch(word):
            return None
        for cut in range(_LEAST_PART, len(word) - _LEAST_HEAD + 1):
            first, head = word[:cut], word[cut:]
            if first in self._vocabulary.words and head in self._knowledge.by_name:
                return self._knowledge.by_name[head].noun
        return None

    @cached_property
    def _meanings(self) -> dict[str, str]:
        return {plain(word): name for word, name in self._knowledge.near.items()}

    @cached_property
    def _joined(self) -> dict[str, str]:
        """Names of several words by how they are written without spaces."""
        names = [name for _, thing in self._knowledge.members() for name in (thing.noun, thing.korean, *thing.other)]
        found: dict[str, str] = {}
        for name in names:
            words = words_of(name)
            if len(words) > 1:
                found.setdefault("".join(words), name)
        return found

    @cached_property
    def _spelt(self) -> dict[str, str]:
        """What a slip can have been made in, by its letters: words of names before others, so that they win."""
        named, others = sorted(self._vocabulary.named), sorted(self._vocabulary.words - self._vocabulary.named)
        return {_letters(word): word for word in reversed((*named, *others)) if len(word) >= _LEAST_SYLLABLES}


def _letters(word: str) -> str:
    """As a slip of the hand or ear sees it: Korean syllables are several letters, a doubled consonant is one."""
    for written, instead in _SAME_SOUND:
        word = word.replace(written, instead)
    return re.sub(r"([b-df-hj-np-tv-z])\1+", r"\1", unicodedata.normalize("NFD", word))


def _slip(word: str, other: str) -> str:
    """How a word comes of another by one slip; empty where it takes more."""
    start = _same(word, other)
    end = _same(word[start:][::-1], other[start:][::-1])
    found, meant = word[start : len(word) - end], other[start : len(other) - end]
    if len(found) == len(meant) == 2 and found == meant[::-1]:
        return "turned"
    return {(0, 1): "missing", (1, 0): "extra", (1, 1): "other"}.get((len(found), len(meant)), "")


def _same(word: str, other: str) -> int:
    """With how many same letters two words begin."""
    differ = (k for k, (a, b) in enumerate(zip(word, other, strict=False)) if a != b)
    return next(differ, min(len(word), len(other)))


def _without_ending(word: str) -> Iterator[str]:
    if not _LATIN.fullmatch(word):
        return
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    for ending, instead, least in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < least:
            continue
        yield stem + instead
        if not instead and stem[-1] == stem[-2]:  # running
            yield stem[:-1]
