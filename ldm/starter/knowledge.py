"""What a model knows that was trained on composed pictures: the ``knows.json`` of its folder.

Only what is in the training's world is listed: the kinds of scenes that have a share, of the groups and styles that
were left in. The words are those that ``english`` and ``korean`` put into captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

from ldm.knowledge.file import Colour, Group, Knowledge, Language, Phrases, Style, Thing
from ldm.knowledge.vocabulary import Vocabulary, words_of
from ldm.starter.avatar_styles import AVATAR_STYLES, AvatarStyle
from ldm.starter.colours import COLOURS
from ldm.starter.near_words import NEAR_WORDS
from ldm.starter.nouns import article_of
from ldm.starter.prepared import Picture, Prepared
from ldm.starter.scene import KINDS
from ldm.starter.settings import Group as EmojiGroup
from ldm.starter.settings import Kind, StarterConfig
from ldm.starter.styles import STYLES
from ldm.starter.subjects import Subject

_PLACED: tuple[Kind, ...] = ("colours", "glyphs")  # kinds of scenes of one thing at a place and of a size
_SEVERAL: tuple[Kind, ...] = ("pairs", "triples")
_MOSTLY = 0.5  # of a thing's pictures that can be painted
ICONS, AVATARS = "icons", "avatars"
_PLACES = Phrases(
    en=(
        *("in the top left corner", "at the top", "in the top right corner", "on the left", "on the right"),
        *("in the bottom left corner", "at the bottom", "in the bottom right corner"),
        *("at the top left", "at the top right", "on the left side", "on the right side"),
        *("at the bottom left", "at the bottom right"),
    ),
    ko=(
        *("왼쪽 위 구석에 있는", "위쪽에 있는", "오른쪽 위 구석에 있는", "왼쪽에 있는", "오른쪽에 있는"),
        *("왼쪽 아래 구석에 있는", "아래쪽에 있는", "오른쪽 아래 구석에 있는"),
    ),
)
_SIZES = Phrases(en=("small", "tiny", "little", "large", "big", "huge"), ko=("작은", "조그만", "큰", "커다란"))
_TWO = Phrases(
    en=(
        *("left of", "to the left of", "right of", "to the right of", "above", "below", "under"),
        *("on the left and ... on the right", "at the top and ... at the bottom"),
    ),
    ko=("왼쪽에 있는", "오른쪽에 있는", "위에 있는", "아래에 있는", "왼쪽에는 ..., 오른쪽에는", "위에는 ..., 아래에는"),
)
_THREE = Phrases(
    en=("between ... and", "in a row", "from left to right", "from top to bottom"),
    ko=("사이에 있는", "왼쪽부터", "위에서부터", "그 아래에"),
)
_FUNCTION = Phrases(
    en=("a", "an", "the", "of", "and", "on", "in", "at", "with", "style", "background", "against"),
    ko=("스타일", "배경", "있는", "있다"),
)
_ICON_WORDS = Phrases(en=("icon", "silhouette"), ko=("아이콘",))
_EXAMPLES: tuple[tuple[Language, Kind, str], ...] = (
    ("en", "single", "a red apple"),
    ("en", "single", "a puppy, 3d style"),
    ("en", "single", "3d render of a cat"),
    ("en", "pairs", "a red apple left of a blue car, flat style"),
    ("en", "colours", "a rocket on a yellow background"),
    ("en", "glyphs", "a green sword icon"),
    ("en", "colours", "a small octopus in the top left corner on a navy background"),
    ("en", "pairs", "a dog above a house on a sky blue background"),
    ("en", "single", "a sunflower, noto style"),
    ("en", "single", "a house, line cartoon style"),
    ("en", "triples", "a banana, a strawberry and grapes in a row"),
    ("en", "avatars", "a pink monster with pointy ears and teeth"),
    ("ko", "single", "강아지 얼굴, 3D 스타일"),
    ("ko", "colours", "노란색 배경에 로켓"),
    ("ko", "colours", "파란색 자동차"),
    ("ko", "pairs", "고양이 왼쪽에 있는 사과"),
    ("ko", "colours", "작은 초록색 문어"),
)


def knowledge_of(config: StarterConfig) -> Knowledge:
    """What a model knows once it is trained on composed pictures.

    Args:
        config: the training's ``data``.

    Raises:
        UserError: the prepared folder is missing or damaged.
    """
    prepared = Prepared(config.path.expanduser())
    kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if config.kinds.get(kind, 0) > 0)
    groups = _groups(prepared, config, kinds)
    placed, several = not {*kinds}.isdisjoint(_PLACED), not {*kinds}.isdisjoint(_SEVERAL)
    relations = _joined(*([_TWO] if several else []), *([_THREE] if "triples" in kinds else []))
    used = {word for group in groups for thing in group.things for word in group.styles_of(thing)}
    plain = Knowledge(
        scenes=kinds,
        styles=tuple(style for style in _styles() if style.word in used),
        colours=tuple(Colour(name=each.name, korean=each.korean, rgb=each.rgb) for each in COLOURS.values()),
        groups=groups,
        places=_PLACES if placed else Phrases(),
        sizes=_SIZES if placed else Phrases(),
        relations=relations,
        function=_joined(_FUNCTION, *([_ICON_WORDS] if any(group.name == ICONS for group in groups) else [])),
    )
    vocabulary = Vocabulary(plain)

    def known(text: str) -> bool:
        return all(map(vocabulary.knows, words_of(text)))

    examples = {
        language: tuple(text for told, kind, text in _EXAMPLES if told == language and kind in kinds and known(text))
        for language in ("en", "ko")
    }
    return plain.model_copy(update={"near": _near(known), "examples": Phrases.checked(examples)})


def _joined(*many: Phrases) -> Phrases:
    return Phrases(en=tuple(t for each in many for t in each.en), ko=tuple(t for each in many for t in each.ko))


def _styles() -> Iterable[Style]:
    for style in STYLES.values():
        if style.kind == "avatar":  # which no caption says
            continue
        kind = "icon" if style.kind == "glyph" else "picture"
        known = {"drawing": style.drawing, "korean": style.korean, "korean_drawing": style.korean_drawing}
        yield Style.checked({"word": style.word, "kind": kind, **known})


def _groups(prepared: Prepared, config: StarterConfig, kinds: Sequence[Kind]) -> tuple[Group, ...]:
    """Groups of emoji in the order of Unicode, then icons, then avatars."""
    pictures: dict[int, list[Picture]] = {}
    for picture in prepared.pictures:
        pictures.setdefault(picture.subject, []).append(picture)
    alone = "single" in kinds or "colours" in kinds
    several = not {*kinds}.isdisjoint(_SEVERAL)
    found: dict[str, list[Thing]] = {}
    for index, subject in enumerate(prepared.subjects):
        shown = pictures.get(index, [])
        if subject.kind == "emoji" and _is_in(subject, shown, config) and (alone or (several and subject.placeable)):
            found.setdefault(subject.group, []).append(_thing(subject, shown))
        elif subject.kind == "glyph" and shown and (several or "glyphs" in kinds):
            found.setdefault(ICONS, []).append(_thing(subject, shown))
    if "avatars" in kinds:
        there = {picture.style for picture in prepared.pictures}
        avatars = [thing for style in AVATAR_STYLES if style.name in there for thing in _avatars(style)]
        found |= {AVATARS: avatars} if avatars else {}
    return tuple(_group(name, found[name]) for name in (*get_args(EmojiGroup), ICONS, AVATARS) if name in found)


def _is_in(subject: Subject, shown: Sequence[Picture], config: StarterConfig) -> bool:
    """Whether an emoji is in the training's world, as ``Scenes`` has it."""
    in_group = not config.groups or subject.group in config.groups
    return in_group and len({picture.style for picture in shown}) >= config.least_styles


