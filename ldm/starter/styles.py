"""The styles of drawing: one for each set of pictures, with the words that ask for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A set of pictures and its words.

    Attributes:
        name: of the set in ``ldm.starter.packages.PACKAGES``, or of an avatar style of DiceBear.
        kind: ``emoji``, whose pictures have their own colours; ``glyph``, of one colour that is chosen; ``avatar``.
        word: what stands before "style", such as ``flat``.
        drawing: what stands before "of a dog", such as ``3d render``.
        korean, korean_drawing: the same, as in ``플랫 스타일`` and ``사과의 3D 렌더링``.
    """

    name: str
    kind: str
    word: str
    drawing: str
    korean: str
    korean_drawing: str


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("fluent-3d", "emoji", "3d", "3d render", "3D", "3D 렌더링"),
        Style("fluent-flat", "emoji", "flat", "flat drawing", "플랫", "플랫 그림"),
        Style("noto", "emoji", "noto", "noto emoji", "노토", "노토 이모지"),
        Style("noto-v1", "emoji", "blob", "blob emoji", "블롭", "블롭 이모지"),
        Style("twemoji", "emoji", "twemoji", "twemoji drawing", "트위모지", "트위모지 그림"),
        Style("emojione", "emoji", "emojione", "emojione drawing", "이모지원", "이모지원 그림"),
        Style("streamline", "emoji", "line cartoon", "line cartoon", "선 만화", "선 만화"),
        Style("fxemoji", "emoji", "fxemoji", "fxemoji drawing", "에프엑스", "에프엑스 이모지"),
        Style("game-icons", "glyph", "icon", "icon", "아이콘", "아이콘"),
        *(
            Style(name, "avatar", "avatar", "avatar", "아바타", "아바타")
            for name in ("personas", "open-peeps", "big-smile", "critters", "voxel-bot", "sprouts")
        ),
    )
}
