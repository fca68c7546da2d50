"""Scenes in Korean, with particles that fit the sound of the word before them."""

from __future__ import annotations

from ldm.starter.colours import COLOURS
from ldm.starter.draws import Draws
from ldm.starter.prepared import Prepared
from ldm.starter.scene import Item, Scene
from ldm.starter.styles import STYLES, Style
from ldm.starter.subjects import Subject

_PLACES = {
    "top left": "왼쪽 위 구석에 있는",
    "top": "위쪽에 있는",
    "top right": "오른쪽 위 구석에 있는",
    "left": "왼쪽에 있는",
    "right": "오른쪽에 있는",
    "bottom left": "왼쪽 아래 구석에 있는",
    "bottom": "아래쪽에 있는",
    "bottom right": "오른쪽 아래 구석에 있는",
}
_TAGS = 3  # fewer than so many alone say too little
_SCALES = {"small": ("작은", "작은", "조그만"), "large": ("큰", "큰", "커다란")}
_CLOSED_DIGITS, _CLOSED_LETTERS = "013678", "lmnr"  # whose Korean names end in a consonant


def ends_closed(word: str) -> bool:
    """Whether a word ends in a consonant when a Korean reads it, which decides between 이 and 가, 과 and 와."""
    last = next((letter for letter in reversed(word) if letter.isalnum()), "")
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28 != 0
    return last.lower() in _CLOSED_LETTERS or last in _CLOSED_DIGITS


def particle(word: str, closed: str, opened: str) -> str:
    """A word with the particle that fits it, such as ``particle("사과", "이", "가")``."""
    return word + (closed if ends_closed(word) else opened)


def korean(prepared: Prepared, scene: Scene, draws: Draws) -> str:
    """A caption of a scene. Glyphs without a Korean name keep their English one."""
    styles = [STYLES[prepared.pictures[item.picture].style] for item in scene.items]
    subjects = [prepared.subjects[prepared.pictures[item.picture].subject] for item in scene.items]
    if scene.kind == "single" and draws.chance(0.25) and len(subjects[0].korean_tags) >= _TAGS:
        return _of_tags(subjects[0], styles[0], draws)
    scale = f"{draws.one(_SCALES[scene.scale])} " if scene.scale else ""
    things = [
        _thing(item, subject, style, scale) for item, subject, style in zip(scene.items, subjects, styles, strict=True)
    ]
    told = _arranged(scene, things, draws)
    if scene.kind == "single" and subjects[0].korean_tags and draws.chance(0.2):
        told = ", ".join((told, *draws.some(subjects[0].korean_tags, 2)))
    if scene.background != "white" or scene.kind == "colours":
        ground = f"{COLOURS[scene.background].korean} 배경"
        # "의" after a background would make "위에는" of two things the place above the background
        within = f"{ground}의 {told}" if scene.place else f"{ground}에 {told}"
        told = draws.one((within, f"{told}, {ground}"))
    return _styled(told, styles[0], draws)


def _styled(told: str, style: Style, draws: Draws) -> str:
    if style.kind != "emoji" or draws.chance(0.5):
        return told
    return draws.one(
        (f"{told}, {style.korean} 스타일", f"{style.korean} 스타일, {told}", f"{told}, {style.korean_drawing}")
    )


def _of_tags(subject: Subject, style: Style, draws: Draws) -> str:
    words = draws.some(subject.korean_tags, 2 + draws.chance(0.5))
    said = [f"{style.korean} 스타일"] if draws.chance(0.3) else []
    return ", ".join([*words, *said])


def _thing(item: Item, subject: Subject, style: Style, scale: str) -> str:
    noun = subject.korean or subject.noun
    colour = f"{COLOURS[item.colour].korean} " if item.colour else ""
    return f"{scale}{colour}{noun}" + (" 아이콘" if style.kind == "glyph" else "")


def _arranged(scene: Scene, things: list[str], draws: Draws) -> str:
    if scene.arrangement == "alone":
        return f"{_PLACES[scene.place]} {things[0]}" if scene.place else things[0]
    if len(things) == 3:
        return _three(scene.arrangement, things, draws)
    first, second = things
    if scene.arrangement == "row":
        before, after = "왼쪽", "오른쪽"
    else:
        before, after = "위", "아래"
    return draws.one(
        (
            f"{second} {before}에 있는 {first}",
            f"{first} {after}에 있는 {second}",
            f"{before}에는 {first}, {after}에는 {second}",
            f"{second} {before}에 {particle(first, '이', '가')} 있다",
        )
    )


def _three(arrangement: str, things: list[str], draws: Draws) -> str:
    first, second, third = things
    if arrangement == "row":
        between = f"{particle(first, '과', '와')} {third} 사이에 있는 {second}"
        return draws.one((between, f"왼쪽부터 {first}, {second}, {third}"))
    if arrangement == "column":
        return draws.one((f"위에서부터 {first}, {second}, {third}", f"{first} 아래에 {second}, 그 아래에 {third}"))
    below = f"{particle(second, '과', '와')} {third}"
    return draws.one((f"{below} 위에 있는 {first}", f"위에는 {first}, 아래에는 {below}"))
