"""Which words a model knows: all that its captions can hold.

A word is a run of letters and digits, in small letters and composed form: ``T-Rex`` is two, ``men's`` too. One in
Korean may have a particle at its end (사과와, 배경에는), and may be several words written without spaces (빨간색사과).
Numbers, single letters and words of mere grammar are nobody's to know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from ldm.knowledge.file import Knowledge

WORD = re.compile(r"[^\W_]+")
_HANGUL = re.compile("[가-힣]+")
_LEAST_PIECE = 2  # syllables of a word that may be written together with another: of one, any word could be made
_PARTICLES = re.findall(
    WORD,
    """에서부터 에게서 으로는 이라는 입니다 에는 에서 에게 부터 까지 으로 처럼 보다 하고 이랑 에도 이다 라는
    은 는 이 가 을 를 의 에 와 과 로 도 만 랑 들 인""",
)
_GRAMMAR = set(
    re.findall(
        WORD,
        """a an the this that these those my your his her its our their it he she they we you i me them us who which
        what and or but of to for by as at with from in on into is are was be been being am has have had do does not no
        some any each every all both other another there here than then so too also just very please draw make picture
        zero one two three four five six seven eight nine ten eleven twelve first second third hundred thousand
        그리고 와 과 및 또는 하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열 한 두 세 네 그 이 저 것 있는 있다 있고
        마리 개 명 대 송이 그루 권 장 그려줘 그려 줘 그려주세요 주세요 그림""",
    )
)


def plain(text: str) -> str:
    """As words are compared: composed, in small letters."""
    return unicodedata.normalize("NFC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return WORD.findall(plain(text))


class Vocabulary:
    """The words of a knowledge.

    Attributes:
        named: words of the names of things, of styles, colours, places, sizes and relations.
        words: all of them, tags and function words too.
    """

    def __init__(self, knowledge: Knowledge) -> None:
        self.named = frozenset(words_of("\n".join(_names(knowledge))))
        self.words = self.named | frozenset(words_of("\n".join(_others(knowledge))))

    def knows(self, word: str) -> bool:
        """Whether a word can have been in a caption, or is not for a model to know.

        Args:
            word: as ``words_of`` gives it.
        """
        if len(word) == 1 or word[0].isdigit() or word in self.words or word in _GRAMMAR:
            return True
        return any(stem in self.words or stem in _GRAMMAR or self._is_made_of_known(stem) for stem in stems(word))

    def _is_made_of_known(self, word: str) -> bool:
        """Whether a Korean word is known ones of two syllables or more, written together."""
        if not _HANGUL.fullmatch(word):
            return False
        ends = {0}
        for end in range(_LEAST_PIECE, len(word) + 1):
            if any(start in ends and word[start:end] in self.words for start in range(end - _LEAST_PIECE + 1)):
                ends.add(end)
        return len(word) in ends


def stems(word: str) -> Iterator[str]:
    """A word, and what is left of it without the Korean particle that it may end with."""
    yield word
    if not _HANGUL.match(word[-1]):
        return
    for particle in _PARTICLES:
        if word.endswith(particle) and len(word) > len(particle):
            yield word.removesuffix(particle)


def _names(knowledge: Knowledge) -> Iterator[str]:
    for _, thing in knowledge.members():
        yield from (thing.noun, thing.korean, *thing.other)
    for style in knowledge.styles:
        yield from (style.word, style.drawing, style.korean, style.korean_drawing)
    for colour in knowledge.colours:
        yield from (colour.name, colour.korean)
    for phrases in (knowledge.places, knowledge.sizes, knowledge.relations):
        yield from (*phrases.en, *phrases.ko)


def _others(knowledge: Knowledge) -> Iterator[str]:
    for _, thing in knowledge.members():
        yield from (*thing.tags, *thing.korean_tags)
    yield from (*knowledge.function.en, *knowledge.function.ko)