def _thing(subject: Subject, shown: Sequence[Picture]) -> Thing:
    names = {picture.style for picture in shown}
    hued = sum(picture.hue is not None for picture in shown)
    return Thing(
        noun=subject.noun,
        article=subject.article,
        other=subject.other,
        tags=tuple(tag for tag in subject.tags if tag != subject.noun),
        korean=subject.korean,
        korean_tags=tuple(tag for tag in subject.korean_tags if tag != subject.korean),
        styles=tuple(style.word for style in STYLES.values() if style.name in names),
        placeable=subject.kind == "glyph" or subject.placeable,
        paintable=subject.kind == "glyph" or (subject.colourable and hued >= _MOSTLY * len(shown)),
    )


def _avatars(style: AvatarStyle) -> Iterable[Thing]:
    """What a style draws, with all that can be told of it as tags."""
    slot, told = style.coloured[1], [[pair for pair in part.words.values() if pair] for part in style.parts]
    in_head = "{0}" in style.head[0]
    heads = [tuple(text.format(pair[k]) for k, text in enumerate(style.head)) for pair in told[0]] if in_head else []
    pairs = [pair for part in (told[1:] if in_head else told) for pair in part]
    pairs += [(slot[0].format(name).strip(), slot[1].format(COLOURS[name].korean).strip()) for name in style.among]
    english, korean = zip(*pairs, strict=True)
    for noun, name in heads or [style.head]:
        told = {"tags": english, "korean": name, "korean_tags": korean}
        yield Thing(noun=noun, article=article_of(noun), placeable=False, paintable=False, **told)


def _group(name: str, things: Sequence[Thing]) -> Group:
    """Things without the styles that most of them have, which are the group's."""
    usual = Counter(thing.styles for thing in things).most_common(1)[0][0]
    kept = tuple(thing.model_copy(update={"styles": ()}) if thing.styles == usual else thing for thing in things)
    return Group(name=name.replace("-", " and "), styles=usual, things=kept)


def _near(known: Callable[[str], bool]) -> Mapping[str, str]:
    """Of the words that are near something, those that are unknown, where what they are near is known."""
    return {word: name for name, words in NEAR_WORDS.items() if known(name) for word in words if not known(word)}
